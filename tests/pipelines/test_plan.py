"""The list of clips of an unfinished job: every block is found in its file, and a task reads no more than that file."""

import pyarrow as pa
import pytest

from ajepa import storage
from ajepa.audio.blocks import block_sizes
from ajepa.audio.manifest import Manifest, make_table
from ajepa.config import FrontEndConfig
from ajepa.errors import UserError
from pipelines.rayjobs import plan as plans
from pipelines.rayjobs.plan import SHARDS, make_plan, manifest_file, prepare_output, read_block

SIZE, CLIPS = 2, 13  # 7 blocks, the last of one clip


@pytest.fixture
def manifest(monkeypatch):
    monkeypatch.setattr(plans, "BLOCKS_A_FILE", 3)
    ids = [f"{i:02d}" for i in range(CLIPS)]
    return Manifest(make_table(ids, ids, [[]] * CLIPS, []), [])


def prepare(output, manifest):
    plan = make_plan("manifest", "clips.csv", manifest, SIZE, FrontEndConfig())
    return prepare_output(str(output), SHARDS, plan, manifest, block_sizes(manifest.clips, SIZE), False)


def test_the_blocks_together_are_the_clips(manifest, tmp_path):
    prepare(tmp_path, manifest)
    blocks = [read_block(str(tmp_path), i) for i in range(-(-CLIPS // SIZE))]
    assert [block.num_rows for block in blocks] == [2, 2, 2, 2, 2, 2, 1]
    assert pa.concat_tables(blocks).equals(manifest.clips)


def test_a_file_holds_a_fixed_number_of_blocks(manifest, tmp_path):
    prepare(tmp_path, manifest)
    assert storage.contents(str(tmp_path)) == {
        "_plan/manifest.parquet", "_plan/manifest-00001.parquet", "_plan/manifest-00002.parquet", "_plan/plan.json",
    }  # fmt: skip
    (tmp_path / "_plan/manifest.parquet").unlink()
    assert read_block(str(tmp_path), 5).num_rows == SIZE


def test_a_job_killed_between_two_files_of_its_plan_starts_anew(manifest, tmp_path):
    prepare(tmp_path, manifest)
    for name in (manifest_file(6), "_plan/plan.json"):
        (tmp_path / name).unlink()
    prepare(tmp_path, manifest)
    assert read_block(str(tmp_path), 6).num_rows == 1


def test_a_missing_file_is_named(manifest, tmp_path):
    prepare(tmp_path, manifest)
    (tmp_path / manifest_file(4)).unlink()
    with pytest.raises(UserError, match=r"_plan/manifest-00001.parquet: is missing.*--overwrite"):
        read_block(str(tmp_path), 4)
