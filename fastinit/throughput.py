"""How long filling will take on this machine: measured once for every kind of values, dtype and device."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache

import torch

from fastinit import _native
from fastinit.cuda import CudaTable, obstacle
from fastinit.distributions import (
    Blocks,
    Constant,
    Diagonal,
    Distribution,
    Normal,
    Sampled,
    TruncNormal,
    Uniform,
    ZeroRow,
)
from fastinit.table import DTYPES, Table, Target

_SCRATCH_BYTES = 2**25
_EXAMPLES: dict[type, Sampled] = {
    Constant: Constant(0.5),
    Uniform: Uniform(-1.0, 1.0),
    Normal: Normal(0.0, 1.0),
    TruncNormal: TruncNormal(0.0, 1.0, -2.0, 2.0),
    Diagonal: Constant(0.5),
}


@cache
def _seconds_per_value(kind: type, dtype: torch.dtype, device: torch.device, threads: int) -> float:
    """Best of three fills of 32 MiB, which exceeds the caches that a value would stay in."""
    numel = _SCRATCH_BYTES // dtype.itemsize
    scratch = torch.zeros(numel, dtype=dtype, device=device)
    table = Table([Target("", scratch, scratch.shape, dtype, device, _EXAMPLES[kind])])
    on_device = CudaTable(table, device) if device.type == "cuda" else None
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        if on_device is not None:
            on_device.fill(0)
            torch.cuda.synchronize(device)
        else:
            table.fill_cpu(0, threads)
        best = min(best, time.perf_counter() - start)
    return best / numel


def _kinds(distribution: Distribution) -> list[type]:
    if isinstance(distribution, Blocks):
        return [kind for each in distribution.each for kind in _kinds(each)]
    if isinstance(distribution, ZeroRow):
        return _kinds(distribution.rest)
    return [type(distribution)]


def expected_seconds(targets: Sequence[Target]) -> float | None:
    """The time that the native code needs for these targets, or None if it does not fill them all."""
    if _native.module is None:
        return None
    threads = torch.get_num_threads()
    total = 0.0
    for target in targets:
        kinds = _kinds(target.distribution)
        if target.dtype not in DTYPES or target.device.type not in ("cpu", "cuda"):
            return None
        if (target.device.type == "cuda" and obstacle() is not None) or not all(kind in _EXAMPLES for kind in kinds):
            return None
        slowest = max(_seconds_per_value(kind, target.dtype, target.device, threads) for kind in set(kinds))
        total += slowest * target.shape.numel()
    return total


def as_text(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 0.1 else f"{seconds * 1e3:.2g} ms"
