"""Whole fine-tunings: what is chosen and tested, what is left behind, and that an interrupted one ends the same."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers.runs import SHORT_MODEL

from ajepa.config import FrontEndConfig
from ajepa.errors import UserError
from ajepa.evaluation.features import encoder_features
from ajepa.finetuning.classifier import Score, read_classifier
from ajepa.finetuning.clips import open_reader
from ajepa.finetuning.config import FinetuneConfig
from ajepa.finetuning.folds import plan_folds
from ajepa.finetuning.loop import best_of
from ajepa.finetuning.predict import outputs, score
from ajepa.finetuning.probe_head import probe_head
from ajepa.finetuning.run import Job, finetune, read_result, read_test_logits
from ajepa.finetuning.start import FromScratch, Pretrained
from ajepa.inference.encoder import AudioEncoder
from ajepa.inference.pretrained import load_encoder, random_encoder, write_export
from ajepa.shards.labels import read_labels
from ajepa.training.run_folder import append_history
from ajepa.training.worker import StopRequest, WorkerHooks

CPU = torch.device("cpu")
CONFIG = FinetuneConfig(
    epochs=3, warmup_epochs=0, batch_size=8, encoder_lr=1e-3, head_lr=1e-2, mixup=0.5, precision="fp32",
)  # fmt: skip
NAME = "seed-0-fold-1"


@pytest.fixture(scope="module")
def encoder(audio, tmp_path_factory):
    """An export of the tiny encoder."""
    folder = str(tmp_path_factory.mktemp("encoder") / "export")
    about = {"objective": "jepa", "branch": "target", "step": 0, "dataset_hash": ""}
    write_export(
        folder, audio.encoder.config, audio.front_end, audio.normalise.statistics, audio.encoder.state_dict(), about
    )
    return folder


@pytest.fixture
def job(encoder, small_dataset, tmp_path):
    return Job(start=Pretrained(encoder), dataset=small_dataset, output=str(tmp_path / "out"), config=CONFIG, fold=1)


class Interrupted(Exception):
    pass


def run(job: Job, stop_after: int | None = None, kill_at: int | None = None) -> list[dict]:
    """The reports of a job; `stop_after` steps it is asked to stop, at report `kill_at` it dies."""
    reports, asked = [], []

    def report(metrics):
        reports.append(metrics)
        if kill_at == len(reports):
            raise Interrupted

    def stop():
        asked.append(1)
        return StopRequest.STOP if len(asked) == stop_after else StopRequest.GO_ON

    finetune(job, WorkerHooks(0, 1, CPU, report, stop))
    return reports


def weights(job: Job, name=NAME) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in Path(job.output, name, "model").glob("*.safetensors")}


@pytest.fixture(scope="module")
def undisturbed(encoder, small_dataset, tmp_path_factory):
    job = Job(
        start=Pretrained(encoder), dataset=small_dataset, output=str(tmp_path_factory.mktemp("undisturbed")),
        config=CONFIG, fold=1,
    )  # fmt: skip
    return job, run(job)


def test_every_epoch_is_scored_and_the_refit_lasts_as_long_as_was_chosen(undisturbed):
    job, reports = undisturbed
    result = read_result(job.output, NAME)
    first = [r for r in reports if r["part"] == NAME]
    assert [r["epoch"] for r in first] == [1, 2, 3] and all("validation_accuracy" in r for r in first)
    assert [point["score"] for point in result.curve] == [r["validation_accuracy"] for r in first]
    again = [r for r in reports if r["part"] == f"{NAME}-refit"]
    assert [r["epoch"] for r in again] == list(range(1, result.epoch + 1))
    assert not any("validation_accuracy" in r for r in again)


def test_of_equally_good_epochs_the_last_is_taken():
    curve = [Score(1, 4, 0.5), Score(2, 8, 0.7), Score(3, 12, 0.7), Score(4, 16, 0.6)]
    assert best_of(curve).epoch == 3


def note(job: Job, report: dict) -> None:
    """Write a report to the history of its part, as the driver does."""
    folder = Path(job.output, report["part"])
    folder.mkdir(exist_ok=True)
    append_history(str(folder), [report])


@pytest.mark.parametrize("kill_at", range(1, 6))
def test_a_report_that_a_kill_cut_off_is_made_by_the_next_run(job, undisturbed, kill_at):
    with pytest.raises(Interrupted):
        run(job, kill_at=kill_at)
    *received, cut_off = undisturbed[1][:kill_at]
    for report in received:
        note(job, report)
    again = run(job)[0]
    assert {k: again[k] for k in ("part", "step", "loss")} == {k: cut_off[k] for k in ("part", "step", "loss")}


def test_a_report_that_is_in_the_history_is_not_made_again(job, undisturbed):
    whole = undisturbed[1]
    with pytest.raises(Interrupted):
        run(job, kill_at=2)
    for report in whole[:2]:
        note(job, report)
    assert [r["step"] for r in run(job)] == [r["step"] for r in whole[2:]]


@pytest.mark.parametrize("stop_after", [2, 3, 10])
def test_a_stopped_run_goes_on_and_ends_bit_for_bit_the_same(job, undisturbed, stop_after):
    run(job, stop_after=stop_after)
    assert read_result(job.output, NAME) is None
    run(job)
    assert weights(job) == weights(undisturbed[0])
    assert read_result(job.output, NAME) == read_result(undisturbed[0].output, NAME)


@pytest.mark.parametrize("kill_at", [2, 3])
def test_a_killed_run_goes_on_and_ends_bit_for_bit_the_same(job, undisturbed, kill_at):
    with pytest.raises(Interrupted):
        run(job, kill_at=kill_at)
    run(job)
    assert weights(job) == weights(undisturbed[0])


def test_with_an_average_and_the_probes_head_it_also_ends_the_same(job, tmp_path):
    config = dataclasses.replace(CONFIG, ema=0.9, head_init="probe", refit="off")
    job = dataclasses.replace(job, config=config)
    other = dataclasses.replace(job, output=str(tmp_path / "other"))
    run(job)
    run(other, stop_after=5)
    run(other)
    assert weights(job) == weights(other)


@pytest.mark.parametrize("refit", ["off", "on"])
def test_where_no_epoch_is_better_the_probe_itself_is_what_comes_out(job, small_dataset, refit):
    """Learning rates that ruin everything at once: what was started from is kept."""
    config = dataclasses.replace(CONFIG, head_init="probe", refit=refit, encoder_lr=10.0, head_lr=10.0, mixup=0.0)
    reports = run(dataclasses.replace(job, config=config))
    result = read_result(job.output, NAME)
    assert result.epoch == 0 and reports[0]["epoch"] == 0 and reports[0]["validation_accuracy"] == result.validation
    labels = read_labels(small_dataset)
    (fit,) = plan_folds(small_dataset, config, fold=1)
    features = encoder_features(load_encoder(job.start.path), small_dataset)[config.pooling]
    everything = labels.targets(np.arange(small_dataset.num_clips))
    final = fit.train if refit == "off" else np.sort(np.concatenate([fit.train, fit.validation]))
    head = probe_head(features, everything, False, fit.train, fit.validation, final)
    _, logits = read_test_logits(job.output, NAME)
    np.testing.assert_allclose(logits, head.logits(features[fit.test]), atol=1e-3)


def test_a_finished_fit_is_not_done_again(undisturbed):
    assert run(undisturbed[0]) == []


def test_a_finished_fit_leaves_no_checkpoints(undisturbed):
    names = {p.name for p in Path(undisturbed[0].output, NAME).iterdir()}
    assert names == {"model", "result.json", "test.safetensors"}


def test_the_model_left_behind_has_the_scores_that_are_reported(undisturbed, small_dataset):
    job, _ = undisturbed
    model, names = read_classifier(str(Path(job.output, NAME, "model")))
    assert names == list(small_dataset.label_names)
    labels = read_labels(small_dataset)
    (fit,) = plan_folds(small_dataset, CONFIG, fold=1)
    reader = open_reader(CONFIG, small_dataset, labels, fit.train, 0, 1)
    rows, logits = read_test_logits(job.output, NAME)
    assert np.array_equal(rows, fit.test)
    torch.testing.assert_close(outputs(model, reader, rows, CPU).numpy(), logits)
    assert score(logits, labels.targets(rows), False) == read_result(job.output, NAME).test


def test_the_fine_tuned_encoder_loads_as_any_export(undisturbed, encoder):
    tuned = load_encoder(str(Path(undisturbed[0].output, NAME, "model")))
    before = load_encoder(encoder)
    assert isinstance(tuned, AudioEncoder) and tuned.about["notes"]["from"] == before.about["digest"]
    assert tuned.about["digest"] != before.about["digest"]


def test_without_a_refit_the_best_epochs_weights_are_kept(job, small_dataset):
    """The curve's best point is what the model scores on the validation clips."""
    job = dataclasses.replace(job, config=dataclasses.replace(CONFIG, refit="off", epochs=4, encoder_lr=3e-2))
    run(job)
    result = read_result(job.output, NAME)
    labels = read_labels(small_dataset)
    (fit,) = plan_folds(small_dataset, CONFIG, fold=1)
    model, _ = read_classifier(str(Path(job.output, NAME, "model")))
    reader = open_reader(CONFIG, small_dataset, labels, fit.train, 0, 1)
    found = outputs(model, reader, fit.validation, CPU).numpy()
    assert score(found, labels.targets(fit.validation), False) == result.validation
    assert result.validation == max(point["score"] for point in result.curve)


def test_the_test_clips_change_nothing_but_their_score(job, undisturbed, small_dataset, tmp_path, monkeypatch):
    """With other labels on the test fold the same model comes out."""
    from ajepa.finetuning import run as module

    def shuffled(dataset):
        labels = read_labels(dataset)
        values = labels.values.copy()
        fit = plan_folds(dataset, CONFIG, fold=1)[0]
        values[fit.test] = (values[fit.test] + 1) % 4
        return dataclasses.replace(labels, values=values)

    monkeypatch.setattr(module, "read_labels", shuffled)
    run(job)
    assert weights(job) == weights(undisturbed[0])


def test_a_head_of_other_labels_is_refused_on_resume(job, monkeypatch):
    run(job, stop_after=2)
    (file,) = Path(job.output, NAME).glob("choose/checkpoints/*/model.safetensors")
    stored = safetensors.torch.load(file.read_bytes())
    stored["head.bias"], stored["head.weight"] = stored["head.bias"][:3], stored["head.weight"][:3]
    data = safetensors.torch.save(stored)
    manifest = file.parent / "checkpoint.json"
    from ajepa.checkpoints import digest

    manifest.write_text(manifest.read_text().replace(digest(file.read_bytes()), digest(data)))
    file.write_bytes(data)
    with pytest.raises(UserError, match="has 3 labels, the data have 4"):
        run(job)


@pytest.fixture(scope="module")
def several_labels(small_dataset, build_dataset, tmp_path_factory):
    """The small dataset's sounds with two labels each: of pitch and of turn; a test and a validation split."""
    sounds = sorted(Path(small_dataset.path).parent.glob("*.wav"))
    splits = ("train", "train", "train", "valid", "test")
    clips = [
        {"clip_id": s.stem, "uri": str(s), "labels": [i % 4, 4 + i % 2], "split": splits[i // 4 % 5]}
        for i, s in enumerate(sounds)
    ]
    return build_dataset(
        tmp_path_factory.mktemp("several") / "shards", clips, shard_size=40,
        front_end=FrontEndConfig(clip_frames=256), label_names=list("abcdef"),
    )  # fmt: skip


def test_several_labels_a_clip_are_scored_by_average_precision(job, several_labels):
    job = dataclasses.replace(job, dataset=several_labels, fold=None, config=dataclasses.replace(CONFIG, balanced=True))
    reports = run(job)
    result = read_result(job.output, "seed-0")
    assert not result.refit and 0 < result.test <= 1
    assert all("validation_mAP" in r for r in reports if "epoch" in r)
    _, logits = read_test_logits(job.output, "seed-0")
    assert logits.shape == (8, 6)


def test_seeds_and_folds_are_all_done(job):
    job = dataclasses.replace(job, fold=None, seeds=2, config=dataclasses.replace(CONFIG, epochs=1))
    run(job)
    names = {f"seed-{seed}-fold-{fold}" for seed in (0, 1) for fold in range(1, 6)}
    assert {p.name for p in Path(job.output).iterdir()} == names


def test_from_scratch_each_seed_has_an_initialisation_of_its_own(job, small_dataset, monkeypatch):
    """That of the seed, whatever ran before; and a model that loads as any other."""
    from ajepa.finetuning import run as module

    started = {}
    train = module.train

    def noted(phase, state, *rest):
        started.setdefault(phase.part, state.core.audio.encoder.state_dict()["patch_embed.weight"].clone())
        return train(phase, state, *rest)

    monkeypatch.setattr(module, "train", noted)
    config = dataclasses.replace(CONFIG, epochs=1)
    job = dataclasses.replace(job, start=FromScratch(SHORT_MODEL), seeds=2, config=config, probe=True)
    run(job)
    for seed in (0, 1):
        wanted = random_encoder(SHORT_MODEL, seed, small_dataset.front_end, small_dataset.statistics)
        torch.testing.assert_close(
            started[f"seed-{seed}-fold-1"], wanted.encoder.state_dict()["patch_embed.weight"], rtol=0, atol=0
        )
    probes = [read_result(job.output, f"seed-{seed}-fold-1").probe for seed in (0, 1)]
    assert None not in probes  # another encoder, another probe
    model, names = read_classifier(str(Path(job.output, "seed-1-fold-1/model")))
    assert model.audio.about["objective"] == "supervised" and names == list(small_dataset.label_names)


def test_drawn_parts_may_have_one_seed_for_all(small_dataset, build_dataset, tmp_path):
    """Then every training is tested on the same clips."""
    sounds = sorted(Path(small_dataset.path).parent.glob("*.wav"))
    clips = [{"clip_id": s.stem, "uri": str(s), "labels": [i % 4]} for i, s in enumerate(sounds)]
    drawn = build_dataset(
        tmp_path / "shards", clips, shard_size=40, front_end=small_dataset.front_end,
        label_names=small_dataset.label_names,
    )  # fmt: skip

    def tested(**more):
        return [fit.test.tolist() for fit in plan_folds(drawn, CONFIG, 2, **more)]

    assert tested()[:5] != tested()[5:]
    assert tested(split_seed=0)[:5] == tested(split_seed=0)[5:] == tested()[:5]


def test_a_fold_that_is_not_there_is_refused(job):
    with pytest.raises(UserError, match="--fold 9: it has the folds 1, 2, 3, 4, 5"):
        run(dataclasses.replace(job, fold=9))


def test_the_parts_of_a_fold_are_the_probes(small_dataset):
    """Each fold tested once, the next one chosen on, all others trained on."""
    fold = small_dataset.read_columns(["fold"])["fold"].to_numpy()
    for fit in plan_folds(small_dataset, CONFIG):
        following = fit.fold % 5 + 1
        assert set(fold[fit.test]) == {fit.fold} and set(fold[fit.validation]) == {following}
        assert sorted({*fold[fit.train]}) == sorted({1, 2, 3, 4, 5} - {fit.fold, following}) and fit.refit


def test_out_of_gpu_memory_is_one_line_that_says_what_helps(job, monkeypatch):
    def raise_it(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr("ajepa.finetuning.loop.train_step", raise_it)
    with pytest.raises(UserError, match="step 0: out of GPU memory with 8 clips at a time: --micro-batch 4 "):
        run(job)
