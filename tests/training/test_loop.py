"""The loop: reports, checkpoints, and an interrupted run that ends like an undisturbed one."""

import dataclasses
import shutil

import pytest
import torch
from helpers.runs import LOOP_CONFIG

from ajepa.checkpoints import latest_checkpoint, read_weights
from ajepa.errors import UserError
from ajepa.training.loop import train
from ajepa.training.worker import WorkerHooks


class Interrupted(Exception):
    pass


def run(output, dataset, stop_at: int | None = None) -> list[dict]:
    reports = []

    def report(metrics):
        reports.append(metrics)
        if stop_at is not None and metrics["step"] >= stop_at:
            raise Interrupted

    worker = WorkerHooks(0, 1, torch.device("cpu"), report)
    train(LOOP_CONFIG, dataset, str(output), worker)
    return reports


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, small_dataset):
    """(folder, reports) of a run from its first step to its last. Read only."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, run(folder, small_dataset)


def test_reports_and_checkpoints_come_when_they_should(undisturbed):
    folder, reports = undisturbed
    assert [r["step"] for r in reports] == [0, 2, 4, 5, 6, 8, 10]
    assert [r["step"] for r in reports if "effective_rank" in r] == [0, 5, 10]
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == [
        "step-00000004", "step-00000008", "step-00000010",
    ]  # fmt: skip


@pytest.mark.parametrize("stop_at", [2, 5, 8])
def test_an_interrupted_run_ends_with_the_same_weights(undisturbed, tmp_path, small_dataset, stop_at):
    with pytest.raises(Interrupted):
        run(tmp_path, small_dataset, stop_at)
    run(tmp_path, small_dataset)
    a, b = (read_weights(latest_checkpoint(str(folder))) for folder in (undisturbed[0], tmp_path))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_only_the_newest_checkpoints_are_kept(tmp_path, small_dataset):
    config = dataclasses.replace(
        LOOP_CONFIG, train=dataclasses.replace(LOOP_CONFIG.train, checkpoint_every=2, keep_checkpoints=2)
    )
    train(config, small_dataset, str(tmp_path), WorkerHooks(0, 1, torch.device("cpu"), lambda _: None))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000008", "step-00000010"]


def test_a_run_whose_checkpoints_are_all_torn_does_not_start_over(tmp_path, small_dataset):
    with pytest.raises(Interrupted):
        run(tmp_path, small_dataset, 8)
    for path in tmp_path.rglob("optimizer.safetensors"):
        path.write_bytes(b"torn")
    with pytest.raises(UserError, match="none of its 2 checkpoints is intact"):
        run(tmp_path, small_dataset)


def test_a_finished_run_does_no_more_steps(undisturbed, tmp_path, small_dataset):
    shutil.copytree(undisturbed[0], tmp_path / "run")
    assert run(tmp_path / "run", small_dataset) == undisturbed[1][-1:]  # said again: perhaps it was not recorded


def test_the_seed_changes_the_run(undisturbed, tmp_path, small_dataset):
    other = dataclasses.replace(LOOP_CONFIG, train=dataclasses.replace(LOOP_CONFIG.train, seed=1))
    train(other, small_dataset, str(tmp_path), WorkerHooks(0, 1, torch.device("cpu"), lambda _: None))
    a, b = (read_weights(latest_checkpoint(str(folder))) for folder in (undisturbed[0], tmp_path))
    assert not torch.equal(a["predictor.embed.weight"], b["predictor.embed.weight"])


@pytest.mark.parametrize(("micro_batch", "advice"), [(0, "--micro-batch 4 "), (3, "--micro-batch 1 "), (1, "smaller")])
def test_out_of_gpu_memory_is_one_line_that_says_what_helps(tmp_path, small_dataset, monkeypatch, micro_batch, advice):
    def raise_it(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr("ajepa.training.loop.train_step", raise_it)
    config = dataclasses.replace(LOOP_CONFIG, train=dataclasses.replace(LOOP_CONFIG.train, micro_batch=micro_batch))
    with pytest.raises(UserError, match=f"step 0: out of GPU memory with {micro_batch or 8} clips .*{advice}"):
        train(config, small_dataset, str(tmp_path), WorkerHooks(0, 1, torch.device("cpu"), lambda metrics: None))
