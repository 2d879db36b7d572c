"""The jobs of cluster/README.md, taken from its text, on hosts: as they stand there but for sizes that need GPUs."""

import csv

import pytest
from helpers.cluster_page import commands, with_other
from helpers.faults import ROOT
from hosts.conftest import LABELS

from ajepa.shards.dataset import open_dataset

pytestmark = [pytest.mark.hosts, pytest.mark.process, pytest.mark.xdist_group("hosts")]


@pytest.fixture(scope="module")
def bucket(hosts, sounds):
    """The bucket that the page names, with the manifest that it names."""
    folder = hosts.shared / "manifest"
    folder.mkdir()
    with (folder / "clips.csv").open("w", newline="") as stream:
        rows = [(f"clip{i:02d}", f"{sounds}/{LABELS[i % 4]}/clip{i:02d}.wav", LABELS[i % 4]) for i in range(40)]
        csv.writer(stream).writerows([("clip_id", "uri", "labels"), *rows])
    hosts.tool("make-bucket", "bucket")
    hosts.tool("upload", "/mnt/manifest", "s3://bucket")
    return "s3://bucket"


def test_submitted_jobs(hosts, bucket):
    def by_client(line: str, code: int = 0) -> str:
        return hosts.run("client", ["bash", "-c", line], code=code, cwd=str(ROOT))

    preprocess, pretrain = commands("Kubernetes", "ray job submit")
    assert "40 clips ok, 0 bad" in by_client(preprocess)
    assert "error: --device cuda: Ray finds no GPU" in by_client(pretrain, code=1)
    assert hosts.tool("list", f"{bucket}/runs") == "", "a refused command left something"
    on_hosts = with_other(pretrain, preset="nano", num_workers="2", threads="1", device="cpu")
    on_hosts += " --max-steps 2 --batch-size 8 --no-figures"
    assert "2 steps in" in by_client(on_hosts)
    assert "finished its 2 steps" in by_client(on_hosts)
    assert open_dataset(str(hosts.fetch(f"{bucket}/shards"))).num_clips == 40
