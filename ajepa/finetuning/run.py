"""All trainings of a fine-tuning, one after the other, by one or several workers: from a pretrained encoder to models
with their scores on the test clips."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.distributed as dist

from ajepa import storage
from ajepa.checkpoints import MODEL, checkpoint_path, read_best
from ajepa.choices import Branch
from ajepa.finetuning.classifier import AVERAGE, Score, load_weights, write_model
from ajepa.finetuning.clips import Labels, open_reader, read_labels
from ajepa.finetuning.config import FinetuneConfig
from ajepa.finetuning.folds import FoldPlan, plan_folds
from ajepa.finetuning.loop import Stopped, TrainingPhase, best_of, train
from ajepa.finetuning.model import Classifier
from ajepa.finetuning.predict import outputs, score
from ajepa.finetuning.probe_head import ProbeHead, probe_head
from ajepa.finetuning.schedule import Schedule
from ajepa.finetuning.step import FinetuneState, build_state
from ajepa.inference.encoder import AudioEncoder
from ajepa.inference.pretrained import load_encoder
from ajepa.shards.dataset import ShardDataset, open_dataset
from ajepa.shards.reader import ShardReader
from ajepa.training.worker import WorkerHooks

RESULT = "result.json"  # of a fit, written last
TEST_LOGITS = "test.safetensors"  # of a fit: "rows" [n] and "logits" [n, C]
MODEL_FOLDER = "model"  # of a fit: an export with the head beside it


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is fine-tuned, on what and how. Small: it travels to the workers, which read the rest themselves."""

    encoder: str
    branch: Branch | None
    data: str
    output: str
    config: FinetuneConfig
    seeds: int = 1
    fold: int | None = None
    probe: bool = False  # score the linear probe of the frozen encoder on the same parts, too
    runs: dict[str, str] = field(default_factory=dict)  # MLflow's ids of where it comes from, kept in its notes


@dataclass(frozen=True)
class Result:
    """What came of a fit."""

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
    """Do every fit of a job that has no result yet. Returns early, with checkpoints written, when asked to stop.

    Raises:
        UserError: as `train`, and for an encoder or data that do not fit.
    """
    dataset = open_dataset(job.data)
    labels = read_labels(dataset)
    fits = plan_folds(dataset, job.config, job.seeds, job.fold)
    left = [fit for fit in fits if read_result(job.output, fit.name) is None]
    if worker.world_size > 1:
        dist.barrier()  # all have looked before the first one writes
    audio = load_encoder(job.encoder, job.branch)
    features: dict[int, np.ndarray] = {}
    try:
        for fit in left:
            Trainer(job, dataset, labels, audio, fit, worker, features).run()
    except Stopped:
        return


class Trainer:
    """One fit."""

    def __init__(
        self,
        job: Job,
        dataset: ShardDataset,
        labels: Labels,
        audio: AudioEncoder,
        fit: FoldPlan,
        worker: WorkerHooks,
        features: dict[int, np.ndarray],
    ) -> None:
        self.job, self.dataset, self.labels, self.audio, self.fit, self.worker = (
            job,
            dataset,
            labels,
            audio,
            fit,
            worker,
        )
        self.config = dataclasses.replace(job.config, seed=fit.seed)
        self.folder = storage.join(job.output, fit.name)
        self._features = features  # of the frozen encoder by row, shared by all fits
        self._probes: dict[int, ProbeHead] = {}  # by number of clips: the head's start and the score share one

    def run(self) -> None:
        """Choose the number of epochs, train again on more clips where that is wanted, test once, write the model."""
        fit = self.fit
        stage = TrainingPhase(storage.join(self.folder, "choose"), fit.name, fit.validation, self.config.epochs)
        state, reader = self._start(fit.train)
        curve = train(stage, state, reader, self.labels, self.worker)
        best = best_of(curve)
        if fit.refit:
            again = TrainingPhase(
                storage.join(self.folder, "refit"), f"{fit.name}-refit", np.empty(0, np.int64), best.epoch
            )
            state, reader = self._start(fit.final)
            train(again, state, reader, self.labels, self.worker)
        else:
            self._barrier()  # rank 0 has written the best checkpoint
            noted = read_best(stage.folder)
            assert noted is not None
            file = MODEL if state.average is None else AVERAGE
            load_weights(checkpoint_path(stage.folder, noted["step"]), state.scored, file)
        logits = outputs(state.scored, reader, fit.test, self.worker.device, self.worker.rank, self.worker.world_size)
        probe = self._probe_score(reader)
        if self.worker.rank == 0:
            self._write(state, best, curve, logits, probe)
        self._barrier()

    def _start(self, rows: np.ndarray) -> tuple[FinetuneState, ShardReader]:
        """A state at step 0 and its stream of the clips `rows`."""
        worker, config = self.worker, self.config
        reader = open_reader(config, self.dataset, self.labels, rows, worker.rank, worker.world_size)
        model = Classifier(self.audio, self.labels.num_classes, config.pooling)
        if config.head_init == "probe":
            model.start_from(*self._probe(reader, rows).tensors())
        schedule = Schedule(config, reader.num_clips)
        return (
            build_state(config, model, schedule, self.labels.multi_label, worker.device, worker.world_size),
            reader,
        )

    def _probe(self, reader: ShardReader, final: np.ndarray) -> ProbeHead:
        """The linear probe of the clips `final`, its penalty chosen as the epochs are."""
        if len(final) not in self._probes:
            targets, fit = self.labels.targets(np.arange(self.dataset.num_clips)), self.fit
            several, known = self.labels.multi_label, self._frozen_features(reader)
            self._probes[len(final)] = probe_head(known, targets, several, fit.train, fit.validation, final)
        return self._probes[len(final)]

    def _probe_score(self, reader: ShardReader) -> float | None:
        """What the frozen encoder's linear probe is worth on the test clips. It has no seed but that of drawn parts."""
        fit, labels = self.fit, self.labels
        if not self.job.probe or not (fit.drawn or fit.seed == self.job.config.seed):
            return None
        known = self._frozen_features(reader)  # by all workers together
        if self.worker.rank != 0:
            return None
        logits = self._probe(reader, fit.final).logits(known[fit.test])
        return score(logits, labels.targets(fit.test), labels.multi_label)

    def _frozen_features(self, reader: ShardReader) -> np.ndarray:
        """What the head sees of every clip before anything is learned, [num_clips, D']; computed once a job."""
        if 0 not in self._features:
            worker = self.worker
            model = Classifier(self.audio, self.labels.num_classes, self.config.pooling)
            frozen = model.to(worker.device).requires_grad_(False)
            everything = np.arange(self.dataset.num_clips)
            found = outputs(frozen.features, reader, everything, worker.device, worker.rank, worker.world_size)
            self._features[0] = found.numpy()
        return self._features[0]

    def _write(
        self, state: FinetuneState, best: Score, curve: list[Score], logits: torch.Tensor, probe: float | None
    ) -> None:
        """The model, the test logits and, last, the result; then the checkpoints have done their work."""
        fit, dataset = self.fit, self.dataset
        notes = self.job.runs | {
            "finetuned_on": dataset.content_hash,
            "from": self.audio.about.get("digest", ""),
            "epoch": best.epoch,
            "seed": fit.seed,
            "fold": fit.fold,
            "config": self.config.to_dict(),
        }
        write_model(storage.join(self.folder, MODEL_FOLDER), state.scored, dataset.label_names, notes)
        tensors = {"rows": torch.from_numpy(fit.test), "logits": logits.contiguous()}
        with storage.atomic_output(storage.join(self.folder, TEST_LOGITS)) as stream:
            stream.write(safetensors.torch.save(tensors))
        test = score(logits.numpy(), self.labels.targets(fit.test), self.labels.multi_label)
        result = Result(
            fit.name, fit.seed, fit.fold, best.epoch, best.score, test, [vars(p) for p in curve], fit.refit, probe
        )
        storage.write_text(storage.join(self.folder, RESULT), json.dumps(dataclasses.asdict(result), indent=1))
        for stage in ("choose", "refit"):
            storage.delete(storage.join(self.folder, stage))

    def _barrier(self) -> None:
        if self.worker.world_size > 1:
            dist.barrier()


def read_result(output: str, name: str) -> Result | None:
    """The result of a fit, None while it has none."""
    where = storage.join(output, name, RESULT)
    return Result(**json.loads(storage.read_text(where))) if storage.path_type(where) == "file" else None


def read_test_logits(output: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(rows [n], logits [n, C]) of a fit's test clips."""
    with storage.open_input(storage.join(output, name, TEST_LOGITS)) as stream:
        tensors = safetensors.torch.load(stream.read())
    return tensors["rows"].numpy(), tensors["logits"].numpy()
