"""A store that goes away, or is full, while a run writes to it."""

import pytest
from helpers.exit_codes import exit_code
from helpers.faults import WIDE, Holds, assert_close_end, assert_one_mlflow_run, assert_same_end, command, options

from ajepa import storage
from ajepa.retries import PATIENCE
from ajepa.training.run_folder import read_history
from pipelines import pretrain


@pytest.mark.process
@pytest.mark.cluster
def test_a_run_of_two_workers_outlives_a_store_that_goes_away(small_dataset, s3, wire, tmp_path, mlflow_uri):
    """It is away from step 9 on, when the checkpoint of step 10 and all that follows are to be written; no worker fails
    and none is started again."""
    output, alone = f"s3://sounds/{tmp_path.name}", tmp_path / "alone"
    holds, saved = Holds(tmp_path / "holds", 9), f"{output}/checkpoints/step-00000005/checkpoint.json"
    argv = [*options(small_dataset.path, output, mlflow_uri, width=WIDE), "--num-workers", "2", "--max-failures", "0"]
    with command(argv, tmp_path / "log", holds, **{PATIENCE: "600"}) as run:
        run.wait_for(lambda: holds.reached(9), "step 9")
        run.wait_for(lambda: storage.path_type(saved) == "file", "the checkpoint of step 5")
        wire.break_now()
        holds.release(9)
        run.wait_for(lambda: "does not answer: asking again for" in run.text, "what is said of the store")
        wire.mend()
        assert run.wait() == 0, run.text
    assert "Traceback" not in run.text
    assert run.text.count("does not answer") == run.text.count("answers again after") >= 1
    argv = [*options(small_dataset.path, alone, mlflow_uri, width=WIDE), "--num-workers", "0"]
    pretrain.main(pretrain.parse_args(argv))
    assert [r["step"] for r in read_history(output)] == [r["step"] for r in read_history(str(alone))]
    assert_one_mlflow_run(mlflow_uri, output)
    assert storage.contents(output) >= {"run.json", "history.jsonl"}
    assert_close_end(output, alone)


@pytest.mark.process
def test_a_run_into_a_bucket_that_is_full_ends_and_goes_on_when_there_is_room(
    small_dataset, s3, wire, tmp_path, mlflow_uri, capfd
):
    output, alone = f"s3://sounds/{tmp_path.name}", tmp_path / "alone"
    wire.fill(f"{tmp_path.name}/checkpoints/step-00000010")

    def run(to: object) -> object:
        argv = [*options(small_dataset.path, to, mlflow_uri), "--num-workers", "0"]
        return exit_code(lambda: pretrain.main(pretrain.parse_args(argv)))

    assert run(output) == 2
    said = capfd.readouterr().err
    assert "the bucket is full. Make room or fix the cause" in said and "Traceback" not in said
    wire.mend()
    assert run(output) == run(alone) == 0
    assert_same_end(output, alone)
