"""What a command has to fill, its trials one after the other, and tables of all results there are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ajepa import storage
from ajepa.choices import Evaluation, Protocol, Unlabelled
from ajepa.config import Config
from ajepa.evaluation.comparison import PRETRAINED
from ajepa.experiments.plan import Plan, describe, make_plan
from ajepa.experiments.probe_sets import ProbeSet, open_probes
from ajepa.experiments.report import Line, comma_separated, lines_of, markdown
from ajepa.experiments.results import Result, from_trials, joined, read_results, require_results, write_results
from ajepa.experiments.settings import TABLES, default_of
from ajepa.experiments.trial import Trial, is_done, read_result, run_trial
from ajepa.finetuning.summary import FINETUNED
from ajepa.shards.dataset import ShardDataset, open_dataset

RESULTS, TRIALS, TABLE_FOLDER = "results", "trials", "tables"


def trial_folder(output: str, trial: Trial) -> str:
    return storage.join(output, TRIALS, f"{trial.name}-seed{trial.seed}")


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
    plan: Plan, results: dict[str, Result], dataset_hash: str, probes: Sequence[ProbeSet]
) -> dict[str, FilledTable]:
    """By name, one of each table and probe set; a table without a result is left out."""
    made = {}
    for name, configs in plan.tables.items():
        for probe in probes:
            lines = lines_of(name, configs, plan.base, results, dataset_hash, probe.hash, plan.seeds)
            if lines:
                default = default_of(configs, plan.base)
                title = f"{TABLES[name].title}, probed on {probe.name}; differences to {default}"
                made[f"{name}-{probe.name}"] = FilledTable(title, lines)
    return made


def write_tables(made: dict[str, FilledTable], output: str) -> None:
    folder = storage.join(output, TABLE_FOLDER)
    storage.make_folder(folder)
    for name, table in made.items():
        storage.write_text(storage.join(folder, f"{name}.md"), table.markdown)
        storage.write_text(storage.join(folder, f"{name}.csv"), table.csv)


@dataclass(frozen=True)
class Work:
    """What a command is to fill, and on what: the same for trials one after the other and for those of a cluster."""

    plan: Plan
    data: ShardDataset
    probes: Sequence[ProbeSet]
    evaluations: Sequence[Evaluation]
    output: str
    known: dict[str, Result]  # from other days and machines

    def left(self) -> list[Trial]:
        """The trials of which something is missing, in the output and in what is known."""

        def done(trial: Trial) -> bool:
            own = read_result(trial_folder(self.output, trial))
            elsewhere = self.known[trial.key].seeds.get(trial.seed) if trial.key in self.known else None
            return any(is_done(result, trial, self.probes, self.evaluations) for result in (own, elsewhere))

        return [trial for trial in self.plan.trials if not done(trial)]

    def describe(self, rate: float) -> str:
        """The plan in words, at a training rate in FLOP/s."""
        return describe(self.plan, self.left(), self.data, self.probes, self.evaluations, rate)

    def write(self) -> dict[str, FilledTable]:
        """The output's results as files, and the tables of all results there are."""
        folder = storage.join(self.output, RESULTS)
        found = (read_result(trial_folder(self.output, trial)) for trial in self.plan.trials)
        own = joined([from_trials(r for r in found if r is not None), read_results(folder)])
        if own:
            write_results(own, folder)
        made = tables(self.plan, joined([own, self.known]), self.data.clips_hash, self.probes)
        write_tables(made, self.output)
        return made


def open_work(
    names: Sequence[str],
    base: Config,
    data: str,
    output: str,
    *,
    probe_data: Sequence[str],
    protocols: Sequence[Protocol],
    finetune: bool,
    seeds: Sequence[int],
    values: Sequence[str],
    equal_compute: bool,
    results: Sequence[str],
    unlabelled: Unlabelled = "auto",
) -> Work:
    """Everything opened and checked before anything is computed.

    Args:
        data, output: as any process reads them.
        probe_data: labelled shards to probe on; by default `data`.
        finetune: score encoders by fine-tuning, too.
        results: folders of results that are known.
        unlabelled: what clips without a label are that encoders are scored on.

    Raises:
        UserError: as `make_plan`, `open_probes` and `require_results`; results in the output that cannot be read.
    """
    dataset = open_dataset(data)
    plan = make_plan(names, base, dataset.clips_hash, seeds, values, equal_compute, finetune)
    probes = open_probes(probe_data or [data], dataset, unlabelled)
    known = joined(require_results(folder) for folder in results)
    read_results(storage.join(output, RESULTS))  # refuses now what would end the command after its trials
    evaluations: tuple[Evaluation, ...] = (*protocols, FINETUNED) if finetune else tuple(protocols)
    return Work(plan, dataset, probes, evaluations, output, known)


def run_one_by_one(work: Work, device: torch.device) -> dict[str, str]:
    """Trains and probes what is left; what failed, by trial, with the reason: the others go on."""
    failures = {}
    for trial in work.left():
        name = f"{trial.name} seed {trial.seed}"
        folder = trial_folder(work.output, trial)
        try:
            result = run_trial(trial, work.data, work.probes, work.evaluations, folder, device)
            print(f"{name}: {summary(result)}")
        except Exception as error:  # one failing trial fails alone
            failures[name] = " ".join(str(error).split()) or repr(error)
            print(f"{name} failed: {failures[name]}")
    return failures


def summary(result: dict[str, Any]) -> str:
    """A trial's outcome in one line."""
    parts = [f"{s['protocol']} {s['pooling']} {s['score']:.3f}" for s in result["scores"]]
    if result["kind"] == PRETRAINED:
        parts.append(f"effective rank {result['effective_rank']:.1f}")
    return ", ".join(parts)
