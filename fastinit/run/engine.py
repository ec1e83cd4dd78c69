"""Runs what a plan decided: checks all memory, chooses a backend for every tensor, and writes in one pass a device.

The native code takes a table with a row for each tensor. torch.nn.init serves where the native code is missing or does
not apply. Nothing is written before everything was checked.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache
from operator import attrgetter, is_
from typing import TYPE_CHECKING

import torch

from fastinit import _native
from fastinit._torch import in_fake_mode, increment_version
from fastinit.distributed import agreement
from fastinit.distributed.shards import local_tensor
from fastinit.errors import ParameterError, warn
from fastinit.run import composed, cuda, matrix_table, orthogonal, torch_source
from fastinit.run.exact import exact_arithmetic, safe_threads
from fastinit.run.index_maps import BoxIndices
from fastinit.run.memory import EXCHANGE_API, check_overlaps, check_writable, memory_span
from fastinit.run.orthogonal import Matrix
from fastinit.run.places import Assignment
from fastinit.run.streams import draw_seed
from fastinit.run.table import DTYPES, Table
from fastinit.run.targets import Target, begin_of, name_of_block
from fastinit.schemes.distributions import Uniform

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

BACKENDS = ("auto", "native", "torch")
NATIVE_DEVICES = ("cpu", "cuda")
_CPU = torch.device("cpu")


class FallbackWarning(UserWarning):
    """Some tensors are initialised through torch.nn.init: correct, but slower, and with torch's random numbers."""


def _obstacle(target: Target) -> str | None:
    """Why the native code cannot fill a tensor, or None."""
    if _native.module is None:
        return f"the native code is not available ({_native.reason})"
    if target.device == _CPU and target.dtype in DTYPES:  # first, since nearly all are
        return None
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
    warn(f"{obstacle}; using torch.nn.init instead", FallbackWarning)


class NativeSource:
    """Random values of the streams under a seed (docs/STREAM.md)."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    @property
    def seed(self) -> int:
        return self._seed

    def fill_all(self, targets: Sequence[Target]) -> None:
        """Write targets, all of which are on one device."""
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
            indices = BoxIndices((first_column + begin) * rows, (rows, 1))
            name = f"{name_of_block(target)}:zeros"
            self.fill_all([Target(name, keys, shape, keys.dtype, target.device, Uniform(0.0, 1.0), indices)])
            chosen = keys.sort(dim=1, stable=True).indices[:, :zeros] - first_row
            column, which = ((chosen >= 0) & (chosen < held_rows)).nonzero(as_tuple=True)
            target.tensor[chosen[column, which], column + begin] = 0.0


_KEYS_AT_ONCE = 2**20  # of 8 bytes each


class Program:
    """All that a run needs, made once for tensors as they lie: backends, checks of the memory, tables.

    A program is never changed, so several threads may run the same one. Targets with an assignment have no memory of
    their own: it is made when the program runs. `distributed` are the DTensors whose local tensors are among the
    targets, and the targets were made from `tensors`. Where no seed is given, this rank takes that of `seed_groups` and
    compares it on `compared_meshes`. If `seed_groups` is None, it asks nobody.

    Raises:
        ParameterError: memory that cannot be written to, or a tensor that the wanted backend cannot fill.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        backend: str,
        assigned: Sequence[tuple[Target, Assignment]] = (),
        distributed: Sequence[tuple[str, torch.Tensor]] = (),
        *,
        tensors: Sequence[torch.Tensor] = (),
        seed_groups: Collection[agreement.Ranks] | None = None,
        compared_meshes: Collection[DeviceMesh] = (),
    ) -> None:
        self._native: list[Target] = []  # sampled, in one pass
        self._composed: list[Target] = []
        self._fallback: list[Target] = []
        self._assigned = list(assigned)
        self._seed_groups = seed_groups
        self._compared_meshes = compared_meshes
        self._backend = backend
        every = [*targets, *(target for target, _ in assigned)]
        # Of each device: to ask a device for its type takes as long as most checks of a tensor.
        kinds = {device: device.type for device in {target.device for target in every}}
        if "meta" in kinds.values():
            unallocated = next(target.name for target in every if kinds[target.device] == "meta")
            raise ParameterError(
                unallocated,
                "is on the meta device and has no memory; use fastinit.materialize_, or allocate the model first "
                "(model.to_empty(device=...)) and plan again",
            )
        obstacles: dict[str, str] = {}  # obstacle -> first name
        for target in targets:
            if not self._is_native(target, obstacles):
                if target.dtype not in DTYPES:
                    _check_torch_writes(target)
                self._fallback.append(target)
            elif target.distribution.needs == "tensor":
                self._composed.append(target)
            else:
                self._native.append(target)
        for target, _ in assigned:
            self._is_native(target, obstacles)
        if backend == "native" and obstacles:
            obstacle, name = next(iter(obstacles.items()))
            raise ParameterError(name, f"backend='native' cannot fill it: {obstacle}")
        self._obstacles = tuple(obstacles)
        self._tensors = list(tensors)
        self._has_shards = bool(distributed)
        self._all_have_addresses = all(kind in NATIVE_DEVICES for kind in kinds.values())
        self._layout = self._layout_of(self._tensors)
        # Memory on these devices can be checked, whichever backend fills it.
        checked = [target for target in targets if kinds[target.device] in NATIVE_DEVICES]
        spans = [(memory_span(target.tensor, target.name), target.name) for target in checked]
        check_overlaps(spans)
        check_writable([each for each, target in zip(spans, checked, strict=True) if kinds[target.device] == "cpu"])
        on_cpu = [target for target in self._native if kinds[target.device] == "cpu"]
        on_cuda: dict[torch.device, list[Target]] = {}
        for target in self._native:
            if kinds[target.device] == "cuda":
                on_cuda.setdefault(target.device, []).append(target)
        self._cpu_table = Table(on_cpu) if on_cpu else None
        self._outside_cpu_table = [target for of_device in on_cuda.values() for target in of_device]
        self._outside_cpu_table += [*self._composed, *self._fallback]
        self._cuda_tables = [cuda.CudaTable(Table(of_device), device) for device, of_device in on_cuda.items()]
        self._devices = set(kinds)
        self._written = [target.tensor for target in (*self._native, *self._composed)]
        self._written += [tensor for _, tensor in distributed]
        ours = [*self._native, *self._composed, *(target for target, _ in assigned)]
        self._takes_random_numbers = any(target.distribution.is_random() for target in ours)

    def is_for(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether the program was made for these tensors, and they still lie as they did then."""
        return (
            len(tensors) == len(self._tensors)
            and all(map(is_, tensors, self._tensors))
            and self._layout_of(tensors) == self._layout
        )

    def _layout_of(self, tensors: Sequence[torch.Tensor]) -> object:
        """How the local tensors lie that have an address; those of other devices are looked up by their identity."""
        local = list(map(local_tensor, tensors)) if self._has_shards else list(tensors)
        if not self._all_have_addresses:
            local = [tensor for tensor in local if tensor.device.type in (*NATIVE_DEVICES, "meta")]
        return _layout(local)

    def _is_native(self, target: Target, obstacles: dict[str, str]) -> bool:
        if self._backend == "torch":
            return False
        obstacle = _obstacle(target)
        # Values that are not random are the same from torch, so they need no warning.
        if obstacle is not None and (self._backend == "native" or target.distribution.is_random()):
            obstacles.setdefault(obstacle, target.name)
        return obstacle is None

    def run_(self, seed: int | torch.Tensor | None, generator: torch.Generator | None) -> None:
        """Write all targets. See Plan.run_."""
        for obstacle in self._obstacles:
            _warn_once(obstacle)
        if isinstance(seed, torch.Tensor):
            if self._reads_on_device(seed):
                self._fill(seed)
                return
            seed = _value_of(seed)
        if seed is None and self._seed_groups is not None:
            seed = agreement.shared_seed(draw_seed(generator), self._seed_groups)
            taken = [("the seed drawn", str(seed))]
            agreement.check_agreement([(mesh, taken) for mesh in self._compared_meshes], None)
        given_seed = seed
        if seed is None and self._backend != "torch" and _native.module is not None:
            if any(cuda.is_capturing(device) for device in self._devices if device.type == "cuda"):
                raise ValueError(
                    "seed: expected an int while a CUDA graph is captured; every replay would repeat a seed drawn now"
                )
            if self._takes_random_numbers:
                seed = draw_seed(generator)
            elif self._native or self._composed or self._assigned:
                seed = 0  # nothing depends on it
        # An assignment can fail, so all of them are prepared before anything is written.
        prepared: list[object] = []
        if self._assigned:
            with exact_arithmetic(self._devices):
                for target, assignment in self._assigned:
                    prepared.append(self._prepare(target, assignment, seed, given_seed, generator))
        self._fill(seed)
        if self._fallback:
            with exact_arithmetic(self._devices):
                for target in self._fallback:
                    torch_source.fill(target, given_seed, generator)
        if self._assigned:
            with safe_threads():
                for (_, assignment), values in zip(self._assigned, prepared, strict=True):
                    assignment.commit(values)

    def _fill(self, seed: int | torch.Tensor | None) -> None:
        """Write what the native code writes, with a seed that is a tensor on CUDA devices alone."""
        try:
            if self._native:
                assert seed is not None
                for table in self._cuda_tables:  # first, so that the devices work at the same time as the CPU
                    table.fill(seed)
                if self._cpu_table is not None:
                    assert isinstance(seed, int)
                    self._cpu_table.fill_cpu(seed, torch.get_num_threads())
            if self._composed:
                assert isinstance(seed, int)
                with exact_arithmetic(self._devices):
                    composed.fill_all(self._composed, NativeSource(seed))
        finally:  # an interrupted run has written something, too
            if self._written:
                increment_version(self._written)

    @property
    def targets(self) -> list[Target]:
        """All targets, but for those with an assignment."""
        return [*self._native, *self._composed, *self._fallback]

    @property
    def backend(self) -> str:
        return self._backend

    def blend_in_place(self, keep: float, scale: float, seed: int) -> list[Target]:
        """keep * element + scale * value for all targets of the CPU's table, in one pass. Returns all other targets."""
        for obstacle in self._obstacles:
            _warn_once(obstacle)
        try:
            if self._cpu_table is not None:
                self._cpu_table.blend_cpu(keep, scale, seed, torch.get_num_threads())
        finally:  # an interrupted blend has written something, too
            if self._written:
                increment_version(self._written)
        return self._outside_cpu_table

    def _reads_on_device(self, seed: torch.Tensor) -> bool:
        """Whether all values are made by kernels of the device on which a seed is."""
        others = self._composed or self._fallback or self._assigned
        return bool(self._native) and not others and self._devices == {seed.device} and seed.device.type == "cuda"

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
            torch_source.fill(target, given_seed, generator)
        try:
            return assignment.prepare(weight)
        except Exception as error:
            raise ParameterError(target.name, f"cannot be set through its parametrization: {error}") from error


def _value_of(seed: torch.Tensor) -> int:
    if seed.device.type == "cuda" and cuda.is_capturing(seed.device):
        raise ValueError(
            "seed: a tensor serves a CUDA graph only where kernels of its device fill all tensors, and this plan has "
            "others (on another device, orthogonal, sparse, or filled by torch); give an int"
        )
    return int(seed.item()) % 2**64


def _check_torch_writes(target: Target) -> None:
    try:
        torch_source.check_dtype(target.distribution, target.dtype, target.device)
    except TypeError as error:
        raise ParameterError(target.name, str(error)) from error


def _layout(tensors: list[torch.Tensor]) -> object:
    """Where and how tensors lie: address, shape, strides, dtype. A storage that is resized or freed moves.

    Every run of a plan looks at all of its tensors, which may be ten thousand: in one native call, or, if some of them
    are such as no native code can look at, in one pass in C for each property.
    """
    if _native.module is not None and EXCHANGE_API is not None:
        layout: bytes | None = _native.module.layout_of(EXCHANGE_API, tensors)
        if layout is not None:
            return layout
    # Shapes and strides are kept as hashes: so many tuples that stay would set the garbage collector off.
    return (
        list(map(torch.Tensor.data_ptr, tensors)),
        list(map(hash, map(attrgetter("shape"), tensors))),
        list(map(hash, map(torch.Tensor.stride, tensors))),
        list(map(attrgetter("dtype"), tensors)),
    )


def check_modes() -> None:
    """Refuse FakeTensorMode: new tensors have no memory in it, and the run mixes these with real memory."""
    if in_fake_mode():
        raise RuntimeError("FakeTensorMode is on, in which new tensors have no memory; initialise outside of it")
