"""Fill tables without Ray and MLflow: `python -m ajepa.experiments TABLE... --data SHARDS --output FOLDER`.

The same trials as `pipelines/ablate.py`, one after the other. Interrupted, the same command goes on. Needs no more than
the package itself.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

from ajepa.choices import Protocol, Unlabelled
from ajepa.config import PRESETS
from ajepa.errors import UserError, one_line
from ajepa.openmp import sleep_while_waiting


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m ajepa.experiments", description=(__doc__ or "").partition("\n")[0])
    made.add_argument("tables", nargs="+", metavar="TABLE", help="a table's name, or all: those of the write-up")
    made.add_argument("--data", required=True, help="shards to pretrain on")
    made.add_argument("--output", required=True, help="local folder of trials, results and tables; resumed")
    made.add_argument("--probe-data", nargs="+", default=[], help="labelled shards to probe on; by default --data")
    made.add_argument("--protocol", nargs="+", choices=get_args(Protocol), default=["linear", "knn"])
    made.add_argument("--finetune", action="store_true", help="fine-tune each encoder as well: hours")
    made.add_argument(
        "--unlabelled", choices=get_args(Unlabelled), default="auto",
        help="clips to probe on without a label: of no class (negative), left out (drop) or an error (refuse); auto: "
        "negative where clips may have several labels, else refuse",
    )  # fmt: skip
    made.add_argument("--values", nargs="+", default=[], help="settings of the table, by default its own list")
    made.add_argument("--seeds", type=int, default=3, help="pretraining seeds of each setting")
    made.add_argument("--first-seed", type=int, default=0)
    made.add_argument("--preset", default="nano", choices=PRESETS, help="the recipe that is varied")
    made.add_argument("--max-steps", type=int, help="steps of each training; by default the preset's")
    made.add_argument("--equal-compute", action="store_true", help="as many steps as cost the same, not as many steps")
    made.add_argument("--results", nargs="+", default=[], help="folders of results that are known: not computed again")
    made.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    made.add_argument("--threads", type=int, default=1, help="CPU threads")
    made.add_argument("--dry-run", action="store_true", help="show trials and cost, compute nothing")
    return made


def main(argv: Sequence[str]) -> int:
    """Returns the exit code: 2 for a user's mistake or what a disk refuses, 1 where a trial failed."""
    args = parser().parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))
    sleep_while_waiting()
    try:
        return run(args)
    except (UserError, OSError) as error:
        if isinstance(error, OSError) and os.environ.get("AJEPA_TRACEBACK"):
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130


def run(args: argparse.Namespace) -> int:
    import torch  # after the options are known to be right: it takes seconds

    from ajepa import storage
    from ajepa.experiments import runner
    from ajepa.experiments.plan import measured_rate
    from ajepa.experiments.settings import with_steps

    if args.seeds < 1 or args.first_seed < 0 or args.threads < 1:
        raise UserError("--seeds and --threads must be positive, --first-seed not negative")
    if storage.is_uri(args.output):
        raise UserError("--output is a local folder")
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu")
    if args.device == "cuda" and device.type == "cpu":
        raise UserError("--device cuda: there is no GPU here")
    base = PRESETS[args.preset]
    if args.max_steps is not None:
        base = with_steps(base, args.max_steps)
    work = runner.open_work(
        args.tables, base, args.data, storage.absolute(args.output), probe_data=args.probe_data,
        protocols=args.protocol, finetune=args.finetune, values=args.values,
        seeds=range(args.first_seed, args.first_seed + args.seeds), equal_compute=args.equal_compute,
        results=args.results, unlabelled=args.unlabelled,
    )  # fmt: skip
    if args.dry_run:
        print(work.describe(measured_rate(base, device)))
        return 0
    with held(Path(work.output)):
        failures = runner.run_one_by_one(work, device)
        made = work.write()
    for table in made.values():
        print(f"\n{table.markdown}")
    if failures:
        print(f"{len(failures)} trials failed; the same command tries them again", file=sys.stderr)
    return 1 if failures else 0


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder for this process alone, where the system has such locks; a process that dies leaves none.

    Raises:
        UserError: another process has it, it is a folder of `pipelines/ablate.py` (whose locks work across machines),
            or nothing can be written there.
    """
    from ajepa.storage import LOCK  # imports pyarrow, as `run` has by now

    if folder.is_dir() and any(p.name == "ablation.json" or p.name.startswith(LOCK) for p in folder.iterdir()):
        raise UserError(f"{str(folder)!r} holds trials of pipelines/ablate.py: go on with it, or choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(f"cannot write to --output {str(folder)!r}: {error.strerror or error}") from error
    with lock as file:
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"another process works on {str(folder)!r}: wait for it, or choose another folder"
            ) from error
        yield


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
