"""Several workers on one machine, forked from one process that has imported torch: it takes longer than their work."""

import multiprocessing
from collections.abc import Callable

import torch.multiprocessing

IMPORTED = ["torch._dynamo", "ajepa.training.step", "ajepa.finetuning.step"]  # making an optimiser imports the first


def run_workers(worker: Callable[..., None], args: tuple, count: int) -> None:
    """worker(rank, *args) for each rank, until all have returned. Raises if one of them does."""
    multiprocessing.set_forkserver_preload(IMPORTED)
    torch.multiprocessing.start_processes(worker, args, count, start_method="forkserver")
