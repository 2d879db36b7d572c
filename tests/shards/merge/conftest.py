"""One set of clips, as one dataset and as three."""

import numpy as np
import pytest
from helpers.merged import CONFIG, NAMES


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("merge")


@pytest.fixture(scope="session")
def clips(root, write_wav):
    """24 good clips of many lengths and levels, labelled by NAMES; every eighth is followed by a bad one."""
    generator = np.random.default_rng(0)
    rows = []
    for i in range(24):
        uri = write_wav(root / f"{i:02d}.wav", generator.uniform(-0.5, 0.5, 1_600 * (1 + i % 8)) * 0.7**i)
        labels = [NAMES[i % 3], NAMES[(i + 1) % 3]] if i % 4 else []
        rows.append({"clip_id": f"clip{i:02d}", "uri": uri, "labels": labels, "fold": 1 + i % 5, "split": "train"})
        if i % 8 == 0:
            rows.append({"clip_id": f"gone{i:02d}", "uri": str(root / f"gone{i}.wav"), "labels": [NAMES[i % 3]]})
    return rows


@pytest.fixture(scope="session")
def build(root, clips, build_dataset):
    """build(name, slice, label names) makes a dataset of some of the clips."""

    def build(name, part, label_names=NAMES, front_end=CONFIG, shard_size=5):
        rows = [clip | {"labels": [label_names.index(n) for n in clip["labels"]]} for clip in clips[part]]
        return build_dataset(
            root / name, rows, shard_size=shard_size, front_end=front_end, label_names=list(label_names)
        )

    return build


@pytest.fixture(scope="session")
def whole(build):
    return build("whole", slice(None), shard_size=7)


@pytest.fixture(scope="session")
def parts(build):
    """The clips of `whole` in three datasets, whose labels have other numbers; the first knows them all."""
    return [
        build("first", slice(0, 9)).path,
        build("second", slice(9, 21), ["c", "a", "b"]).path,
        build("third", slice(21, None), ["b", "c", "a"]).path,
    ]


@pytest.fixture
def output(tmp_path):
    return tmp_path / "merged"
