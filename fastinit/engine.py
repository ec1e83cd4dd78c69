"""Runs what a plan decided: checks all memory, chooses a backend for every tensor, and writes, in one pass a device.

Natively, through a table with a row a tensor; or through torch.nn.init, where the native code is missing or does not
apply. Nothing is written before everything was checked.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Protocol

import torch

from fastinit import _native, agreement, composed, cuda, fallback, matrix_table, orthogonal
from fastinit.checks import NAMELESS, check_overlaps, check_writable, memory_span
from fastinit.distributions import Uniform, is_composed, is_random
from fastinit.forks import safe_threads
from fastinit.layout import Part
from fastinit.orthogonal import Matrix
from fastinit.sharding import local_tensor
from fastinit.streams import draw_seed
from fastinit.table import DTYPES, Table, Target, begin_of, name_of_part

BACKENDS = ("auto", "native", "torch")
NATIVE_DEVICES = ("cpu", "cuda")


class FallbackWarning(UserWarning):
    """Some tensors are initialised through torch.nn.init: correct, but slower, and with torch's random numbers."""


def _obstacle(target: Target) -> str | None:
    """Why the native code cannot fill a tensor, or None."""
    if _native.module is None:
        return f"the native code is not available ({_native.reason})"
    device = target.device.type
    if device not in NATIVE_DEVICES:
        return f"the native code is built without a backend for {device}"
    if device == "cuda" and (obstacle := cuda.obstacle()) is not None:
        return obstacle
    if target.dtype not in DTYPES:
        return f"the native code does not sample {target.dtype}"
    return None


def fills_natively(target: Target, backend: str) -> bool:
    """Whether the native code fills a tensor; otherwise torch.nn.init does."""
    return backend != "torch" and _obstacle(target) is None


@cache
def _warn_once(obstacle: str) -> None:
    warnings.warn(f"{obstacle}; using torch.nn.init instead", FallbackWarning, stacklevel=5)


class Assignment(Protocol):
    """How a weight that is computed from others is set: `prepare` finds their values, `commit` writes them."""

    def prepare(self, weight: torch.Tensor) -> object: ...

    def commit(self, prepared: object) -> None: ...


class NativeSource:
    """Random values of the streams under a seed (docs/STREAM.md)."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def fill_all(self, targets: Sequence[Target]) -> None:
        """Targets of one device."""
        table, device = Table(targets), targets[0].device
        if device.type == "cuda":
            cuda.CudaTable(table, device).fill(self._seed)
        else:
            table.fill_cpu(self._seed, torch.get_num_threads())

    def orthogonal(self, matrices: Sequence[Matrix]) -> None:
        orthogonal.fill(matrix_table.fill_small(matrices, self._seed), self)

    def zero_rows(self, target: Target, zeros: int) -> None:
        # A column's zeros are where its smallest keys are: docs/STREAM.md, section 7.
        rows = target.shape[0]
        first_row, first_column = begin_of(target)
        held_rows, held_columns = target.tensor.shape
        at_once = max(1, _KEYS_AT_ONCE // rows)
        for begin in range(0, held_columns, at_once):
            shape = torch.Size((min(at_once, held_columns - begin), rows))
            keys = torch.empty(shape, dtype=torch.float64, device=target.device)
            part = Part((first_column + begin) * rows, (rows, 1))
            name = f"{name_of_part(target)}:zeros"
            self.fill_all([Target(name, keys, shape, keys.dtype, target.device, Uniform(0.0, 1.0), part)])
            chosen = keys.sort(dim=1, stable=True).indices[:, :zeros] - first_row
            column, which = ((chosen >= 0) & (chosen < held_rows)).nonzero(as_tuple=True)
            target.tensor[chosen[column, which], column + begin] = 0.0


_KEYS_AT_ONCE = 2**20  # of 8 bytes each


class Program:
    """Targets with their backends decided; for the native ones, a table that is made once, whatever the seed.

    Targets with an assignment have no memory of their own: it is made when the program runs. `distributed` are the
    DTensors whose local tensors are among the targets; `share_seed` says whether ranks draw one together.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        backend: str,
        assigned: Sequence[tuple[Target, Assignment]] = (),
        distributed: Sequence[tuple[str, torch.Tensor]] = (),
        *,
        share_seed: bool = False,
    ) -> None:
        if backend not in BACKENDS:
            raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
        self._native: list[Target] = []  # sampled, in one pass
        self._composed: list[Target] = []
        self._fallback: list[Target] = []
        self._assigned = list(assigned)
        self._distributed = [(name, tensor, local_tensor(tensor)) for name, tensor in distributed]
        self._share_seed = share_seed
        self._backend = backend
        every = [*targets, *(target for target, _ in assigned)]
        self._unallocated = next((target.name for target in every if target.device.type == "meta"), None)
        obstacles: dict[str, str] = {}  # obstacle -> first name
        for target in targets:
            if target.device.type == "meta":
                continue
            if not self._is_native(target, obstacles):
                self._fallback.append(target)
            elif is_composed(target.distribution):
                self._composed.append(target)
            else:
                self._native.append(target)
        for target, _ in assigned:
            if target.device.type != "meta":
                self._is_native(target, obstacles)
        if backend == "native" and obstacles:
            obstacle, name = next(iter(obstacles.items()))
            raise ValueError(f"{name}: backend='native' cannot fill it: {obstacle}")
        self._obstacles = tuple(obstacles)
        # Memory can be looked at on these devices, whatever fills it.
        self._checked = [target for target in targets if target.device.type in NATIVE_DEVICES]
        self._checked_tensors = [target.tensor for target in self._checked]
        self._native_tensors = [target.tensor for target in self._native] + [tensor for _, tensor in distributed]
        self._on_cpu = [target for target in self._native if target.device.type == "cpu"]
        self._on_cuda: dict[torch.device, list[Target]] = {}
        for target in self._native:
            if target.device.type == "cuda":
                self._on_cuda.setdefault(target.device, []).append(target)
        ours = [*self._native, *self._composed, *(target for target, _ in assigned)]
        if share_seed:  # torch's random numbers then come of it, too
            ours = every
        self._takes_random_numbers = any(is_random(target.distribution) for target in ours)
        self._settle()

    def _is_native(self, target: Target, obstacles: dict[str, str]) -> bool:
        if self._backend == "torch":
            return False
        obstacle = _obstacle(target)
        # What is not random comes out the same from torch: no reason to warn.
        if obstacle is not None and (self._backend == "native" or is_random(target.distribution)):
            obstacles.setdefault(obstacle, target.name)
        return obstacle is None

    def _settle(self) -> None:
        """Check the memory of all tensors as they lie now, and make the tables for it."""
        names = [target.name or NAMELESS for target in self._checked]
        spans = [(memory_span(target.tensor, name), name) for target, name in zip(self._checked, names, strict=True)]
        check_overlaps(spans)
        check_writable([span for span, target in zip(spans, self._checked, strict=True) if target.device.type == "cpu"])
        self._cpu_table = Table(self._on_cpu) if self._on_cpu else None
        self._cuda_tables = [cuda.CudaTable(Table(targets), device) for device, targets in self._on_cuda.items()]
        self._placement = self._place()

    def _place(self) -> tuple[list[int], list[int]]:
        """Where the tensors lie, and how long they are."""
        tensors = self._checked_tensors
        return list(map(torch.Tensor.data_ptr, tensors)), list(map(torch.Tensor.numel, tensors))

    def _check_unchanged(self) -> None:
        for target in self._checked:
            tensor = target.tensor
            shape = target.shape if target.begin is None else tensor.shape  # of a box: a view that nobody else has
            if (tensor.shape, tensor.dtype, tensor.device) != (shape, target.dtype, target.device):
                raise ValueError(
                    f"{target.name}: planned as {tuple(shape)} {target.dtype} on {target.device}, is now "
                    f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}; make a new plan"
                )

    def run_(self, seed: int | None, generator: torch.Generator | None) -> None:
        """Write all targets. See Plan.run_."""
        if self._unallocated is not None:
            raise ValueError(
                f"{self._unallocated or NAMELESS}: is on the meta device and has no memory; use "
                "fastinit.materialize_, or allocate the model first (model.to_empty(device=...)) and plan again"
            )
        for name, tensor, local in self._distributed:
            if local_tensor(tensor) is not local:
                raise ValueError(f"{name}: its local tensor is another one than was planned; make a new plan")
        for obstacle in self._obstacles:
            _warn_once(obstacle)
        if self._place() != self._placement:
            self._check_unchanged()
            self._settle()
        if seed is None and self._share_seed and self._takes_random_numbers:
            seed = agreement.shared_seed(generator)
        given_seed = seed
        if seed is None and self._backend != "torch" and _native.module is not None:
            if any(map(cuda.is_capturing, self._on_cuda)):
                raise ValueError(
                    "seed: expected an int while a CUDA graph is captured; every replay would repeat a seed drawn now"
                )
            if self._takes_random_numbers:
                seed = draw_seed(generator)
            elif self._native or self._composed or self._assigned:
                seed = 0  # of which nothing depends
        # What an assignment makes of its weight can fail: before anything is written.
        prepared = [
            self._prepare(target, assignment, seed, given_seed, generator) for target, assignment in self._assigned
        ]
        if self._native:
            assert seed is not None
            try:
                for table in self._cuda_tables:  # first, for the devices work while the CPU does
                    table.fill(seed)
                if self._cpu_table is not None:
                    self._cpu_table.fill_cpu(seed, torch.get_num_threads())
            finally:  # interrupted, a fill has written something all the same
                torch.autograd.graph.increment_version(self._native_tensors)
        if self._composed:
            assert seed is not None
            composed.fill_all(self._composed, NativeSource(seed))
        for target in self._fallback:
            fallback.fill(target, given_seed, generator)
        with safe_threads():
            for (_, assignment), values in zip(self._assigned, prepared, strict=True):
                assignment.commit(values)

    def _prepare(
        self,
        target: Target,
        assignment: Assignment,
        seed: int | None,
        given_seed: int | None,
        generator: torch.Generator | None,
    ) -> object:
        weight = torch.empty(target.shape, dtype=target.dtype, device=target.device)
        target = target._replace(tensor=weight)
        if self._is_native(target, {}):
            assert seed is not None
            composed.fill_all([target], NativeSource(seed))
        else:
            fallback.fill(target, given_seed, generator)
        try:
            with safe_threads():
                return assignment.prepare(weight)
        except Exception as error:
            raise ValueError(f"{target.name}: cannot be set through its parametrization: {error}") from error
