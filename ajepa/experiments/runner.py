"""Run the trials of a plan one after the other, and write tables of all results there are."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ajepa import storage
from ajepa.choices import Protocol
from ajepa.evaluation.comparison import PRETRAINED
from ajepa.experiments.plan import Plan
from ajepa.experiments.report import Line, comma_separated, lines_of, markdown
from ajepa.experiments.results import Result, from_trials, joined, read_results, write_results
from ajepa.experiments.settings import TABLES, default_of
from ajepa.experiments.trial import ProbeSet, Train, Trial, is_done, read_result, run_trial
from ajepa.shards.dataset import ShardDataset

RESULTS, TRIALS, TABLE_FOLDER = "results", "trials", "tables"


def trial_folder(output: str, trial: Trial) -> str:
    return storage.join(output, TRIALS, f"{trial.name}-seed{trial.seed}")


def unfinished(
    plan: Plan, output: str, known: dict[str, Result], probes: Sequence[ProbeSet], protocols: Sequence[Protocol]
) -> list[Trial]:
    """The trials of which something is missing, in the output and in the results known from elsewhere."""

    def done(trial: Trial) -> bool:
        own = read_result(trial_folder(output, trial))
        elsewhere = known[trial.key].seeds.get(trial.seed) if trial.key in known else None
        return is_done(own, probes, protocols) or is_done(elsewhere, probes, protocols)

    return [trial for trial in plan.trials if not done(trial)]


def run_one_by_one(
    trials: Iterable[Trial],
    data: ShardDataset,
    probes: Sequence[ProbeSet],
    protocols: Sequence[Protocol],
    output: str,
    device: torch.device,
    train: Train | None = None,
    show: Callable[[str], None] = print,
) -> dict[str, str]:
    """Trains and probes; what failed, by trial, with the reason: the others go on."""
    failures = {}
    for trial in trials:
        name = f"{trial.name} seed {trial.seed}"
        try:
            result = run_trial(trial, data, probes, protocols, trial_folder(output, trial), device, train)
            show(f"{name}: {summary(result)}")
        except Exception as error:  # one failing trial fails alone
            failures[name] = " ".join(str(error).split()) or repr(error)
            show(f"{name} failed: {failures[name]}")
    return failures


def summary(result: dict[str, Any]) -> str:
    """A trial's outcome in one line."""
    parts = [f"{s['protocol']} {s['pooling']} {s['score']:.3f}" for s in result["scores"]]
    if result["kind"] == PRETRAINED:
        parts.append(f"effective rank {result['effective_rank']:.1f}")
    return ", ".join(parts)


def gather(plan: Plan, output: str | None, elsewhere: Sequence[str] = ()) -> dict[str, Result]:
    """Results of the output's trials and of other folders; those of the output are written there as files, too.

    Raises:
        UserError: a file of results that is damaged or of another version.
    """
    groups = [read_results(folder) for folder in elsewhere]
    if output is not None:
        found = (read_result(trial_folder(output, trial)) for trial in plan.trials)
        own = joined([from_trials(r for r in found if r is not None), read_results(storage.join(output, RESULTS))])
        if own:
            write_results(own, storage.join(output, RESULTS))
        groups.insert(0, own)
    return joined(groups)


@dataclass(frozen=True)
class FilledTable:
    """A table of one probe set."""

    title: str
    lines: list[Line]

    @property
    def markdown(self) -> str:
        return f"**{self.title}**\n\n{markdown(self.lines)}\n"

    @property
    def csv(self) -> str:
        return comma_separated(self.lines)


def tables(
    plan: Plan, results: dict[str, Result], dataset_hash: str, probes: Sequence[tuple[str, str]]
) -> dict[str, FilledTable]:
    """By name, one of each table and probe set; a table without a result is left out.

    Args:
        probes: (name, content hash) of each.
    """
    made = {}
    for name, configs in plan.tables.items():
        for probe_name, probe_hash in probes:
            lines = lines_of(name, configs, plan.base, results, dataset_hash, probe_hash, plan.seeds)
            if lines:
                default = default_of(configs, plan.base)
                title = f"{TABLES[name].title}, probed on {probe_name}; differences to {default}"
                made[f"{name}-{probe_name}"] = FilledTable(title, lines)
    return made


def write_tables(made: dict[str, FilledTable], output: str) -> None:
    folder = storage.join(output, TABLE_FOLDER)
    storage.make_folder(folder)
    for name, table in made.items():
        storage.write_text(storage.join(folder, f"{name}.md"), table.markdown)
        storage.write_text(storage.join(folder, f"{name}.csv"), table.csv)
