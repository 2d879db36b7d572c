"""Splits from the names of files and folders, as the Hugging Face Hub finds them."""

import re
from pathlib import PurePosixPath

CANONICAL = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
AUDIOSET = re.compile(r"(un)?bal(anced)?_train")  # its two training sets stay apart
SHARDED = re.compile(r"^(?P<split>\w+(?:[.-]\w+)*?)-\d{4,6}-of-\d{4,6}(?:-[0-9a-f]+)?$")  # train-00000-of-00012


def split_of(name: str) -> str:
    """The split of a file by its path below the input; "" where nothing tells.

    "train-00000-of-00012.parquet" is of the split before the number. Else the last folder, or the name itself, that is
    one of the Hub's keywords or holds one between other characters: "data/test/0.parquet" is "test",
    "data/bal_train/0.parquet" is "bal_train", "clips_train_3.tar" is "train".
    """
    path = PurePosixPath(name)
    stem = path.name.partition(".")[0]
    sharded = SHARDED.match(stem)
    if sharded:
        return _canonical(sharded["split"])
    for folder in reversed(path.parts[:-1]):
        if set(_words(folder)) & CANONICAL.keys():
            return _canonical(folder)
    part = AUDIOSET.search(stem)
    if part:
        return part[0]
    found = [CANONICAL[word] for word in _words(stem) if word in CANONICAL]
    return found[-1] if found else ""


def _canonical(name: str) -> str:
    return CANONICAL.get(name.casefold(), name)


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", name.casefold())
