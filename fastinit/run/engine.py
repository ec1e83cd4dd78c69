"""Runs what a plan decided: checks all memory, chooses a backend for every tensor, and writes in one pass a device.

The native code takes a table with a row for each tensor. For devices without a kernel it fills memory of the CPU,
which is copied (staged.py). torch.nn.init serves where the native code is missing or does not apply. Nothing is written
before everything was checked.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import cache
from operator import is_
from typing import TYPE_CHECKING, Literal

import torch

from fastinit import _native
from fastinit._torch import has_function_modes, in_fake_mode, increment_version, is_jit_tracing, is_on_meta, is_traced
from fastinit.distributed import agreement
from fastinit.distributed.held import local_tensors
from fastinit.errors import ParameterError, warn
from fastinit.run import composed, cuda, matrix_table, orthogonal, staged, torch_source
from fastinit.run.exact import exact_arithmetic, safe_threads
from fastinit.run.index_maps import BoxIndices
from fastinit.run.layouts import layout_of
from fastinit.run.memory import check_overlaps, check_writable, memory_span, spans_of_kept
from fastinit.run.orthogonal import Matrix
from fastinit.run.places import Assignment
from fastinit.run.progress import Meter, Progress, metered
from fastinit.run.streams import draw_seed
from fastinit.run.table import DTYPES, Table
from fastinit.run.targets import PARTS, Target, begin_of, name_of_block
from fastinit.schemes.distributions import Uniform

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

BACKENDS = ("auto", "native", "staged", "torch")
NATIVE_DEVICES = ("cpu", "cuda")
_CPU = torch.device("cpu")


class FallbackWarning(UserWarning):
    """Some tensors are initialised through torch.nn.init: correct, but slower, and with torch's random numbers."""


class StagedWarning(UserWarning):
    """Some tensors are filled by the CPU and copied to their device: the same values, but slower than by a kernel."""


def _obstacle(target: Target) -> str | None:
    """Why the native code cannot fill a tensor where it is, or None."""
    if _native.module is None:
        return f"the native code is not available ({_native.reason})"
    if target.device == _CPU and target.dtype in DTYPES:
        return None
    device = target.device.type
    if device not in NATIVE_DEVICES:
        return f"the native code is built without a backend for {device}"
    if device == "cuda" and (obstacle := cuda.obstacle()) is not None:
        return obstacle
    return _obstacle_of_dtype(target)


def _obstacle_of_dtype(target: Target) -> str | None:
    if target.dtype in PARTS:
        if all(block.of_parts() is not None for block in target.distribution.each_block()):
            return None
        return f"the native code does not make {type(target.distribution).__name__} in {target.dtype}"
    return None if target.dtype in DTYPES else f"the native code does not sample {target.dtype}"


Way = Literal["native", "staged", "torch"]


def _way_around(target: Target, obstacle: str | None, backend: str) -> Way:
    """Who fills a tensor, given what keeps the native code from filling it where it is."""
    if backend == "torch":
        return "torch"
    if obstacle is None:
        return "native"
    # Values that are not random are the same from torch, without a copy.
    has_values = _native.module is not None and _obstacle_of_dtype(target) is None and target.distribution.is_random()
    return "staged" if has_values and backend != "native" else "torch"


def fills_natively(target: Target, backend: str) -> bool:
    """Whether the native code makes the values of a tensor; otherwise torch.nn.init does."""
    return _way_around(target, _obstacle(target), backend) != "torch"


def fills_in_place(target: Target, backend: str) -> bool:
    """Whether a table of the native code says what a tensor gets, and where."""
    return target.distribution.needs == "element" and _way_around(target, _obstacle(target), backend) == "native"


@cache
def _warn_once(obstacle: str, way: Way) -> None:
    if way == "staged":
        warn(f"{obstacle}; filling such tensors on the CPU and copying them", StagedWarning)
    else:
        warn(f"{obstacle}; using torch.nn.init instead", FallbackWarning)


class NativeSource:
    """Random values of the streams under a seed (docs/STREAM.md)."""

    def __init__(self, seed: int, meter: Meter | None = None) -> None:
        self._seed = seed
        self._meter = meter

    @property
    def seed(self) -> int:
        return self._seed

    def fill_all(self, targets: Sequence[Target]) -> None:
        """Write targets, all of which are on one device: the CPU, or one with kernels."""
        table, device = Table(targets), targets[0].device
        if device.type == "cuda":
            cuda.CudaTable(table, device).fill(self._seed)
        else:
            table.fill_cpu(self._seed, torch.get_num_threads())

    def orthogonal(self, matrices: Sequence[Matrix]) -> None:
        orthogonal.fill(matrix_table.fill_small(matrices, self._seed), self, self._meter)

    def zero_rows(self, target: Target, zeros: int) -> None:
        rows, (first_row, first_column) = target.shape[0], begin_of(target)
        held_rows, held_columns = target.tensor.shape
        at_once = max(1, _KEYS_AT_ONCE // rows)
        for begin in range(0, held_columns, at_once):
            keys = keys_of_zeros(target, first_column + begin, min(at_once, held_columns - begin))
            self.fill_all([keys])
            chosen = keys.tensor.sort(dim=1, stable=True).indices[:, :zeros] - first_row
            column, which = ((chosen >= 0) & (chosen < held_rows)).nonzero(as_tuple=True)
            target.tensor[chosen[column, which], column + begin] = 0.0


_KEYS_AT_ONCE = 2**20  # of 8 bytes each


def keys_of_zeros(target: Target, begin: int, columns: int) -> Target:
    """The keys of some columns of a sparse matrix, a row of keys each, in new memory.

    A column's zeros are where its smallest keys are: docs/STREAM.md, section 7.
    """
    shape = torch.Size((columns, target.shape[0]))
    keys = torch.empty(shape, dtype=torch.float64, device=target.device)
    indices = BoxIndices(begin * target.shape[0], (target.shape[0], 1))
    name = f"{name_of_block(target)}:zeros"
    return Target(name, keys, shape, keys.dtype, target.device, Uniform(0.0, 1.0), indices)


class Program:
    """All that a run needs, made once for tensors as they lie: backends, checks of the memory, tables.

    A program is never changed, so several threads may run the same one. Targets with an assignment have no memory of
    their own: it is made when the program runs. `distributed` are the tensors whose local memory is among the
    targets, and the targets were made from `tensors`. No target may share memory with a tensor that is `kept`. Where no
    seed is given, this rank takes that of `seed_groups` and compares it on `compared_meshes`. If `seed_groups` is None,
    it asks nobody. Memory that the caller has just made for the targets needs no checks.

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
        kept: Iterable[tuple[str, torch.Tensor]] = (),
        seed_groups: Collection[agreement.Ranks] | None = None,
        compared_meshes: Collection[DeviceMesh] = (),
        checks_memory: bool = True,
    ) -> None:
        self._native: list[Target] = []  # sampled, in one pass
        self._composed: list[Target] = []
        self._staged: list[Target] = []  # of both kinds
        self._fallback: list[Target] = []
        self._assigned = list(assigned)
        self._seed_groups = seed_groups
        self._compared_meshes = compared_meshes
        self._backend = backend
        every = [*targets, *(target for target, _ in assigned)]
        # Each device is asked once for its type: the question takes as long as most checks of a tensor.
        kinds = {device: device.type for device in {target.device for target in every}}
        if "meta" in kinds.values():
            unallocated = next(target.name for target in every if kinds[target.device] == "meta")
            raise ParameterError(
                unallocated,
                "is on the meta device and has no memory; use fastinit.materialize_, or allocate the model first "
                "(model.to_empty(device=...)) and plan again",
            )
        for target in every if has_function_modes() else ():
            if is_on_meta(target.tensor):
                raise ParameterError(target.name, "has no memory inside of deferred(); materialize_ the model after it")
        obstacles: dict[tuple[str, Way], str] = {}  # obstacle and way around it -> name of the first tensor
        has_native = backend != "torch" and _native.module is not None
        for target in targets:
            if has_native and target.device == _CPU and target.dtype in DTYPES:  # first, since nearly all are
                way: Way = "native"
            else:
                way = self._way(target, obstacles)
            if way == "torch":
                if _obstacle_of_dtype(target) is not None:
                    _check_torch_writes(target)
                self._fallback.append(target)
            elif way == "staged":
                self._staged.append(target)
            elif target.distribution.needs == "tensor":
                self._composed.append(target)
            else:
                self._native.append(target)
        for target, _ in assigned:
            self._way(target, obstacles)
        if backend in ("native", "staged"):
            for (obstacle, way), name in obstacles.items():
                if way == "torch":
                    raise ParameterError(name, f"backend={backend!r} cannot fill it: {obstacle}")
        self._obstacles = tuple(obstacles) if backend == "auto" else ()
        self._tensors = tensors
        self._has_shards = bool(distributed)
        self._all_have_addresses = all(kind in NATIVE_DEVICES for kind in kinds.values())
        self._layout = layout_of(self._locals_of(tensors))
        # Memory on these devices can be checked, whichever backend fills it.
        checked, on_cpu = targets if checks_memory else (), self._native
        if set(kinds.values()) != {"cpu"}:  # else there is nothing to sort out
            checked = [target for target in checked if kinds[target.device] in NATIVE_DEVICES]
            on_cpu = [target for target in self._native if kinds[target.device] == "cpu"]
        spans = [(memory_span(target.tensor, target.name), target.name) for target in checked]
        check_overlaps(spans, spans_of_kept(kept))
        foreign = [(each, target) for each, target in zip(spans, checked, strict=True) if each[0].foreign]
        check_writable([each for each, target in foreign if kinds[target.device] == "cpu"])
        on_cuda: dict[torch.device, list[Target]] = {}
        for target in self._native if len(on_cpu) < len(self._native) else ():
            if kinds[target.device] == "cuda":
                on_cuda.setdefault(target.device, []).append(target)
        self._cpu_table = Table(on_cpu) if on_cpu else None
        self._cuda_tables = [cuda.CudaTable(Table(of_device), device) for device, of_device in on_cuda.items()]
        staged.check([target for target in self._staged if target.distribution.needs == "element"])
        self._devices = set(kinds)
        self._written = [target.tensor for target in (*self._native, *self._composed, *self._staged)]
        self._written += [tensor for _, tensor in distributed]
        ours = [*self._native, *self._composed, *self._staged, *(target for target, _ in assigned)]
        distributions = {id(target.distribution): target.distribution for target in ours}
        self._takes_random_numbers = any(each.is_random() for each in distributions.values())

    def is_for(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether the program was made for these tensors, and they still lie as they did then."""
        if tensors is not self._tensors and not (
            len(tensors) == len(self._tensors) and all(map(is_, tensors, self._tensors))
        ):
            return False
        return self._layout.is_of(self._locals_of(tensors))

    def _locals_of(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The local tensors that have an address; those of other devices are looked up by their identity."""
        local = [each for tensor in tensors for each in local_tensors(tensor)] if self._has_shards else tensors
        if not self._all_have_addresses:
            local = [tensor for tensor in local if tensor.device.type in (*NATIVE_DEVICES, "meta")]
        return local if isinstance(local, list) else list(local)

    def _way(self, target: Target, obstacles: dict[tuple[str, Way], str]) -> Way:
        obstacle = None if self._backend == "torch" else _obstacle(target)
        way = _way_around(target, obstacle, self._backend)
        # Values that are not random are the same from torch, so they need no warning.
        if obstacle is not None and (self._backend == "native" or target.distribution.is_random()):
            obstacles.setdefault((obstacle, way), target.name)
        return way

    def run_(
        self, seed: int | torch.Tensor | None, generator: torch.Generator | None, progress: Progress = False
    ) -> None:
        """Write all targets. See Plan.run_."""
        self._check_captures()
        for obstacle, way in self._obstacles:
            _warn_once(obstacle, way)
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
            elif self._native or self._composed or self._staged or self._assigned:
                seed = 0  # nothing depends on it
        with metered(progress, "initialising", self._nbytes) as meter:
            # An assignment can fail, so all of them are prepared before anything is written.
            prepared: list[object] = []
            if self._assigned:
                with exact_arithmetic(self._devices):
                    for target, assignment in self._assigned:
                        prepared.append(self._prepare(target, assignment, seed, given_seed, generator))
                        _advance(meter, target)
            self._fill(seed, meter)
            if self._fallback:
                with exact_arithmetic(self._devices):
                    for target in self._fallback:
                        torch_source.fill(target, given_seed, generator)
                        _advance(meter, target)
            if self._assigned:
                with safe_threads():
                    for (_, assignment), values in zip(self._assigned, prepared, strict=True):
                        assignment.commit(values)

    def _nbytes(self) -> int:
        """The bytes that a run writes."""
        return sum(map(_bytes_of, (*self.targets, *(target for target, _ in self._assigned))))

    def _check_captures(self) -> None:
        """Refuse to capture into a CUDA graph what waits for the device, or reads the host's memory at a replay."""
        if not self._composed and not self._staged:
            return
        capturing = {device for device in self._devices if device.type == "cuda" and cuda.is_capturing(device)}
        if capturing and self._staged:
            name = self._staged[0].name
            raise ParameterError(name, "is filled by the CPU and copied, which cannot be captured into a CUDA graph")
        for target in self._composed:
            if target.device in capturing and not composed.is_one_kernel(target):
                raise ParameterError(
                    target.name,
                    f"{target.distribution} is not made by one kernel, so it cannot be captured into a CUDA graph; run "
                    "its plan outside of the capture",
                )

    def _fill(self, seed: int | torch.Tensor | None, meter: Meter | None = None) -> None:
        """Write what the native code writes. The seed may be a tensor if all targets are filled by kernels of its CUDA
        device."""
        # An interrupted run has written something, too, so the versions come first. Also, what has just been read of
        # thousands of tensors is still in the caches now.
        if self._written:
            increment_version(self._written)
        if self._native:
            assert seed is not None
            for table in self._cuda_tables:  # first, so that the devices work at the same time as the CPU
                table.fill(seed)
            if self._cpu_table is not None:
                assert isinstance(seed, int)
                self._cpu_table.fill_cpu(seed, torch.get_num_threads(), meter)
        if self._composed:
            assert isinstance(seed, int)
            done = 0 if meter is None else meter.done + sum(map(_bytes_of, self._composed))
            with exact_arithmetic(self._devices):
                composed.fill_all(self._composed, NativeSource(seed, meter))
            if meter is not None:  # only orthogonal matrices have advanced it
                meter.reach(done)
        if self._staged:
            assert isinstance(seed, int)
            _fill_staged(self._staged, seed, meter)

    @property
    def targets(self) -> list[Target]:
        """All targets, but for those with an assignment."""
        return [*self._native, *self._composed, *self._staged, *self._fallback]

    @property
    def backend(self) -> str:
        return self._backend

    def blend_in_place(self, keep: float, scale: float, seed: int) -> list[Target]:
        """keep * element + scale * value for all targets of tables, in one pass a device. Returns all other targets."""
        for obstacle, way in self._obstacles:
            _warn_once(obstacle, way)
        try:
            for table in self._cuda_tables:  # first, as in _fill
                table.blend(keep, scale, seed)
            if self._cpu_table is not None:
                self._cpu_table.blend_cpu(keep, scale, seed, torch.get_num_threads())
        finally:  # an interrupted blend has written something, too
            if self._written:
                increment_version(self._written)
        return [*self._composed, *self._staged, *self._fallback]

    def _reads_on_device(self, seed: torch.Tensor) -> bool:
        """Whether all values are made by kernels of the device that holds the seed."""
        others = self._composed or self._staged or self._fallback or self._assigned
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
        way = self._way(target, {})
        if way == "native":
            assert seed is not None
            composed.fill_all([target], NativeSource(seed))
        elif way == "staged":
            assert seed is not None
            _fill_staged([target], seed)
        else:
            torch_source.fill(target, given_seed, generator)
        try:
            return assignment.prepare(weight)
        except Exception as error:
            raise ParameterError(target.name, f"cannot be set through its parametrization: {error}") from error


def _fill_staged(targets: Sequence[Target], seed: int, meter: Meter | None = None) -> None:
    """Write targets of devices that have no kernels. What is computed from random numbers is computed on the CPU too,
    in memory for one tensor."""
    sampled: dict[torch.device, list[Target]] = {}
    for target in targets:
        if target.distribution.needs == "element":
            sampled.setdefault(target.device, []).append(target)
            continue
        values = torch.empty(target.tensor.shape, dtype=target.dtype, device=_CPU)
        with exact_arithmetic({_CPU}):
            composed.fill_all([target._replace(tensor=values, device=_CPU)], NativeSource(seed))
        target.tensor.detach().copy_(values)
        _advance(meter, target)
    for of_device in sampled.values():
        staged.fill(of_device, seed, torch.get_num_threads(), meter)


def _bytes_of(target: Target) -> int:
    return target.tensor.numel() * target.dtype.itemsize


def _advance(meter: Meter | None, target: Target) -> None:
    if meter is not None:
        meter.advance(_bytes_of(target))


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


def check_modes() -> None:
    """Refuse FakeTensorMode: new tensors have no memory in it, and the run mixes these with real memory."""
    if in_fake_mode():
        raise RuntimeError("FakeTensorMode is on, in which new tensors have no memory; initialise outside of it")


def check_not_traced() -> None:
    """Refuse to write while somebody traces a graph: what native code writes is no part of one."""
    if is_jit_tracing() or is_traced():
        raise RuntimeError(
            "a graph is being traced, of which these values would be no part; initialise outside of it, or use "
            "fastinit.functional, which make_fx and torch.export (not torch.jit.trace) put into their graphs"
        )
