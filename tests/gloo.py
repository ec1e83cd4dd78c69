"""A few processes that are one process group, for tests of what is sharded. Time-limited; no network."""

from __future__ import annotations

import contextlib
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

_LIMIT_S = 120


@contextlib.contextmanager
def group(rank: int, size: int, file: Path) -> Iterator[None]:
    dist.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=size, timeout=timedelta(seconds=_LIMIT_S)
    )
    try:
        yield
        dist.barrier()  # nobody leaves while another still talks to it
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """This process as a group of one."""
    with tempfile.TemporaryDirectory() as folder, group(0, 1, Path(folder) / "store"):
        yield


def _rank(rank: int, work: Callable[[int], None], size: int, file: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("default")  # those of torch.distributed are not what is tested
    with group(rank, size, file):
        work(rank)


def run(work: Callable[[int], None], size: int = 2) -> None:
    """Run `work(rank)`, a function of a module, in `size` processes; what one of them raises is raised here."""
    with tempfile.TemporaryDirectory() as folder:
        context = mp.spawn(_rank, (work, size, Path(folder) / "store"), nprocs=size, join=False)
        assert context is not None
        try:
            end = time.monotonic() + _LIMIT_S
            while not context.join(timeout=1):
                assert time.monotonic() < end, f"not done within {_LIMIT_S} s"
        finally:
            for process in context.processes:
                if process.is_alive():
                    process.kill()
