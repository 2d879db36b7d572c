"""The history of a training in an object store: what was received is there, whatever ends the command."""

import signal

import pytest
from helpers.faults import Holds, command, options, wait_for
from helpers.runs import tiny_config

from ajepa import storage
from ajepa.training.run_folder import HISTORY, TAIL, read_history, read_lines, read_new_lines
from pipelines import pretrain
from pipelines.jobs import pretrain as pretrain_job
from pipelines.tracking import history_tail, mlflow_run
from pipelines.tracking.reporter import Reporter


@pytest.fixture
def output(s3, tmp_path):
    return f"s3://sounds/{tmp_path.name}"


def hear(reporter, *steps, part=None, **more):
    for step in steps:
        report = {"step": step, "total_steps": 9, "share": 1.0} | more | ({"part": part} if part else {})
        reporter.after_report(None, [report], None)


def begin(output, mlflow_uri):
    return mlflow_run.start_run(mlflow_uri, "x", output=output, params={}, tags={}, histories=True)


def steps_of(output):
    return [report["step"] for report in read_lines(storage.join(output, HISTORY))]


def test_a_report_that_was_received_is_there_after_a_kill(output, mlflow_uri):
    reporter = Reporter(output, quiet=True)
    hear(reporter, 0, effective_rank=3.0)
    hear(reporter, 2, 4)
    with begin(output, mlflow_uri).recording():  # the next command
        assert steps_of(output) == [0, 2, 4]
    assert storage.contents(output) == {HISTORY, "mlflow-sent.json"}


def test_each_training_of_a_run_has_its_own(output, mlflow_uri):
    reporter = Reporter(output, quiet=True)
    hear(reporter, 1, 2, part="seed0")
    hear(reporter, 1, part="seed1")
    with begin(output, mlflow_uri).recording():
        assert [steps_of(f"{output}/{part}") for part in ("seed0", "seed1")] == [[1, 2], [1]]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_run_that_is_stopped_has_its_whole_history_in_one_file_and_in_mlflow(output, mlflow_uri, error):
    tracker = begin(output, mlflow_uri)
    with pytest.raises(error), tracker.recording():
        hear(Reporter(output, quiet=True), 0, 2, 4, loss=0.5)
        raise error
    assert steps_of(output) == [0, 2, 4] and TAIL not in storage.contents(output)
    assert [m.step for m in tracker.client.get_metric_history(tracker.run_id, "loss/loss")] == [0, 2, 4]


def test_a_new_controller_keeps_what_the_one_before_received(output):
    hear(Reporter(output, quiet=True), 2, 4)
    other = Reporter(output, quiet=True)
    hear(other, 6)
    hear(other, 8, effective_rank=3.0)
    assert steps_of(output) == [2, 4, 6, 8] and TAIL not in storage.contents(output)


def test_a_kill_between_history_and_tail_repeats_no_line(output, mlflow_uri, monkeypatch):
    reporter = Reporter(output, quiet=True)
    hear(reporter, 2, 4)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete", lambda _: None)
        hear(reporter, 6, effective_rank=3.0)
    assert TAIL in storage.contents(output)
    with begin(output, mlflow_uri).recording():
        assert steps_of(output) == [2, 4, 6]


def test_the_tail_stays_small(output, monkeypatch):
    monkeypatch.setattr(history_tail, "MOST", 3)
    hear(Reporter(output, quiet=True), 1, 2, 3, 4)
    assert steps_of(output) == [1, 2, 3]
    assert [report["step"] for report in read_lines(f"{output}/{TAIL}")] == [4]


def test_a_long_run_writes_its_history_a_bounded_number_of_times_over():
    """What is written is the whole history with each move: 100,000 reports, an evaluation every fifth."""
    history, tail, written = 0, 0, 0
    for number in range(100_000):
        tail += 1
        if history_tail.is_due(tail, history, measured=number % 5 == 0):
            history, tail = history + tail, 0
            written += history
    assert written < 600 * history  # 10,000 times over if each evaluation moved it


def test_a_history_is_read_on_from_its_last_whole_line(tmp_path):
    path = tmp_path / HISTORY
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"st')
    reports, place = read_new_lines(str(path), 0)
    assert [report["step"] for report in reports] == [1, 2] and place == 24
    with path.open("ab") as file:
        file.write(b'ep": 3}\nnot a report\n{"step": 4}\n')
    reports, place = read_new_lines(str(path), place)
    assert [report["step"] for report in reports] == [3, 4]
    assert read_new_lines(str(path), place) == ([], path.stat().st_size)
    path.write_bytes(b"")
    assert read_new_lines(str(path), place)[0] == []


def test_reports_that_come_while_others_are_sent_come_to_mlflow_once(tmp_path, mlflow_uri):
    output = str(tmp_path / "run")
    storage.make_folder(output)
    reporter, tracker = Reporter(output, quiet=True), begin(output, mlflow_uri)
    with tracker.recording():
        for steps in ((1, 2), (3,), (4, 5, 6)):
            hear(reporter, *steps, loss=0.5)
            wait_for(lambda last=steps[-1]: last in sent_steps(tracker), "the reports in MLflow")
    assert sent_steps(tracker) == [1, 2, 3, 4, 5, 6]


def sent_steps(tracker):
    return [m.step for m in tracker.client.get_metric_history(tracker.run_id, "loss/loss")]


def test_a_pretraining_stopped_between_two_evaluations_resumes_without_a_gap(output, small_dataset, mlflow_uri):
    class Interrupt:
        def after_report(self, run_context, metrics, checkpoint):
            if metrics[0]["step"] == 4:
                raise KeyboardInterrupt

    args = pretrain.PretrainArgs(
        data=small_dataset.path, output=output, num_workers=0, threads=1, figures=False, mlflow_uri=mlflow_uri,
        config=tiny_config(eval_every=6),
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        pretrain_job.main(args, callbacks=[Interrupt()])
    assert steps_of(output) == [0, 2, 4]
    pretrain_job.main(args)
    assert [report["step"] for report in read_history(output)] == [0, 2, 4, 6]


def test_a_pretraining_killed_between_two_evaluations_resumes_without_a_gap(
    output, small_dataset, mlflow_uri, tmp_path
):
    argv = options(small_dataset.path, output, mlflow_uri, "--num-workers", "0")
    holds, saved = Holds(tmp_path / "holds", 9), f"{output}/checkpoints/step-00000005/checkpoint.json"
    with command(argv, tmp_path / "log", holds) as killed:
        killed.wait_for(lambda: holds.reached(9), "step 9")
        killed.wait_for(lambda: storage.path_type(saved) == "file", "the checkpoint of step 5")
        killed.process.send_signal(signal.SIGKILL)
        killed.wait()
    assert steps_of(output) == [0]  # at step 9 no evaluation but the first is done
    pretrain.main(pretrain.parse_args(argv))
    assert [report["step"] for report in read_history(output)] == [0, 2, 4, 5, 6, 8, 10, 12]
    assert steps_of(output) == [0, 2, 4, 5, 6, 8, 6, 8, 10, 12]  # both attempts, in one file
