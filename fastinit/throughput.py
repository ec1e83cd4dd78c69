"""How long filling will take on this machine: measured once for every kind of values, dtype and device."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache

import torch

from fastinit import _native
from fastinit.cuda import obstacle
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
from fastinit.engine import Program
from fastinit.table import DTYPES, Target

_SCRATCH_BYTES = 2**25
_SMALL_TENSORS = 256
_EXAMPLES: dict[type, Sampled] = {
    Constant: Constant(0.5),
    Uniform: Uniform(-1.0, 1.0),
    Normal: Normal(0.0, 1.0),
    TruncNormal: TruncNormal(0.0, 1.0, -2.0, 2.0),
    Diagonal: Constant(0.5),
}


@cache
def _seconds_per_value(kind: type, dtype: torch.dtype, device: torch.device, threads: int) -> float:
    """Of 32 MiB, which exceeds the caches that a value would stay in."""
    numel = _SCRATCH_BYTES // dtype.itemsize
    scratch = torch.zeros(numel, dtype=dtype, device=device)
    return _best_of_three([Target("", scratch, scratch.shape, dtype, device, _EXAMPLES[kind])]) / numel


@cache
def _seconds_per_tensor(device: torch.device, threads: int) -> float:
    """What a tensor costs besides its values; those of the tensors here take no time."""
    scratch = torch.zeros(_SMALL_TENSORS, 1, device=device)
    targets = [Target("", each, each.shape, each.dtype, device, _EXAMPLES[Constant]) for each in scratch]
    return _best_of_three(targets) / len(targets)


def _best_of_three(targets: Sequence[Target]) -> float:
    program, device = Program(targets, "native"), targets[0].device
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        program.run_(0, None)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


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
        total += slowest * target.tensor.numel() + _seconds_per_tensor(target.device, threads)
    return total


def as_text(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 0.1 else f"{seconds * 1e3:.2g} ms"
