"""Shards that go bad under a training run: one line that names the shard or the clip, and after the shard is restored
the same command ends in the same weights."""

import functools
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.faults import assert_one_mlflow_run, assert_same_end, checkpoints, options

from ajepa.config import FrontEndConfig
from ajepa.training import checkpoint_writer, loop
from pipelines.cli.command import run_command
from pipelines.jobs.pretrain import main
from pipelines.pretrain import parse_args

SHARD = "status=ok/shard-00003.parquet"  # rows 12 to 15
SMALL = {"batch": 4, "steps": 24}  # an epoch is longer than what is read ahead


@pytest.fixture(scope="module")
def mlflow_uri(tmp_path_factory, new_mlflow):
    return new_mlflow(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture(scope="module", autouse=True)
def _nothing_cached():
    """Two row groups in use at a time and none kept, as with a dataset larger than memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "ShardReader", functools.partial(loop.ShardReader, window=2, cache_bytes=0))
        yield


@pytest.fixture(scope="module")
def dataset(small_dataset, build_dataset, tmp_path_factory):
    """The small dataset in 10 shards of 4 clips."""
    sounds = sorted(Path(small_dataset.path).parent.glob("*.wav"))
    clips = [
        {"clip_id": sound.stem, "uri": str(sound), "fold": 1 + i // 4 % 5, "labels": [i % 4]}
        for i, sound in enumerate(sounds)
    ]
    return build_dataset(
        tmp_path_factory.mktemp("sharded") / "shards", clips, shard_size=4,
        front_end=FrontEndConfig(clip_frames=256), label_names=small_dataset.label_names,
    )  # fmt: skip


@pytest.fixture(scope="module")
def reference(dataset, tmp_path_factory, mlflow_uri):
    """The undisturbed run's folder."""
    output = tmp_path_factory.mktemp("reference") / "run"
    main(parse_args(options(dataset.path, output, mlflow_uri, "--num-workers", "0", **SMALL)))
    return output


def cut_short(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:20_000])


def flip(shard: Path) -> None:
    """One bit in the middle of the third log-mel."""
    content = bytearray(shard.read_bytes())
    log_mel = pq.ParquetFile(shard).read()["log_mel"][2].as_py()
    content[content.index(log_mel) + len(log_mel) // 2] ^= 1
    shard.write_bytes(content)


def poison(shard: Path) -> None:
    """NaNs in the third log-mel, with a digest that matches: only the loss can notice."""
    table = pq.ParquetFile(shard).read()
    rows = table.to_pylist()
    log_mel = np.full_like(np.frombuffer(rows[2]["log_mel"], "<f2"), np.nan).tobytes()
    rows[2] |= {"log_mel": log_mel, "digest": hashlib.blake2b(log_mel, digest_size=16).hexdigest()}
    pq.write_table(pa.Table.from_pylist(rows, table.schema), shard, compression="none", use_dictionary=False)


def stop_with_one_line(arguments: list[str], capfd: pytest.CaptureFixture) -> str:
    with pytest.raises(SystemExit) as exit_:
        run_command(lambda: main(parse_args(arguments)))
    printed = capfd.readouterr().err
    assert exit_.value.code == 2 and "Traceback" not in printed, printed
    (line,) = [line for line in printed.splitlines() if line.startswith("error:")]
    return line


@pytest.mark.parametrize(("damage", "said"), [(Path.unlink, "is missing"), (cut_short, "cannot be read")])
def test_a_shard_damaged_during_the_run(damage, said, dataset, reference, tmp_path, mlflow_uri, monkeypatch, capfd):
    shards, output = shutil.copytree(dataset.path, tmp_path / "shards"), tmp_path / "run"
    arguments = options(str(shards), output, mlflow_uri, "--num-workers", "0", **SMALL)
    write = checkpoint_writer.write_checkpoint

    def write_then_damage(folder, shot):
        write(folder, shot)
        if shot.step == 5:
            damage(shards / SHARD)

    monkeypatch.setattr(checkpoint_writer, "write_checkpoint", write_then_damage)
    assert f"{SHARD}: {said}" in stop_with_one_line(arguments, capfd)
    monkeypatch.undo()
    assert 5 <= checkpoints(output)[-1] < 24
    shutil.copy(Path(dataset.path, SHARD), shards / SHARD)
    main(parse_args(arguments))
    assert_same_end(output, reference)
    assert_one_mlflow_run(mlflow_uri, output)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip, rf"{SHARD}: row 2, clip 'clip14': log_mel does not match its digest"),
        (poison, "clips clip14"),
    ],
)
def test_a_clip_damaged_before_the_run_goes_on(
    damage, said, dataset, reference, tmp_path, mlflow_uri, monkeypatch, capfd
):
    shards, output = shutil.copytree(dataset.path, tmp_path / "shards"), tmp_path / "run"
    arguments = options(str(shards), output, mlflow_uri, "--num-workers", "0", **SMALL)
    write = checkpoint_writer.write_checkpoint

    def write_then_stop(folder, shot):
        write(folder, shot)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint_writer, "write_checkpoint", write_then_stop)
    with pytest.raises(KeyboardInterrupt):
        main(parse_args(arguments))
    monkeypatch.undo()
    damage(shards / SHARD)
    line = stop_with_one_line(arguments, capfd)
    assert said in line and (damage is flip or "step " in line)
    shutil.copy(Path(dataset.path, SHARD), shards / SHARD)
    main(parse_args(arguments))
    assert_same_end(output, reference)
    assert_one_mlflow_run(mlflow_uri, output)
