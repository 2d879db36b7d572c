"""What fault tests share: pretrain.py as a command of its own, a worker that fails at a chosen step, a file that jobs
wait at, comparisons."""

import contextlib
import dataclasses
import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import mlflow
import psutil
import torch

from ajepa.checkpoints import CheckpointInfo, latest_checkpoint, read_info, read_weights
from helpers.runs import TINY_MODEL

ROOT = Path(__file__).parents[2]
HELD = str(Path(__file__).with_name("held_pretrain.py"))
PATIENCE = 600  # seconds until something that is waited for counts as hung; many times what a slow machine takes
PATH = {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}


def options(
    data: str,
    output: Path | str,
    mlflow_uri: str,
    *more: str,
    steps: int = 12,
    every: int = 5,
    batch: int = 8,
    width: int = TINY_MODEL.width,
) -> list[str]:
    """Options of pretrain.py for a short run of a tiny model in float32, without pictures."""
    model = dataclasses.asdict(dataclasses.replace(TINY_MODEL, width=width))
    train = {"batch_size": batch, "max_steps": steps, "log_every": 2, "eval_every": steps, "checkpoint_every": every}
    named = [text for name, value in (model | train).items() for text in ("--" + name.replace("_", "-"), str(value))]
    where = ["--data", data, "--output", str(output), "--mlflow-uri", mlflow_uri]
    return [*where, "--precision", "fp32", "--threads", "1", "--no-figures", *named, *more]


# Of runs that are compared to float32's accuracy: so many weights that `assert_close_end` has some to spare.
WIDE = 96


def checkpoints(output: Path | str) -> list[int]:
    """Steps of the finished checkpoints of a run, in order."""
    return sorted(int(path.parent.name[5:]) for path in Path(output).glob("checkpoints/*/checkpoint.json"))


def assert_same_end(output: Path | str, reference: Path | str) -> CheckpointInfo:
    """Both runs are finished, with the same weights bit for bit."""
    infos = [read_info(latest_checkpoint(str(path))) for path in (output, reference)]
    assert infos[0].step == infos[1].step == infos[0].total_steps
    ours, theirs = (read_weights(info.path) for info in infos)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    return infos[0]


def assert_close_end(output: Path | str, reference: Path | str) -> None:
    """Both runs have the same weights to float32's accuracy: their sums were made in another order. One in 100,000 may
    differ more: where a gradient is nearly zero, rounding errors decide, and Adam makes them as large as any step."""
    ours, theirs = (read_weights(latest_checkpoint(str(path))) for path in (output, reference))
    far, count = {}, 0
    for name in ours:
        pair = [ours[name], theirs[name]]
        if name.endswith("qkv.bias"):  # the keys' bias has no gradient but rounding errors
            pair = [torch.cat([q, v]) for q, _, v in (bias.chunk(3) for bias in pair)]
        far[name] = int((~torch.isclose(*pair, rtol=1e-4, atol=1e-5)).sum())
        count += pair[0].numel()
    assert sum(far.values()) <= 1e-5 * count, {name: number for name, number in far.items() if number}


def assert_one_mlflow_run(mlflow_uri: str, output: Path | str) -> None:
    """The run at `output` was recorded once, and finished."""
    client = mlflow.MlflowClient(mlflow_uri)
    experiment = client.get_experiment_by_name("ajepa")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], f"params.output = '{output}'")
    assert [run.info.status for run in runs] == ["FINISHED"]


def wait_for(condition: Callable[[], bool], what: str, alive: Callable[[], bool] = lambda: True) -> float:
    """Look until the condition holds; the seconds that took."""
    began = time.monotonic()
    while not condition():
        assert alive(), f"ended before {what}"
        assert time.monotonic() - began < PATIENCE, f"waited {PATIENCE} s for {what}"
        time.sleep(0.01)
    return time.monotonic() - began


class Holds:
    """A folder of steps after which a command waits, so that it is met there however fast or slow the machine."""

    def __init__(self, folder: Path, *steps: int) -> None:
        self.folder = folder
        folder.mkdir()
        for step in steps:
            (folder / f"hold-{step}").touch()

    def reached(self, step: int) -> bool:
        """Whether it has come there since the last call that said so."""
        held = self.folder / f"held-{step}"
        there = held.exists()
        held.unlink(missing_ok=True)
        return there

    def release(self, step: int) -> None:
        """Let it go on, now and every time it comes there again."""
        (self.folder / f"hold-{step}").unlink()


class Gate:
    """A sound file that keeps whoever reads it waiting: a named pipe in its place, with a writer that says nothing. So
    a job stands where it is to be killed, however fast or slow the machine."""

    def __init__(self, path: Path) -> None:
        self.path, self._sound = path, path.read_bytes()
        self._writer: io.FileIO | None = None
        path.unlink()
        os.mkfifo(path)

    def wait(self, alive: Callable[[], bool]) -> int:
        """The process that waits here, once there is one."""
        wait_for(self._is_being_opened, f"somebody to read {self.path}", alive)
        wait_for(lambda: self.readers() != [], f"somebody to read {self.path}", alive)
        return self.readers()[0]

    def open(self) -> None:
        """Put the sound there, for all who come from now on. Whoever waits goes on waiting and is to be killed."""
        there = self.path.with_name("opened")
        there.write_bytes(self._sound)
        there.replace(self.path)

    def wait_until_left(self) -> None:
        """Until the process that waited is gone."""
        wait_for(lambda: self.readers() == [], f"the end of those who read {self.path}")

    def readers(self) -> list[int]:
        """The other processes that have the pipe open."""
        return [number for number in psutil.pids() if number != os.getpid() and self._is_open_in(number)]

    def _is_open_in(self, process: int) -> bool:
        names = (str(self.path), f"{self.path} (deleted)")
        with contextlib.suppress(OSError):  # it ended
            for link in Path(f"/proc/{process}/fd").iterdir():
                with contextlib.suppress(OSError):  # closed in between
                    if str(link.readlink()) in names and link.is_fifo():
                        return True
        return False

    def _is_being_opened(self) -> bool:
        with contextlib.suppress(OSError):  # there is no reader yet
            self._writer = io.FileIO(os.open(self.path, os.O_WRONLY | os.O_NONBLOCK), "w")
        return self._writer is not None


def names(processes: Sequence[psutil.Process]) -> list[str]:
    """Command lines of those that are alive; Ray's name what they do."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            found.append(" ".join(process.cmdline()))
    return found


def wait_for_all_of(leader: int) -> None:
    """Until no process is left of a command that was started with a session of its own (`start_new_session`). Its Ray's
    processes end a little after it. One of them holds a fixed port, without which the next Ray takes no jobs."""

    def left() -> list[int]:
        found = []
        for number in psutil.pids():
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                if os.getsid(number) == leader and psutil.Process(number).status() != psutil.STATUS_ZOMBIE:
                    found.append(number)
        return found

    wait_for(lambda: left() == [], f"the end of all processes of {leader}")


def of_one_ray(printed: str) -> str:
    """Without what Ray's cleaner of placement groups says where a second Ray is on the machine, as that of the test
    session or one that is just ending: it does not know which is its own. And without the traceback, harmless by its
    own words, of a controller that a busy machine made wait for more than 5 s."""
    kept, late = [], False
    for line in printed.splitlines(keepends=True):
        late = late or "Failed to send resource request" in line
        of_controller = "(TrainController pid=" in line
        if not (late and of_controller) and "(PlacementGroupCleaner pid=" not in line:
            kept.append(line)
        late = late and not (of_controller and "GetTimeoutError" in line)
    return "".join(kept)


@dataclasses.dataclass
class Command:
    """A running pretrain.py in a process group of its own, as a terminal would start it."""

    process: subprocess.Popen[str]
    log: Path

    def wait_for(self, condition: Callable[[], bool], what: str) -> float:
        return wait_for(condition, f"{what}:\n{self.text}", lambda: self.process.poll() is None)

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    @property
    def text(self) -> str:
        """Everything it printed so far."""
        return of_one_ray(self.log.read_text())

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@contextlib.contextmanager
def command(arguments: Sequence[str], log: Path, holds: Holds | None = None, **environment: str) -> Iterator[Command]:
    """Start pretrain.py; whatever is left of it after the block is killed."""
    program = [HELD, str(holds.folder)] if holds else ["pipelines/pretrain.py"]
    with log.open("a") as stream:
        process = subprocess.Popen(
            [sys.executable, *program, *arguments], cwd=ROOT, env=os.environ | PATH | environment,
            stdout=stream, stderr=stream, text=True, start_new_session=True,
        )  # fmt: skip
    try:
        yield Command(process, log)
    finally:
        if process.poll() is None:
            left = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            process.wait()
            for child in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()


class Failure(NamedTuple):
    """A worker that sends itself a signal, once: right after a step, or after its checkpoint is written."""

    moment: Literal["step", "checkpoint"]
    step: int
    rank: int
    number: int

    def flag(self, folder: Path) -> Path:
        """The file that is there afterwards; it holds the time."""
        return folder / f"{self.moment}-{self.step}"


def failing_worker(folder: Path, *failures: Failure) -> Callable[[dict], None]:
    """A train_worker whose processes fail, each at its own time."""
    from pipelines.rayjobs.train_workers import train_worker

    # What a worker unpickles: it cannot import this file.
    planned = [(f.moment, f.step, f.rank, int(f.number), str(f.flag(folder))) for f in failures]

    def worker(settings: dict) -> None:
        import os
        import time
        from pathlib import Path

        import ray.train

        from ajepa.training import checkpoint_writer, loop
        from pipelines.rayjobs import stop_requests

        rank, take_step, write = (
            ray.train.get_context().get_world_rank(),
            loop.train_step,
            checkpoint_writer.write_checkpoint,
        )

        def fail(*now):
            for *when, number, flag in planned:
                if when == [*now, rank] and not Path(flag).exists():
                    Path(flag).write_text(str(time.time()))
                    os.kill(os.getpid(), number)
                    stop_requests._terminated.wait(60)  # the main thread takes it when it is next asked something

        def step_then_fail(state, *args, **kwargs):
            result = take_step(state, *args, **kwargs)
            fail("step", state.step)
            return result

        def write_then_fail(path, shot):
            write(path, shot)
            fail("checkpoint", shot.step)

        loop.train_step, checkpoint_writer.write_checkpoint = step_then_fail, write_then_fail
        train_worker(settings)

    return worker
