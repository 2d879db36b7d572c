"""A store that goes away while Ray's workers train and write to it."""

import pytest
from helpers.faults import WIDE, Holds, assert_close_end, assert_one_mlflow_run, command, options

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
