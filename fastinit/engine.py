"""Runs what a plan decided: checks all memory, chooses a backend for every tensor, and writes, in one pass.

Natively, through a table with a row a tensor; or through torch.nn.init, where the native code is missing or does not
apply. Nothing is written before everything was checked.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch

from fastinit import _native, fallback
from fastinit.checks import Span, check_overlaps, check_writable, memory_span
from fastinit.distributions import Constant, Distribution, Normal, TruncNormal, Uniform
from fastinit.layout import IndexMap, contiguous_map, index_maps
from fastinit.streams import draw_seed, name_id

BACKENDS = ("auto", "native", "torch")

# csrc/core/task.h
_DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
_DISTRIBUTIONS: dict[type[Distribution], int] = {Constant: 0, Uniform: 1, Normal: 2, TruncNormal: 3}
_PADDING = tuple((0.0,) * (4 - length) for length in range(5))
_ZERO = Constant(0.0)
_PREPARE_ERRORS = {
    1: "no value of {dtype} lies within {distribution}",
    2: "{distribution} lies more than 6 sigma to one side of its mean; float32 cannot sample so far out",
}


class FallbackWarning(UserWarning):
    """Some tensors are initialised through torch.nn.init: correct, but slower, and with torch's random numbers."""


class Target(NamedTuple):
    """A tensor to fill. `zero_row`: an index along dimension 0 whose elements become zero."""

    name: str
    tensor: torch.Tensor
    shape: torch.Size
    dtype: torch.dtype
    distribution: Distribution
    zero_row: int | None


def _obstacle(target: Target) -> str | None:
    """Why the native code cannot fill a tensor, or None."""
    if _native.module is None:
        return f"the native code is not available ({_native.reason})"
    device = target.tensor.device.type
    if device != "cpu":
        return f"the native code is built without a backend for {device}"
    if target.tensor.dtype not in _DTYPES:
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
        self._check_memory()
        self._tensors = [target.tensor for target in self._native]
        self._table = _Table(self._native) if self._native else None

    def _check_memory(self) -> None:
        spans: list[tuple[Span, str]] = []
        for target in self._native + self._fallback:
            if target.tensor.device.type == "cpu":
                spans.append((memory_span(target.tensor, target.name), target.name))
        check_overlaps(spans)
        check_writable(spans)

    def _check_unchanged(self) -> None:
        for name, tensor, shape, dtype, _, _ in self._native:
            if tensor.shape != shape or tensor.dtype != dtype or tensor.device.type != "cpu":
                raise ValueError(
                    f"{name}: planned as {tuple(shape)} {dtype} on cpu, is now {tuple(tensor.shape)} {tensor.dtype} on "
                    f"{tensor.device}; make a new plan"
                )

    def run_(self, seed: int | None, generator: torch.Generator | None) -> None:
        """Write all targets. See Plan.run_."""
        for obstacle in self._obstacles:
            _warn_once(obstacle)
        if self._table is not None and not self._table.matches(self._tensors):
            self._check_unchanged()
            self._check_memory()
            self._table = _Table(self._native)
        if seed is None and self._table is not None:
            seed = draw_seed(generator)
        if self._table is not None:
            assert seed is not None
            try:
                self._table.fill(seed)
            finally:  # interrupted, a fill has written something all the same
                torch.autograd.graph.increment_version(self._tensors)
        for target in self._fallback:
            fallback.fill(target.name, target.tensor, target.distribution, target.zero_row, seed, generator)


class _Table:
    """The native table (csrc/core/task.h): a structured array with a row a tensor, or several where it needs them."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self._data_pointers = [target.tensor.data_ptr() for target in targets]
        self._numels = [target.tensor.numel() for target in targets]
        whole: list[tuple[Target, int]] = []  # with its address: one row of consecutive elements
        parts: list[tuple[Target, int, IndexMap, Distribution]] = []
        for target, address in zip(targets, self._data_pointers, strict=True):
            if target.zero_row is None and target.tensor.is_contiguous():
                whole.append((target, address))
                continue
            itemsize = target.tensor.element_size()
            for index_map, distribution in _parts(target):
                parts.append((target, address + index_map.data_offset * itemsize, index_map, distribution))

        table = np.zeros(len(whole) + len(parts), dtype=_task_dtype())
        table["data"] = [address for _, address in whole] + [address for _, address, _, _ in parts]
        if whole:
            rows = table[: len(whole)]
            rows["numel"] = rows["row_length"] = [target.tensor.numel() for target, _ in whole]
            rows["rows_per_slab"] = rows["element_memory_step"] = 1
        if parts:
            rows = table[len(whole) :]
            columns = zip(*(index_map for _, _, index_map, _ in parts), strict=True)
            for field, column in zip(IndexMap._fields, columns, strict=True):
                if field != "data_offset":
                    rows[field] = column
        owners = [target for target, _ in whole] + [target for target, _, _, _ in parts]
        distributions = [target.distribution for target, _ in whole] + [each for _, _, _, each in parts]
        table["name_id"] = np.frombuffer(b"".join([name_id(owner.name) for owner in owners]), dtype="V16")
        table["dtype"] = [_DTYPES[owner.tensor.dtype] for owner in owners]
        table["distribution"] = [_DISTRIBUTIONS[type(distribution)] for distribution in distributions]
        table["parameter"] = [distribution + _PADDING[len(distribution)] for distribution in distributions]
        error = _module().prepare(table)
        if error is not None:
            row, code = error
            reason = _PREPARE_ERRORS[code].format(dtype=owners[row].tensor.dtype, distribution=distributions[row])
            raise ValueError(f"{owners[row].name}: {reason}")
        self._table = table

    def matches(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether the tensors still lie where they lay when the table was made, with as many elements."""
        where = [tensor.data_ptr() for tensor in tensors]
        return where == self._data_pointers and [tensor.numel() for tensor in tensors] == self._numels

    def fill(self, seed: int) -> None:
        _module().reseed(self._table, seed)
        _module().fill_cpu(self._table, torch.get_num_threads())


def _module() -> Any:
    assert _native.module is not None, "a table is made only where the native code is there"
    return _native.module


@cache
def _task_dtype() -> np.dtype[np.void]:
    dtype: np.dtype[np.void] = np.dtype(_module().task_dtype())
    return dtype


def _parts(target: Target) -> list[tuple[IndexMap, Distribution]]:
    """The pieces of a tensor: one, but for a row of zeros and for layouts of many dimensions."""
    tensor, distribution, zero_row = target.tensor, target.distribution, target.zero_row
    if zero_row is None:
        return [(index_map, distribution) for index_map in index_maps(tensor)]
    rows, row_numel = tensor.shape[0], tensor.numel() // tensor.shape[0]
    pieces = ((0, zero_row, distribution), (zero_row, zero_row + 1, _ZERO), (zero_row + 1, rows, distribution))
    parts: list[tuple[IndexMap, Distribution]] = []
    for begin, end, of_piece in pieces:
        if begin == end:
            continue
        if tensor.is_contiguous():
            parts.append((contiguous_map((end - begin) * row_numel, begin * row_numel), of_piece))
            continue
        for index_map in index_maps(tensor.narrow(0, begin, end - begin), begin * row_numel):
            shifted = index_map._replace(data_offset=index_map.data_offset + begin * tensor.stride(0))
            parts.append((shifted, of_piece))
    return parts
