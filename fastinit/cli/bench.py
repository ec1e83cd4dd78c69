"""`fastinit bench`: a few fills by torch.nn.init and by fastinit, beside `tensor.fill_`, in some ten seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from fastinit import functional

_MIB = 2**20


class Measured(NamedTuple):
    """The best seconds of one fill by each, and the bytes that it writes."""

    what: str
    nbytes: int
    torch_seconds: float
    fastinit_seconds: float
    fill_seconds: float


_FILLS = (
    ("uniform", "uniform_"),
    ("normal", "normal_"),
    ("trunc_normal, 2 sigma", "trunc_normal_"),
    ("xavier_uniform", "xavier_uniform_"),
    ("kaiming_normal", "kaiming_normal_"),
)


def run(mib: int = 64, tries: int = 3) -> list[Measured]:
    """Measure float32 fills of `mib` MiB, one in bfloat16, and an orthogonal matrix."""
    rows = max(1, mib * _MIB // 4 // 4096)
    tensor = torch.empty(rows, 4096)
    found = [_measured(f"{what}, float32", name, tensor, tries) for what, name in _FILLS]
    found.append(_measured("normal, bfloat16", "normal_", torch.empty(rows, 4096, dtype=torch.bfloat16), tries))
    side = min(1024, 16 * mib)
    found.append(_measured(f"orthogonal {side} x {side}", "orthogonal_", torch.empty(side, side), tries))
    return found


def _measured(what: str, name: str, tensor: torch.Tensor, tries: int) -> Measured:
    nbytes = tensor.numel() * tensor.element_size()
    ways = (
        partial(getattr(nn.init, name), tensor),
        partial(getattr(functional, name), tensor),
        partial(tensor.fill_, 0.5),
    )
    return Measured(what, nbytes, *(_best(way, tries) for way in ways))


def _best(work: Callable[[], object], tries: int) -> float:
    """The least seconds of a few runs after one that touches the memory: whatever else the machine does adds to it."""
    work()
    seconds = []
    for _ in range(tries):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def table(measured: list[Measured]) -> str:
    """The measurements as aligned text."""
    lines = [f"{'ms, the best of a few':28}{'torch.nn.init':>14}{'fastinit':>10}{'fill_':>8}{'times as fast':>15}"]
    for each in measured:
        milliseconds = [1e3 * each.torch_seconds, 1e3 * each.fastinit_seconds, 1e3 * each.fill_seconds]
        factor = each.torch_seconds / each.fastinit_seconds
        lines.append("{:28}{:14.1f}{:10.1f}{:8.1f}{:15.1f}".format(each.what, *milliseconds, factor))
    lines.append(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    return "\n".join(lines)
