"""Runs what a plan decided: checks all memory, chooses a backend for every tensor, and writes, in one pass.

Natively, through a table with a row a tensor; or through torch.nn.init, where the native code is missing or does not
apply. Nothing is written before everything was checked.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache

import torch

from fastinit import _native, fallback
from fastinit.checks import check_overlaps, check_writable, memory_span
from fastinit.streams import draw_seed
from fastinit.table import DTYPES, Table, Target

BACKENDS = ("auto", "native", "torch")


class FallbackWarning(UserWarning):
    """Some tensors are initialised through torch.nn.init: correct, but slower, and with torch's random numbers."""


def _obstacle(target: Target) -> str | None:
    """Why the native code cannot fill a tensor, or None."""
    if _native.module is None:
        return f"the native code is not available ({_native.reason})"
    device = target.tensor.device.type
    if device != "cpu":
        return f"the native code is built without a backend for {device}"
    if target.tensor.dtype not in DTYPES:
        return f"the native code does not sample {target.tensor.dtype}"
    return None


@cache
def _warn_once(obstacle: str) -> None:
    warnings.warn(f"{obstacle}; using torch.nn.init instead", FallbackWarning, stacklevel=5)


class Program:
    """Targets with their backends decided; for the native ones, a table that is made once and then only reseeded."""

    def __init__(self, targets: Sequence[Target], backend: str) -> None:
        if backend not in BACKENDS:
            raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
        self._native: list[Target] = []
        self._fallback: list[Target] = []
        self._wants_torch = backend == "torch"
        obstacles: dict[str, str] = {}  # obstacle -> first name
        for target in targets:
            obstacle = None if self._wants_torch else _obstacle(target)
            if obstacle is None and not self._wants_torch:
                self._native.append(target)
            else:
                self._fallback.append(target)
                if obstacle is not None:
                    obstacles.setdefault(obstacle, target.name)
        if backend == "native" and obstacles:
            obstacle, name = next(iter(obstacles.items()))
            raise ValueError(f"{name}: backend='native' cannot fill it: {obstacle}")
        self._obstacles = tuple(obstacles)
        self._on_cpu = [target for target in targets if target.tensor.device.type == "cpu"]
        self._tensors_on_cpu = [target.tensor for target in self._on_cpu]
        self._native_tensors = [target.tensor for target in self._native]
        self._settle()

    def _settle(self) -> None:
        """Check the memory of all tensors as they lie now, and make the table for it."""
        spans = [(memory_span(target.tensor, target.name), target.name) for target in self._on_cpu]
        check_overlaps(spans)
        check_writable(spans)
        self._table = Table(self._native) if self._native else None
        self._placement = self._place()

    def _place(self) -> tuple[list[int], list[int]]:
        """Where the tensors lie, and how long they are."""
        tensors = self._tensors_on_cpu
        return list(map(torch.Tensor.data_ptr, tensors)), list(map(torch.Tensor.numel, tensors))

    def _check_unchanged(self) -> None:
        for name, tensor, shape, dtype, _, _ in self._on_cpu:
            if tensor.shape != shape or tensor.dtype != dtype or tensor.device.type != "cpu":
                raise ValueError(
                    f"{name}: planned as {tuple(shape)} {dtype} on cpu, is now {tuple(tensor.shape)} {tensor.dtype} on "
                    f"{tensor.device}; make a new plan"
                )

    def run_(self, seed: int | None, generator: torch.Generator | None) -> None:
        """Write all targets. See Plan.run_."""
        for obstacle in self._obstacles:
            _warn_once(obstacle)
        if self._place() != self._placement:
            self._check_unchanged()
            self._settle()
        if seed is None and self._table is not None:
            seed = draw_seed(generator)
        if self._table is not None:
            assert seed is not None
            try:
                self._table.fill(seed, torch.get_num_threads())
            finally:  # interrupted, a fill has written something all the same
                torch.autograd.graph.increment_version(self._native_tensors)
        for target in self._fallback:
            fallback.fill(target.name, target.tensor, target.distribution, target.zero_row, seed, generator)
