"""Copies and silent clips dropped by preprocess.py: the same end whatever the shards, however the job was stopped."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ajepa.errors import UserError
from ajepa.shards.verify import verify_dataset
from pipelines.jobs import append
from pipelines.jobs import preprocess as job

pytestmark = pytest.mark.ray


@pytest.fixture
def args(appending):
    """Options that add clips to a dataset of this test."""
    return appending


def test_copies_and_silence_are_dropped_whatever_the_shards(old_job, parts, no_reports, tmp_path, capsys):
    args = dataclasses.replace(
        old_job, input=str(parts / "all"), output=str(tmp_path / "shards"), clips_per_shard=2, duplicates="drop",
        silent="drop",
    )  # fmt: skip
    dataset = job.main(args)
    assert dataset.info["counts"]["bad_by_stage"] == {"decode": 1, "duplicate": 2, "silent": 1}
    out = capsys.readouterr().out
    assert "2 clips are copies of others (identical log-mel), 2 of them moved to status=bad" in out
    assert "1 clip is silent, 1 of them moved to status=bad" in out
    rows = [row for table in dataset.bad_tables(["clip_id", "error"]) for row in table.to_pylist()]
    bad = {row["clip_id"]: row["error"] for row in rows}
    assert bad.pop("k/bad.wav").startswith("decode: ") and bad.pop("m/silent.wav").startswith("silent: ")
    assert bad == {"k/04.wav": "duplicate: of 'k/00 copy.wav'", "k/copy of 03.wav": "duplicate: of 'k/03.wav'"}
    assert sum(verify_dataset(args.output)) == 11
    other = dataclasses.replace(args, output=str(tmp_path / "other"), clips_per_shard=20, num_workers=1)
    assert job.main(other).content_hash == dataset.content_hash
    with pytest.raises(UserError, match="duplicates: drop -> keep"):
        job.main(dataclasses.replace(args, duplicates="keep"))


def test_an_old_clip_stays_where_a_copy_of_it_comes(args, no_reports):
    """The one whose id is smaller, too: old shards do not change."""
    shards = {p: p.read_bytes() for p in Path(args.output).glob("status=*/*")}
    grown = append.main(dataclasses.replace(args, duplicates="drop"))
    assert all(p.read_bytes() == content for p, content in shards.items())
    errors = [error for table in grown.bad_tables(["error"]) for error in table["error"].to_pylist()]
    assert sorted(e for e in errors if e.startswith("duplicate")) == [
        "duplicate: of 'k/03.wav'", "duplicate: of 'k/04.wav'",
    ]  # fmt: skip
    assert (grown.num_clips, grown.num_failed) == (12, 3)


def test_a_job_killed_while_it_drops_copies_ends_the_same(old_job, parts, no_reports, monkeypatch, tmp_path):
    """A shard whose copies were in both of its files is made again."""
    args = dataclasses.replace(
        old_job, input=str(parts / "all"), output=str(tmp_path / "killed"), clips_per_shard=4, duplicates="drop"
    )
    whole = job.main(dataclasses.replace(args, output=str(tmp_path / "whole")))
    wanted = {p.name: p.read_bytes() for p in Path(whole.path).glob("status=*/*")}
    kept = job.main(dataclasses.replace(args, output=str(tmp_path / "kept"), duplicates="keep"))
    with monkeypatch.context() as patch:
        patch.setattr(job, "drop_copies", lambda *_: sys.exit(9))
        with pytest.raises(SystemExit):
            job.main(args)
    half = next(p for p in Path(whole.path).glob("status=bad/*") if "k/04.wav" in str(pq.read_table(p)["clip_id"]))
    shutil.copy(half, Path(args.output, "status=bad"))  # the bad file of the rewriting is there, the ok file is not
    done = job.main(args)
    assert {p.name: p.read_bytes() for p in Path(done.path).glob("status=*/*")} == wanted
    assert done.content_hash == whole.content_hash != kept.content_hash


def test_a_plan_of_an_earlier_version_says_that_they_are_kept(args, old_job, capsys):
    path = Path(args.output, "dataset.json")
    info = json.loads(path.read_text())
    for name in ("duplicates", "silent"):
        del info["plan"][name]
    path.write_text(json.dumps(info))
    job.main(dataclasses.replace(old_job, output=args.output))
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match="silent: keep -> drop"):
        job.main(dataclasses.replace(old_job, output=args.output, silent="drop"))
