"""All trainings of a fine-tuning, one after the other, by one or several workers: from an encoder to models with their
scores on the test clips."""

import dataclasses
import itertools
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.distributed as dist

from ajepa import storage
from ajepa.checkpoints import MODEL, checkpoint_path, read_best
from ajepa.choices import Pooling
from ajepa.documents import read_document, refusing_damage
from ajepa.errors import UserError
from ajepa.finetuning.classifier import AVERAGE, MODEL_FOLDER, Score, load_weights, write_model
from ajepa.finetuning.clips import open_reader
from ajepa.finetuning.config import FinetuneConfig
from ajepa.finetuning.folds import FoldPlan, plan_folds
from ajepa.finetuning.loop import Stopped, TrainingPhase, best_of, train
from ajepa.finetuning.model import Classifier
from ajepa.finetuning.predict import outputs, score
from ajepa.finetuning.probe_head import ProbeHead, probe_head
from ajepa.finetuning.schedule import Schedule
from ajepa.finetuning.start import FromScratch, Pretrained
from ajepa.finetuning.step import FinetuneState, build_state
from ajepa.inference.encoder import AudioEncoder
from ajepa.shards.dataset import ShardDataset
from ajepa.shards.labels import Labels, read_labels
from ajepa.shards.reader import ShardReader
from ajepa.training.worker import WorkerHooks

RESULT = "result.json"  # of a fit, written last
TEST_LOGITS = "test.safetensors"  # of a fit: "rows" [n] and "logits" [n, C]
CHOOSE, REFIT = "choose", "refit"  # folders of a fit's checkpoints


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is fine-tuned, on what and how. Small: it travels to the workers, which read the rest themselves."""

    start: Pretrained | FromScratch
    dataset: ShardDataset  # as it was opened once: a worker that starts later may find a grown one at its path
    output: str
    config: FinetuneConfig
    seeds: int = 1
    fold: int | None = None
    split_seed: int | None = None  # of drawn parts, by default each training's own
    probe: bool = False  # score the linear probe of the frozen encoder on the same parts, too
    runs: dict[str, str] = field(default_factory=dict)  # MLflow's ids of where it comes from, kept in its notes


@dataclass(frozen=True)
class Result:
    """The result of a fit."""

    name: str
    seed: int
    fold: int | None
    epoch: int  # chosen on the validation clips
    validation: float  # score of that epoch on them, before a refit
    test: float
    curve: list[dict[str, Any]]
    refit: bool
    probe: float | None = None  # test score of the frozen encoder's linear probe


def finetune(job: Job, worker: WorkerHooks) -> None:
    """Do every fold plan of a job that has no result yet. Returns early, with checkpoints written, when asked to stop.

    Raises:
        UserError: as `train`, and for an encoder or data that do not fit.
    """
    dataset = job.dataset
    labels = read_labels(dataset)
    plans = plan_folds(dataset, job.config, job.seeds, job.fold, job.split_seed)
    left = [plan for plan in plans if read_result(job.output, plan.name) is None]
    if worker.world_size > 1:
        dist.barrier()  # all have looked before the first one writes
    try:
        for seed, plans_of_seed in itertools.groupby(left, lambda plan: job.start.seed_of(plan.seed)):
            audio = job.start.encoder(dataset, seed)
            frozen = FrozenFeatures(audio, dataset, labels, job.config.pooling, worker)
            for plan in plans_of_seed:
                Trainer(job, dataset, labels, audio, plan, worker, frozen).run()
    except Stopped:
        return


class FrozenFeatures:
    """What the head sees of every clip before anything is learned; computed once an encoder, by all workers."""

    def __init__(
        self, audio: AudioEncoder, dataset: ShardDataset, labels: Labels, pooling: Pooling, worker: WorkerHooks
    ) -> None:
        self._audio, self._dataset, self._labels, self._pooling = audio, dataset, labels, pooling
        self._worker = worker
        self._values: np.ndarray | None = None

    def values(self, reader: ShardReader) -> np.ndarray:
        """[num_clips, D']."""
        if self._values is None:
            worker = self._worker
            model = Classifier(self._audio, self._labels.num_classes, self._pooling)
            frozen = model.to(worker.device).requires_grad_(False)
            everything = np.arange(self._dataset.num_clips)
            found = outputs(frozen.features, reader, everything, worker.device, worker.rank, worker.world_size)
            self._values = found.numpy()
        return self._values


class Trainer:
    """The trainings of one fold plan."""

    def __init__(
        self,
        job: Job,
        dataset: ShardDataset,
        labels: Labels,
        audio: AudioEncoder,
        plan: FoldPlan,
        worker: WorkerHooks,
        frozen: FrozenFeatures,
    ) -> None:
        self.job, self.dataset, self.labels, self.audio = job, dataset, labels, audio
        self.plan, self.worker, self.frozen = plan, worker, frozen
        self.config = dataclasses.replace(job.config, seed=plan.seed)
        self.folder = storage.join(job.output, plan.name)
        self._probes: dict[int, ProbeHead] = {}  # by number of clips: the head's start and the score share one

    def run(self) -> None:
        """Choose the number of epochs, train again on more clips where that is wanted, test once, write the model."""
        state, reader, curve = self._choose_epochs()
        best = best_of(curve)
        if self.plan.refit:
            state, reader = self._refit(best.epoch)
        else:
            self._load_best(state)
        worker = self.worker
        logits = outputs(state.scored, reader, self.plan.test, worker.device, worker.rank, worker.world_size)
        probe = self._probe_score(reader)
        if worker.rank == 0:
            self._write(state, best, curve, logits, probe)
        self._barrier()

    def _choose_epochs(self) -> tuple[FinetuneState, ShardReader, list[Score]]:
        """Train on the training clips, scored on the validation clips after each epoch."""
        plan, config = self.plan, self.config
        phase = self._phase(CHOOSE, plan.name, plan.validation, config.epochs)
        state, reader = self._start(plan.train)
        return state, reader, train(phase, state, reader, self.labels, self.worker)

    def _refit(self, epochs: int) -> tuple[FinetuneState, ShardReader]:
        """Train again, on training and validation clips, for the epochs that were chosen."""
        nothing = np.empty(0, np.int64)
        phase = self._phase(REFIT, f"{self.plan.name}-refit", nothing, epochs)
        state, reader = self._start(self.plan.final)
        train(phase, state, reader, self.labels, self.worker)
        return state, reader

    def _load_best(self, state: FinetuneState) -> None:
        """The weights of the epoch that was chosen."""
        self._barrier()  # rank 0 has written the best checkpoint
        folder = self._checkpoints(CHOOSE)
        noted = read_best(folder)
        assert noted is not None
        load_weights(checkpoint_path(folder, noted["step"]), state.scored, MODEL if state.average is None else AVERAGE)

    def _phase(self, name: str, part: str, validation: np.ndarray, epochs: int) -> TrainingPhase:
        return TrainingPhase(self._checkpoints(name), part, storage.join(self.job.output, part), validation, epochs)

    def _checkpoints(self, phase: str) -> str:
        return storage.join(self.folder, phase)

    def _start(self, rows: np.ndarray) -> tuple[FinetuneState, ShardReader]:
        """A state at step 0 and its stream of the clips `rows`."""
        worker, config = self.worker, self.config
        reader = open_reader(config, self.dataset, self.labels, rows, worker.rank, worker.world_size)
        model = Classifier(self.audio, self.labels.num_classes, config.pooling)
        if config.head_init == "probe":
            model.start_from(*self._probe(reader, rows).tensors())
        schedule = Schedule(config, reader.num_clips)
        state = build_state(config, model, schedule, self.labels.multi_label, worker.device, worker.world_size)
        return state, reader

    def _probe(self, reader: ShardReader, final: np.ndarray) -> ProbeHead:
        """The linear probe of the clips `final`, its penalty chosen as the epochs are."""
        if len(final) not in self._probes:
            targets, plan = self.labels.targets(np.arange(self.dataset.num_clips)), self.plan
            features, multi_label = self.frozen.values(reader), self.labels.multi_label
            self._probes[len(final)] = probe_head(features, targets, multi_label, plan.train, plan.validation, final)
        return self._probes[len(final)]

    def _probe_score(self, reader: ShardReader) -> float | None:
        """Test score of the frozen encoder's linear probe; None where an earlier seed's is of the same encoder and
        parts: the probe itself has no seed."""
        plan, labels, start, first = self.plan, self.labels, self.job.start, self.job.config.seed
        repeated = not plan.drawn and plan.seed != first and start.seed_of(plan.seed) == start.seed_of(first)
        if not self.job.probe or repeated:
            return None
        features = self.frozen.values(reader)  # by all workers together
        if self.worker.rank != 0:
            return None
        logits = self._probe(reader, plan.final).logits(features[plan.test])
        return score(logits, labels.targets(plan.test), labels.multi_label)

    def _write(
        self, state: FinetuneState, best: Score, curve: list[Score], logits: torch.Tensor, probe: float | None
    ) -> None:
        """The model, the test logits and, last, the result; then the checkpoints are no longer needed."""
        plan, dataset = self.plan, self.dataset
        notes = self.job.runs | {
            "finetuned_on": dataset.content_hash,
            "from": self.audio.about.get("digest", ""),
            "epoch": best.epoch,
            "seed": plan.seed,
            "fold": plan.fold,
            "config": self.config.to_dict(),
        }
        model, multi_label = storage.join(self.folder, MODEL_FOLDER), self.labels.multi_label
        write_model(model, state.scored, dataset.label_names, notes, multi_label)
        tensors = {"rows": torch.from_numpy(plan.test), "logits": logits.contiguous()}
        with storage.atomic_output(storage.join(self.folder, TEST_LOGITS)) as stream:
            stream.write(safetensors.torch.save(tensors))
        test = score(logits.numpy(), self.labels.targets(plan.test), self.labels.multi_label)
        result = Result(
            plan.name, plan.seed, plan.fold, best.epoch, best.score, test, [vars(p) for p in curve], plan.refit, probe
        )
        storage.write_text(storage.join(self.folder, RESULT), json.dumps(dataclasses.asdict(result), indent=1))
        for phase in (CHOOSE, REFIT):
            storage.delete(self._checkpoints(phase))

    def _barrier(self) -> None:
        if self.worker.world_size > 1:
            dist.barrier()


def read_result(output: str, name: str) -> Result | None:
    """The result of a fit, None while it has none.

    Raises:
        UserError: it is damaged.
    """
    where = storage.join(output, name, RESULT)
    if storage.path_type(where) != "file":
        return None
    with refusing_damage(where, _again(output, name)):
        return Result(**read_document(where, _again(output, name)))


def read_test_logits(output: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(rows [n], logits [n, C]) of a fit's test clips.

    Raises:
        UserError: they are missing or damaged.
    """
    where = storage.join(output, name, TEST_LOGITS)
    try:
        with storage.open_input(where) as stream:
            tensors = safetensors.torch.load(stream.read())
        return tensors["rows"].numpy(), tensors["logits"].numpy()
    except (FileNotFoundError, KeyError, safetensors.SafetensorError) as error:
        raise UserError(f"{where!r} is damaged ({error!r}): {_again(output, name)}") from error


def _again(output: str, name: str) -> str:
    return f"delete the folder {storage.join(output, name)!r} and run the same command again: it trains this model anew"
