"""What the workers of a Ray Data job do: make a block of clips and write it to storage. Imports what such a worker uses
and no more."""

import functools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ajepa import storage
from ajepa.choices import KeepOrDrop
from ajepa.config import FrontEndConfig
from ajepa.errors import UserError, one_line
from ajepa.shards.writer import ShardResult, write_shard
from pipelines.rayjobs.plan import read_block


def make_blocks(batch: dict[str, np.ndarray], output: str, make: Callable[[int], ShardResult]) -> dict[str, Any]:
    """The map function: block numbers in, a row of counts each out. The block itself goes straight to storage.

    What stops the whole job (a full disk, a store that is away) comes back as a row too: as an exception it would
    reach the driver as a long traceback of Ray's.
    """
    rows = []
    for index in batch["item"].tolist():
        try:
            result, stopped = storage.with_retries(output, functools.partial(make, index)), ""
        except (OSError, UserError) as error:
            result, stopped = ShardResult(index), one_line(error)
        rows.append({"ok": result.ok, "cut": result.cut, "errors": json.dumps(result.errors), "stopped": stopped})
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def write_shards(
    batch: dict[str, np.ndarray], output: str, front_end: FrontEndConfig, first: int = 0, silent: KeepOrDrop = "keep"
) -> dict[str, Any]:
    """The map task of preprocess.py: see `make_blocks`. `first` is the number of the first block's shard."""
    torch.set_num_threads(1)  # a task a core

    def make(index: int) -> ShardResult:
        return write_shard(read_block(output, index), first + index, output, front_end, silent)

    return make_blocks(batch, output, make)
