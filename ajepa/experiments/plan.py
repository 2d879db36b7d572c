"""The trials of tables: each setting once, however many tables it stands in, and what they will cost here."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ajepa.choices import Evaluation
from ajepa.config import PRESETS, Config
from ajepa.errors import UserError
from ajepa.evaluation.comparison import MEL, PRETRAINED, RANDOM
from ajepa.experiments.finetuned import fine_tuning_flops
from ajepa.experiments.probe_sets import ProbeSet
from ajepa.experiments.settings import expand, published_text, settings_of, with_seed, with_steps
from ajepa.experiments.trial import Trial
from ajepa.finetuning.start import SUPERVISED
from ajepa.finetuning.summary import FINETUNED
from ajepa.objectives.registry import build_objective
from ajepa.shards.dataset import ShardDataset
from ajepa.training.flops import step_flops
from ajepa.training.schedules import total_steps
from ajepa.training.timing import seconds_per_step

H100_FLOPS = 1550 * 212e9  # clips/s of `base` in bf16 as measured on one (tests/benchmarks/README.md), FLOPs a clip
GPUS = 8
TIMED_FLOPS = 4e10  # of a timed step on a CPU, as of `nano`


@dataclass(frozen=True)
class Plan:
    """Tables by name with the config of each setting, and all trials, those of the first seed first."""

    base: Config
    tables: Mapping[str, Mapping[str, Config]]
    trials: tuple[Trial, ...]
    seeds: tuple[int, ...]


def make_plan(
    names: Sequence[str],
    base: Config,
    dataset_hash: str,
    seeds: Sequence[int],
    values: Sequence[str] = (),
    equal_compute: bool = False,
    finetune: bool = False,
) -> Plan:
    """
    Args:
        values: settings instead of a table's own list; of one table alone.
        equal_compute: steps of each setting are as many as cost what the base config's steps cost; else all have as
            many steps.
        finetune: encoders are fine-tuned, too: beside them stands the supervised baseline. So it does in the whole
            table of objectives.

    Raises:
        UserError: an unknown table or value, or values of several tables.
    """
    found = expand(names)
    if not found:
        raise UserError("no table named")
    if values and len(found) > 1:
        raise UserError("--values are those of one table: name one")
    if not seeds:
        raise UserError("--seeds must be positive")
    tables = {name: configs_of(name, base, values, equal_compute) for name in found}
    trials: dict[tuple[str, int], Trial] = {}
    supervised = finetune or ("objective" in found and not values)
    for seed in seeds:
        configs = [config for settings in tables.values() for config in settings.values()]
        wanted = [Trial(PRETRAINED, with_seed(config, seed), dataset_hash) for config in configs]
        wanted.append(Trial(RANDOM, with_seed(base, seed), dataset_hash))
        if supervised:
            wanted.append(Trial(SUPERVISED, with_seed(base, seed), dataset_hash))
        for trial in wanted:
            trials.setdefault((trial.key, seed), trial)
    mel = Trial(MEL, with_seed(base, seeds[0]), dataset_hash)
    return Plan(base, tables, (*trials.values(), mel), tuple(seeds))


def configs_of(name: str, base: Config, values: Sequence[str] = (), equal_compute: bool = False) -> dict[str, Config]:
    """The config of each setting of a table; see `make_plan`."""
    configs = settings_of(name, base, values)
    return {value: _as_costly(config, base) for value, config in configs.items()} if equal_compute else configs


def _as_costly(config: Config, base: Config) -> Config:
    if base.train.max_steps is None:
        raise UserError("--equal-compute needs --max-steps: the number of the default setting's steps")
    return with_steps(config, max(1, round(base.train.max_steps * step_flops(base) / step_flops(config))))


def trained(trials: Iterable[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.kind == PRETRAINED]


def flops_of(trial: Trial, clips: int) -> float:
    """Of the whole training."""
    return float(step_flops(trial.config)) * trial.config.train.batch_size * total_steps(trial.config.train, clips)


def measured_rate(base: Config, device: torch.device) -> float:
    """Training FLOP/s here, of a few steps of the base config; on a CPU with no more clips a step than take seconds."""
    clips = base.train.batch_size
    if device.type == "cpu":
        clips = max(1, min(clips, int(TIMED_FLOPS / step_flops(base))))
    timed = dataclasses.replace(base, train=dataclasses.replace(base.train, batch_size=clips))
    return step_flops(base) * clips / seconds_per_step(timed, device)


def checkpoint_bytes(config: Config) -> int:
    """Of all checkpoints that a run keeps: weights, and two moments of what is trained, in float32."""
    with torch.device("meta"):
        model = build_objective(config)
    weights = sum(t.numel() for t in model.state_dict().values())
    moments = 2 * sum(p.numel() for _, p in model.trained_parameters())
    return 4 * (weights + moments) * (config.train.keep_checkpoints + 1)


def describe(
    plan: Plan,
    left: Sequence[Trial],
    data: ShardDataset,
    probes: Sequence[ProbeSet],
    evaluations: Sequence[Evaluation],
    rate: float,
) -> str:
    """The plan in words: settings with what was published of them, steps, hours here of trials that are left, GPU-hours
    and disk of all."""
    lines = []
    baseline = [SUPERVISED] if any(trial.kind == SUPERVISED for trial in plan.trials) else []
    for name, configs in plan.tables.items():
        steps = sorted({total_steps(config.train, data.num_clips) for config in configs.values()})
        span = " to ".join(f"{s:,}" for s in dict.fromkeys((steps[0], steps[-1])))
        lines.append(f"{name}, {span} steps:")
        for setting in (*configs, *baseline):
            published = published_text(name, setting)
            lines.append(f"  {setting:18} published, %: {published}" if published else f"  {setting}")
    trials = trained(plan.trials)
    work = sum(flops_of(trial, data.num_clips) for trial in trained(left))
    tuned = [trial for trial in left if FINETUNED in trial.evaluations(evaluations)]
    tuning = sum(fine_tuning_flops(t.config.model, t.recipe, probe) for t in tuned for probe in probes)
    disk = sum(checkpoint_bytes(trial.config) for trial in trials)
    full = PRESETS["base"]
    clips = full.train.batch_size * total_steps(full.train, 2_000_000)
    share = [step_flops(_of_base(trial)) for trial in trials]
    hours = sum(share) * clips / H100_FLOPS / 3600
    lines += [
        f"{len(trials)} trainings and {len(plan.trials) - len(trials)} baselines, {len(plan.seeds)} seeds; "
        f"{len(plan.trials) - len(left)} done already",
        f"about {rate / step_flops(plan.base):.3g} clips/s and {work / rate / 3600:.1f} h of one process here, probes "
        "aside",
        *([f"{len(tuned)} fine-tuned, on each probe set: {tuning / rate / 3600:.1f} h more"] if tuned else []),
        f"at most {disk / 1e9:.1f} GB of checkpoints",
        f"as `base` on AudioSet-2M (300 epochs): {hours:,.0f} GPU-hours, {hours / GPUS / 24:.0f} days of {GPUS} H100, "
        "from the rate measured on one",
    ]
    return "\n".join(lines)


def _of_base(trial: Trial) -> Config:
    """The trial's objective and masks on `base`."""
    full = PRESETS["base"]
    train = dataclasses.replace(
        full.train, objective=trial.config.train.objective, masks_per_clip=trial.config.train.masks_per_clip
    )
    return dataclasses.replace(full, train=train, mask=trial.config.mask)
