"""What rank 0 watches: fixed crops, held-out clips, scores, the verdict, and which checkpoint is the best."""

import dataclasses
import json

import pytest
import torch
from helpers.runs import LOOP_CONFIG

from ajepa.checkpoints import read_best
from ajepa.config import Config
from ajepa.errors import UserError
from ajepa.shards.reader import ShardReader
from ajepa.training.diagnostics import MAX_CROPS, Verdict
from ajepa.training.loop import train
from ajepa.training.monitor import Collapsed, Monitor
from ajepa.training.step import build_state
from ajepa.training.worker import WorkerHooks

CPU = torch.device("cpu")


def with_train(**changes) -> Config:
    return dataclasses.replace(LOOP_CONFIG, train=dataclasses.replace(LOOP_CONFIG.train, **changes))


def make_monitor(dataset, **changes) -> Monitor:
    config = with_train(**changes)
    state = build_state(config, dataset.statistics, 10, CPU)
    reader = ShardReader(dataset, crop_frames=64, batch_size=8, seed=0, holdout=config.train.holdout)
    return Monitor(state, reader, WorkerHooks(0, 1, CPU, lambda _: None))


def test_crops_are_the_same_in_every_start_of_a_run(small_dataset):
    assert torch.equal(make_monitor(small_dataset).crops, make_monitor(small_dataset).crops)


def test_few_clips_give_several_crops_each(small_dataset):
    assert len(make_monitor(small_dataset).crops) == MAX_CROPS // 40 * 40
    assert len(make_monitor(small_dataset, holdout=10).crops) == MAX_CROPS // 10 * 10


def test_held_out_clips_are_never_trained_on(small_dataset, tmp_path, monkeypatch):
    import ajepa.training.loop as loop

    seen, prepare = set(), loop.prepare
    monkeypatch.setattr(loop, "prepare", lambda c, batch, *a: seen.update(batch.rows.tolist()) or prepare(c, batch, *a))
    train(with_train(holdout=10), small_dataset, str(tmp_path), WorkerHooks(0, 1, CPU, lambda _: None))
    held = ShardReader(small_dataset, crop_frames=64, batch_size=8, seed=0, holdout=10).heldout_rows
    assert len(seen) == 30 and not seen & set(held.tolist())


def test_a_measurement_holds_health_scores_and_a_verdict(small_dataset):
    monitor = make_monitor(small_dataset)
    monitor.score = lambda state: {"online_linear": 0.5}
    report = monitor.measure({"step": 0})
    assert report["online_linear"] == 0.5 and report["effective_rank"] > 1 and "effective rank" in report["verdict"]


def test_utilisation_is_a_share_of_the_matmul_rate(small_dataset):
    monitor = make_monitor(small_dataset)
    monitor._flops_per_second = 2 * monitor._flops
    assert monitor.utilisation(1.0) == {"mfu": 0.5}


def test_a_rate_measured_in_a_busy_moment_is_measured_again(small_dataset):
    monitor = make_monitor(small_dataset)
    monitor._flops_per_second = 0.5 * monitor._flops
    assert 0 < monitor.utilisation(1.0)["mfu"] < 1


def test_reports_after_the_checkpoint_do_not_count(small_dataset):
    worker = WorkerHooks(0, 1, CPU, lambda _: None, history=[{"step": s, "effective_rank": 9.0} for s in (0, 5, 10)])
    state = build_state(LOOP_CONFIG, small_dataset.statistics, 10, CPU)
    state.step = 5
    reader = ShardReader(small_dataset, crop_frames=64, batch_size=8, seed=0)
    assert [report["step"] for report in Monitor(state, reader, worker).history] == [0, 5]


@pytest.mark.parametrize("stop", [True, False])
def test_a_collapse_stops_the_run_only_if_told_to(small_dataset, tmp_path, monkeypatch, stop):
    monkeypatch.setattr("ajepa.training.monitor.judge", lambda *_: Verdict("collapsing", "rank 1.0"))
    reports = []
    config = with_train(stop_on_collapse=stop)
    if stop:
        with pytest.raises(Collapsed, match=r"step 5: rank 1.0: collapsing; see ajepa/training/README.md"):
            train(config, small_dataset, str(tmp_path), WorkerHooks(0, 1, CPU, reports.append))
    else:
        train(config, small_dataset, str(tmp_path), WorkerHooks(0, 1, CPU, reports.append))
    assert reports[-1]["step"] == (5 if stop else 10)


def test_the_best_checkpoint_outlives_newer_ones(small_dataset, tmp_path):
    scores = iter([0.1, 0.9, 0.2, 0.3, 0.4, 0.5])
    worker = WorkerHooks(0, 1, CPU, lambda _: None, score=lambda _: {"online_linear": next(scores)})
    config = with_train(eval_every=2, checkpoint_every=2, keep_checkpoints=1)
    train(config, small_dataset, str(tmp_path), worker)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000002", "step-00000010"] and read_best(str(tmp_path)) == {"step": 2, "score": 0.9}


def test_another_stream_of_clips_is_refused_unless_asked_for(small_dataset, tmp_path):
    train(with_train(max_steps=4), small_dataset, str(tmp_path), WorkerHooks(0, 1, CPU, lambda _: None))
    manifest = tmp_path / "checkpoints" / "step-00000004" / "checkpoint.json"
    values = json.loads(manifest.read_text())
    values["reader"]["shard_sizes"] = "others"
    manifest.write_text(json.dumps(values))
    with pytest.raises(UserError, match="another stream of clips: shard_sizes"):
        train(LOOP_CONFIG, small_dataset, str(tmp_path), WorkerHooks(0, 1, CPU, lambda _: None))
    reports = []
    worker = WorkerHooks(0, 1, CPU, reports.append, resume_anyway=True)
    train(LOOP_CONFIG, small_dataset, str(tmp_path), worker)
    assert reports[-1]["step"] == 10
