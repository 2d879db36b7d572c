"""load_encoder and export_encoder on an object store."""

from pathlib import Path

import pytest
import torch
from helpers.training_state import save_run

import ajepa
from ajepa import storage
from ajepa.errors import UserError

pytestmark = pytest.mark.process


def test_a_run_in_a_bucket_is_loaded_and_exported_there(s3, small_dataset, tmp_path):
    save_run(tmp_path / "run", small_dataset, 1)
    for name, _ in storage.list_files(str(tmp_path / "run")):
        with storage.atomic_output(f"s3://sounds/run/{name}") as stream:
            stream.write(Path(tmp_path, "run", name).read_bytes())
    ajepa.export_encoder("s3://sounds/run", "s3://sounds/encoder")
    wanted = ajepa.load_encoder(tmp_path / "run").state_dict()
    for path in ("s3://sounds/run", "s3://sounds/encoder"):
        loaded = ajepa.load_encoder(path).state_dict()
        assert all(torch.equal(loaded[name], wanted[name]) for name in wanted)


def test_nothing_in_a_bucket_is_named(s3):
    with pytest.raises(UserError, match="s3://sounds/nothing"):
        ajepa.load_encoder("s3://sounds/nothing")
