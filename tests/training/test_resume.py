"""Resuming: each file is read once, whatever the number of workers; what was killed before its last word has it."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from helpers.runs import LOOP_CONFIG
from helpers.training_state import STATISTICS, make_inputs, make_state, save_run
from helpers.workers import run_workers

from ajepa import storage
from ajepa.checkpoints import digest, newest_step, write_tensors
from ajepa.errors import UserError
from ajepa.shards.dataset import open_dataset
from ajepa.training import loop
from ajepa.training.session import report_again
from ajepa.training.snapshot import optimizer_moments, resume
from ajepa.training.step import build_state, train_step
from ajepa.training.worker import WorkerHooks


def count_opened(patch) -> list[str]:
    """Names of the tensor files that are opened from now on."""
    opened, open_input = [], storage.open_input
    patch.setattr(storage, "open_input", lambda path: (opened.append(path), open_input(path))[1])
    return opened


def tensors_of(opened: list[str]) -> list[str]:
    return sorted(Path(path).name for path in opened if path.endswith(".safetensors"))


def test_a_file_is_that_of_the_library(tmp_path):
    generator = torch.Generator().manual_seed(0)
    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8)
    tensors = {f"a{i}.{d}": torch.randn(3, i, generator=generator).to(d) for i in range(3) for d in kinds}
    tensors["scalar ü"] = torch.tensor(3.0)
    with (tmp_path / "a").open("wb") as stream:
        found = write_tensors(stream, tensors)
    written = (tmp_path / "a").read_bytes()
    assert written == safetensors.torch.save(tensors) and found == digest(written)


def test_no_tensors_are_a_file_too(tmp_path):
    with (tmp_path / "a").open("wb") as stream:
        write_tensors(stream, {})
    assert safetensors.torch.load((tmp_path / "a").read_bytes()) == {}


def test_each_file_is_read_once(small_dataset, tmp_path, monkeypatch):
    save_run(tmp_path, small_dataset, 2)
    opened = count_opened(monkeypatch)
    assert resume(str(tmp_path), make_state()).step == 2
    read = [path for path in opened if "step-00000002" in path]
    # Beside it, `newest_step` looks at the sizes.
    assert tensors_of(read) == ["model.safetensors"] * 2 + ["optimizer.safetensors"] * 2


def test_a_torn_optimizer_leaves_nothing_of_its_checkpoint(small_dataset, tmp_path):
    save_run(tmp_path, small_dataset, 2)
    torn = tmp_path / "checkpoints/step-00000002/optimizer.safetensors"
    torn.write_bytes(torn.read_bytes()[:-8] + bytes(8))
    first = tmp_path / "first"
    shutil.copytree(tmp_path / "checkpoints/step-00000001", first / "checkpoints/step-00000001")
    states = [make_state(), make_state()]
    assert [resume(str(folder), state).step for folder, state in zip((tmp_path, first), states, strict=True)] == [1, 1]
    for state in states:
        train_step(state, make_inputs(state, 1))
    weights = [state.core.state_dict() for state in states]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_file_of_another_size_is_seen_without_reading_it(small_dataset, tmp_path, keep):
    save_run(tmp_path, small_dataset, 2)
    assert newest_step(str(tmp_path)) == 2
    torn = tmp_path / "checkpoints/step-00000002/model.safetensors"
    torn.write_bytes(torn.read_bytes()[:keep])
    assert newest_step(str(tmp_path)) == 1


def test_a_torn_manifest_is_seen(small_dataset, tmp_path):
    save_run(tmp_path, small_dataset, 2)
    manifest = tmp_path / "checkpoints/step-00000002/checkpoint.json"
    manifest.write_bytes(manifest.read_bytes()[:-100])
    assert newest_step(str(tmp_path)) == 1


def resume_worker(rank: int, run: str, output: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{output}/meeting", rank=rank, world_size=2)
    resume_twice(rank, run, output)
    dist.barrier()  # gloo can wait for ever for one that has gone while it takes a state down
    dist.destroy_process_group()


def resume_twice(rank: int, run: str, output: str) -> None:
    state = build_state(make_state(seed=rank).config, STATISTICS, 50, torch.device("cpu"), 2)
    with pytest.MonkeyPatch.context() as patch:
        opened = count_opened(patch)
        info = resume(run, state)
    moments = optimizer_moments(state.core.trained_parameters(), state.optimizer)
    everything = state.core.state_dict() | moments | {"step": torch.tensor([state.step, info.step])}
    Path(output, f"{rank}.txt").write_text(" ".join(tensors_of(opened)))
    torch.save(everything, f"{output}/{rank}.pt")
    try:
        resume(str(Path(run, "torn")), state)
    except UserError as error:
        Path(output, f"{rank}.error").write_text(str(error))


@pytest.mark.process
def test_rank_0_reads_for_all(small_dataset, tmp_path):
    state = save_run(tmp_path / "run", small_dataset, 2)
    shutil.copytree(tmp_path / "run/checkpoints", tmp_path / "run/torn/checkpoints")
    for path in (tmp_path / "run/torn").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-8] + bytes(range(8)))
    run_workers(resume_worker, (str(tmp_path / "run"), str(tmp_path)), 2)
    moments = optimizer_moments(state.core.trained_parameters(), state.optimizer)
    expected = state.core.state_dict() | moments | {"step": torch.tensor([2, 2])}
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert "none of its 2 checkpoints is intact" in (tmp_path / f"{rank}.error").read_text()
    assert (tmp_path / "1.txt").read_text().split() == ["model.safetensors", "optimizer.safetensors"]  # their sizes


@pytest.mark.parametrize("known", [True, False], ids=["with its report", "of an earlier version"])
def test_a_run_killed_before_its_last_report_reports_it(small_dataset, tmp_path, monkeypatch, known):
    reports: list[dict] = []

    def receives(report):
        if report["step"] == LOOP_CONFIG.train.max_steps and not reports[-1].get("killed"):
            reports.append(report | {"killed": True})
            raise KeyboardInterrupt
        reports.append(report)

    worker = WorkerHooks(0, 1, torch.device("cpu"), receives)
    dataset = open_dataset(small_dataset.path)
    if not known:
        snapshot = loop.snapshot
        monkeypatch.setattr(loop, "snapshot", lambda state, dataset, reader, _: snapshot(state, dataset, reader))
    with pytest.raises(KeyboardInterrupt):
        loop.train(LOOP_CONFIG, dataset, str(tmp_path), worker)
    loop.train(LOOP_CONFIG, dataset, str(tmp_path), worker)
    lost, again = reports[-2:]
    assert again["step"] == LOOP_CONFIG.train.max_steps and "verdict" in again
    if known:
        assert again | {"killed": True} == lost


def killed_at(step: int, history: list[dict]) -> WorkerHooks:
    """A worker that is killed, with its driver, when it reports that step: between the checkpoint and its report."""

    def receives(report):
        if report["step"] == step:
            raise KeyboardInterrupt
        history.append(report)

    return WorkerHooks(0, 1, torch.device("cpu"), receives, history=list(history))


@pytest.mark.parametrize("every", [2, 4], ids=["measured", "not measured"])
def test_a_run_killed_before_the_report_of_a_checkpoint_reports_it(small_dataset, tmp_path, every):
    config = dataclasses.replace(
        LOOP_CONFIG, train=dataclasses.replace(LOOP_CONFIG.train, checkpoint_every=2, eval_every=every)
    )
    dataset = open_dataset(small_dataset.path)
    whole: list[dict] = []
    loop.train(config, dataset, str(tmp_path / "whole"), killed_at(-1, whole))
    history: list[dict] = []
    with pytest.raises(KeyboardInterrupt):
        loop.train(config, dataset, str(tmp_path / "run"), killed_at(2, history))
    before = len(history)
    loop.train(config, dataset, str(tmp_path / "run"), killed_at(-1, history))
    assert history[before]["step"] == 2 and "loss" in history[before]

    def lasting(reports):
        return [{k: r[k] for k in ("step", "loss", "effective_rank", "verdict") if k in r} for r in reports]

    assert lasting(history) == lasting(whole)  # the verdict of the end is drawn from all of them


def test_a_report_that_was_received_is_not_repeated(small_dataset, tmp_path):
    dataset, history = open_dataset(small_dataset.path), []
    with pytest.raises(KeyboardInterrupt):
        loop.train(LOOP_CONFIG, dataset, str(tmp_path), killed_at(6, history))  # the checkpoint is of step 4
    loop.train(LOOP_CONFIG, dataset, str(tmp_path), killed_at(-1, history))
    assert [report["step"] for report in history] == [0, 2, 4, 5, 5, 6, 8, 10]  # 5 was lost with its checkpoint


def report_again_worker(rank: int, output: str) -> None:
    dist.init_process_group("gloo", f"file://{output}/meeting", rank=rank, world_size=2)
    report_three(rank, output)
    dist.barrier()  # as in `resume_worker`: the state is gone by then
    dist.destroy_process_group()


def report_three(rank: int, output: str) -> None:
    state = build_state(make_state().config, STATISTICS, 50, torch.device("cpu"), 2)
    reports: list[int] = []
    worker = WorkerHooks(rank, 2, state.device, lambda report: reports.append(report["step"]))
    recorded = [1, 2] if rank == 0 else []  # rank 0 alone knows the history
    said = [report_again(state, report, recorded, worker) for report in ({"step": 2}, {"step": 3}, {})]
    Path(output, f"{rank}.txt").write_text(f"{said} {reports}")


@pytest.mark.process
def test_all_workers_report_again_or_none(tmp_path):
    run_workers(report_again_worker, (str(tmp_path),), 2)
    assert [Path(tmp_path, f"{rank}.txt").read_text() for rank in range(2)] == ["[False, True, False] [3]"] * 2


def test_a_run_that_is_further_than_asked_for_is_said(small_dataset, tmp_path):
    save_run(tmp_path, small_dataset, 3)
    worker = WorkerHooks(0, 1, torch.device("cpu"), lambda _: None, resume_anyway=True)
    config = make_state(max_steps=2).config
    with pytest.raises(UserError, match="is at step 3 already, beyond the 2 steps asked for"):
        loop.train(config, open_dataset(small_dataset.path), str(tmp_path), worker)


def test_the_device_can_leave_a_step_out(monkeypatch):
    """On a GPU the host does not wait to learn that a gradient is not finite: the optimizer leaves out the step."""
    monkeypatch.setattr("ajepa.training.update.resolve_metrics", lambda *_: None)
    state = make_state()
    train_step(state, make_inputs(state))
    before = {name: value.clone() for name, value in state.core.named_parameters() if value.requires_grad}
    moments = {
        name: value.clone()
        for name, value in optimizer_moments(state.core.trained_parameters(), state.optimizer).items()
    }
    inputs = make_inputs(state, 1)
    inputs.log_mel[0] = float("nan")
    train_step(state, inputs)
    assert all(torch.equal(value, before[name]) for name, value in state.core.named_parameters() if name in before)
    after = optimizer_moments(state.core.trained_parameters(), state.optimizer)
    assert all(torch.equal(after[name], moments[name]) for name in moments)
    train_step(state, make_inputs(state, 2))
    after = optimizer_moments(state.core.trained_parameters(), state.optimizer)
    assert {int(value) for name, value in after.items() if name.endswith(".step")} == {2}
