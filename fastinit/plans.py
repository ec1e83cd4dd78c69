"""Plans: which values will be written where, and why, as plain data. Making or printing a plan touches no memory."""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from fnmatch import translate
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import torch

from fastinit._torch import increment_version
from fastinit.distributed.agreement import Ranks, ranks_of_meshes
from fastinit.distributed.held import are_plain, held_of, is_sharded, local_tensor
from fastinit.distributed.pieces import Box, Held
from fastinit.distributed.shards import is_dtensor
from fastinit.distributed.wrapped import is_wrapped
from fastinit.errors import ConstantWarning, ParameterError, ZerosWarning, warn
from fastinit.run import engine, rewriting
from fastinit.run.masks import Masks, Weight, check_mask, masks_of, masks_of_units
from fastinit.run.memory import constant_of, was_set_to_zero
from fastinit.run.places import Assignment, Place, current_tensors
from fastinit.run.progress import Progress, check_progress
from fastinit.run.streams import as_seed, as_seed_of_run
from fastinit.run.targets import Target
from fastinit.schemes.base import Scheme, check_choice, describe
from fastinit.schemes.distributions import Constant, Distribution
from fastinit.schemes.fans import Fans

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Action = Literal["init", "keep", "tied", "buffer", "original"]


class Row(NamedTuple):
    """One parameter or buffer of a plan. Two rows are equal if all their fields except `place` are equal.

    name: the canonical name. Together with the seed, it decides the random numbers.
    action: "init": the parameter is written. "keep": it keeps its values. "tied": it is tied to another parameter.
        "buffer": a buffer, which is kept. "original": a parametrised weight is computed from it, and writing the weight
        sets it.
    kind: the class of the module that holds the parameter ("Linear"); empty for a tensor of a list.
    shape: the global shape; None for a lazy parameter that has none yet.
    boxes: the parts of a distributed tensor that this rank holds; None for any other tensor.
    scheme: a tuple if fused blocks have a scheme each.
    covered: false if no rule and no role decided.
    frozen: whether the parameter is not trained.
    place: where a run finds the tensor. It is neither compared nor printed.
    """

    name: str
    action: Action
    kind: str
    shape: torch.Size | None
    dtype: torch.dtype
    device: torch.device
    reason: str
    place: Place
    scheme: Scheme | tuple[Scheme, ...] | None = None
    fans: Fans | None = None
    distribution: Distribution | None = None
    covered: bool = True
    frozen: bool = False
    boxes: tuple[Box, ...] | None = None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Row):
            return NotImplemented
        return self._replace(place=_NOWHERE)[:] == other._replace(place=_NOWHERE)[:]

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((self.name, self.action, self.reason))

    @property
    def tensor(self) -> torch.Tensor:
        """The tensor as the model has it now."""
        return self.place.tensor()

    @property
    def numel(self) -> int:
        """The number of elements of the whole tensor; 0 if it is lazy."""
        return 0 if self.shape is None else self.shape.numel()

    @property
    def held(self) -> int:
        """The number of elements that this rank holds."""
        return self.numel if self.boxes is None else sum(math.prod(box.shape) for box in self.boxes)

    def at(self, tensor: torch.Tensor) -> Row:
        """The row for another tensor of the same name."""
        return self._replace(place=Place.of_tensor(tensor))


_NOWHERE = Place.of_tensor(torch.empty(0, device="cpu"))


def boxes_of(tensor: torch.Tensor, name: str) -> tuple[Box, ...] | None:
    """The boxes of a distributed tensor that this rank holds; None for any other tensor.

    Raises:
        ParameterError: its kind of shards refuses it.
    """
    held = held_of(tensor, name)
    return None if held is None else tuple(piece.box for piece in held.pieces)


def targets_of(row: Row, tensor: torch.Tensor) -> list[Target]:
    """The targets that this process writes for a row: the whole tensor, or the boxes in the rank's local tensor.

    Raises:
        ParameterError: the tensor is not as planned, or `boxes_of` raises it.
    """
    if row.action != "init" or row.distribution is None:
        return []
    held = held_of(tensor, row.name)
    shape, dtype, device = tensor.shape if held is None else held.shape, tensor.dtype, tensor.device
    if held is None and row.boxes is None and dtype is row.dtype and device == row.device and shape == row.shape:
        # Nearly all are so. To make the tuple by its own function takes a third of the time.
        return [tuple.__new__(Target, (row.name, tensor, shape, dtype, device, row.distribution, None, None))]
    was_distributed = row.boxes is not None
    same_device = device == row.device or held is not None or row.device.type == "meta"
    if shape != row.shape or dtype != row.dtype or not same_device or (was_distributed and held is None):
        planned = f"{_shown(row.shape)} {row.dtype} on {row.device}{' in shards' if was_distributed else ''}"
        raise ParameterError(
            row.name,
            f"planned as {planned}, is now {_shown(shape)} {dtype} on {device}; make a new plan",
        )
    if held is None:
        return [Target(row.name, tensor, shape, dtype, device, row.distribution)]
    return list(_targets_of_pieces(row.name, held, row.distribution))


def _targets_of_pieces(name: str, held: Held, distribution: Distribution) -> Iterator[Target]:
    for piece in (*held.pieces, *held.mirrors):
        local = piece.tensor
        begin = None if local.shape == held.shape else piece.begin
        yield Target(name, local, held.shape, local.dtype, local.device, distribution, None, begin)
    for each in held.padding:
        yield Target(name, each, each.shape, each.dtype, each.device, Constant(0.0))


def _check_no_assignment(row: Row) -> None:
    if row.place.assignment is not None:
        raise ParameterError(
            row.name, "is computed by a parametrization, so it cannot keep a part of its values; filter its row out"
        )


def _finite(name: str, given: object) -> float:
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        raise TypeError(f"{name}: expected a number, got {type(given).__name__}")
    if not abs(given) <= torch.finfo(torch.float32).max:
        raise ValueError(f"{name}: expected a finite number of float32, got {given}")
    return float(given)


def _takes_random_numbers(row: Row) -> bool:
    return row.action == "init" and row.distribution is not None and row.distribution.is_random()


def _meshes_of_seed(rows: Sequence[Row]) -> list[DeviceMesh]:
    """The meshes on which all ranks must take one seed: those with random DTensors, or all if plain tensors are random.

    A plain tensor beside DTensors is a replica: tensor parallelism leaves some parameters alone. A DTensor counts even
    if this rank holds no element of it, because all ranks of a mesh must answer alike.
    """
    concerned = [(row.tensor, _takes_random_numbers(row)) for row in rows]
    plain_is_random = any(is_random and (not is_sharded(each) or is_wrapped(each)) for each, is_random in concerned)
    meshes: dict[DeviceMesh, None] = {}
    for tensor, is_random in concerned:
        if is_dtensor(tensor) and (is_random or plain_is_random):
            meshes.setdefault(tensor.device_mesh)
    return list(meshes)


def _other_groups_of_seed(rows: Sequence[Row]) -> set[Ranks]:
    """The ranks that hold random tensors together which are shards of other kinds than DTensors.

    Raises:
        ParameterError: nobody knows these ranks.
    """
    found: set[Ranks] = set()
    for row in rows:
        tensor = row.tensor
        if not _takes_random_numbers(row) or not is_sharded(tensor) or is_dtensor(tensor):
            continue
        held = held_of(tensor, row.name)
        assert held is not None
        groups = {frozenset(held.ranks)} if held.groups is None else held.groups
        groups = {each for each in groups if each}
        if not groups and sum(piece.tensor.numel() for piece in held.pieces) < held.shape.numel():
            raise ParameterError(
                row.name,
                "is a shard, and which ranks hold the others is not known here, so they cannot agree on a seed; pass "
                "the same int as seed= on all ranks (fastinit.init_ takes one), or say which ranks they are "
                "(fastinit.tensor_parallel(group=))",
            )
        found |= groups
    return found


@runtime_checkable
class Selects(Protocol):
    """The interface of a `Where`, which `Plan.filter` takes beside globs and functions."""

    def matches(self, name: str, module: torch.nn.Module, parameter: torch.Tensor) -> bool: ...


class Plan:
    """Rows for every parameter and buffer of a model (or tensors of a list), and how to run them.

    `print(plan)` shows a table with equal layers folded. `plan.to_json()` gives the rows as data. `plan.run_()` writes
    the values. Two plans are equal if they would write the same values for the same reasons. The first run prepares
    the work, and later runs reuse it. Several threads may run one plan.
    """

    def __init__(
        self,
        rows: Iterable[Row],
        *,
        seed: int | None,
        generator: torch.Generator | None,
        backend: str,
        seed_groups: Collection[Ranks] = (),
        strict: bool = False,
        guessed: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.seed = as_seed(seed)
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"generator: expected a torch.Generator or None, got {type(generator).__name__}")
        if seed is not None and generator is not None:
            raise ValueError("seed, generator: expected one of them at the most, got both")
        check_choice("backend", backend, engine.BACKENDS)
        self.rows = tuple(rows)
        self.backend = backend
        self._generator = generator
        self._seed_groups = frozenset(seed_groups)
        self._strict = strict
        self._guessed = guessed  # names of what no author's code tells, and what it is
        self._written = [row for row in self.rows if row.action == "init" and row.distribution is not None]
        self._ties = [row for row in self.rows if row.action == "tied" and row.place.first is not None]
        self._lock = threading.Lock()
        self._places: list[tuple[str, Place]] = []  # of what is written; made at the first run
        self._prepared: engine.Program | None = None

    def run_(
        self,
        seed: int | torch.Tensor | None = None,
        *,
        where: Mapping[str, torch.Tensor] | None = None,
        progress: Progress = None,
    ) -> None:
        """Write all values, in one pass. With a seed, running again gives the same bits.

        Args:
            seed: in place of the plan's own, for this run; the ranks of a distributed model must give the same. A
                tensor of one int64 or uint64 element means the number of these 64 bits. On a CUDA device the kernel
                reads it there, and nothing waits for it. A captured graph then gives new values at every replay for
                which another seed is written to that tensor, which must be kept as long as the graph.
            where: write these elements alone: for names of parameters, masks of bool with the parameter's global shape,
                true where an element gets its initial value anew. A mask is a plain tensor, or for a DTensor one with
                the same placements. What it leaves out keeps its bits, as do parameters without a mask. The seed is
                an int then, the plan's or this one.
            progress: None shows a bar on a terminal once the run has taken two seconds, True from its beginning on,
                False never. A function is called with the bytes that are written and all bytes, at most ten times a
                second and once at the end. Nothing is told of runs with `where`.

        The run writes the parameters that the model has now. A parameter that was replaced after planning is written if
        it is as planned.

        Raises:
            TypeError, ValueError: the seed or `progress` is not one, or `where` needs a seed.
            ParameterError: a tensor has no memory (meta), or lost it; its shape, dtype or device is not as planned; the
                model no longer has the parameter; a parametrisation cannot take the weight; or a mask has another
                shape, dtype or device, or is for a weight that is parametrised or that the plan does not write. Nothing
                is written then.
            RuntimeError: the CUDA kernel cannot be launched; or the plan of a distributed model has no seed, and a rank
                of its meshes did not come (distributed/agreement.py); or the function of `progress` raised an
                exception, which is the cause. The run has stopped there, with a part of the values written.
        """
        check_progress(progress)
        if where is not None:
            self._run_where(where, self._int_seed(seed))
            return
        generator = self._generator if seed is None else None
        seed = self.seed if seed is None else as_seed_of_run(seed)
        if self._written:
            engine.check_modes()
        tensors, program, is_new = self._current_program()
        if is_new and self._guessed:
            self._warn_of_zeros(tensors)
        program.run_(seed, generator, progress)

    def _current_program(self) -> tuple[list[torch.Tensor], engine.Program, bool]:
        """The tensors that the model has now, the program for them, and whether it was made just now."""
        for row in self._ties:
            row.place.check_tied(row.name)
        if not self._places:
            self._places = [(row.name, row.place) for row in self._written]
        tensors = current_tensors(self._places)
        with self._lock:
            program = self._prepared
            is_new = program is None or not program.is_for(tensors)
            if program is None or is_new:
                program = self._prepared = self._made(tensors)
        return tensors, program, is_new

    def blend_(self, keep: float, scale: float, seed: int | None = None) -> None:
        """Blend every parameter that the plan writes with its initial value, in one pass: keep * w + scale * value.

        Both products and the sum are float32 operations on the value before it is rounded (float64 for float64), in
        which `keep` and `scale` are rounded, too; then the result is rounded once to the dtype (docs/STREAM.md, section
        8). So it is the same to the bit on every device and for every sharding. On the CPU and on CUDA devices one pass
        reads and writes, without a copy of anything. Parameters that are computed as a whole (orthogonal, sparse) or
        that torch writes, and other devices, take 16 MiB, or the size of one such parameter.

        Args:
            keep, scale: finite numbers of float32. A NaN or an infinity in w stays one, also for keep = 0.
            seed: in place of the plan's own. Another seed gives other values of the same distributions: perturbations.

        Raises:
            TypeError, ValueError: keep, scale or the seed is not one, or neither the plan nor the call has a seed.
            ParameterError: as `run_`; a dtype is neither floating-point nor complex; or a weight is parametrised.
                Nothing is written then. A signal that interrupts a blend leaves it half done.

        Shrink and perturb (Ash, Adams: "On Warm-Starting Neural Network Training", NeurIPS 2020):

        >>> from fastinit import plan
        >>> model = torch.nn.Linear(3, 2)
        >>> of = plan(model, "xavier_uniform", seed=0)
        >>> of.blend_(keep=0.4, scale=0.1, seed=1)
        """
        keep, scale = _finite("keep", keep), _finite("scale", scale)
        seed = self._int_seed(seed)
        if self._written:
            engine.check_modes()
        for row in self._written:
            _check_no_assignment(row)
        _, program, _ = self._current_program()
        for target in program.targets:
            rewriting.check_blends(target)
        rewriting.blend(program, keep, scale, seed)

    def run_units_(
        self,
        units: Mapping[str, Sequence[int]],
        *,
        outgoing: Mapping[str, str | Sequence[str]],
        seed: int | None = None,
    ) -> None:
        """Reset some units of layers: their incoming weights and biases as planned, their outgoing weights zero.

        Unit k of a layer is output feature or channel k: row k of its `weight` (column k of a transposed convolution's
        or of a Conv1D's) and element k of its `bias`, if the plan writes that. In a layer that reads them, the weights
        for input k become zero. If that layer has f times as many inputs (features of flattened channels), those for
        inputs k f to k f + f - 1 do. So the units start anew, and what the model computes is what it computed without
        them (ReDo, Sokar et al.: "The Dormant Neuron Phenomenon in Deep Reinforcement Learning", ICML 2023).

        Args:
            units: for names of layers, the numbers of units.
            outgoing: for every one of these names, the layer or layers that read its output; () if its outgoing
                weights shall stay. Nothing can tell this from a model, so nothing is guessed.
            seed: in place of the plan's own. With the plan's, a unit gets the weights that it began with.

        Outgoing weights are set to zero last, whichever layer they belong to, and whether or not the plan writes them.

        Raises:
            TypeError, ValueError: the seed is not one, or `outgoing` does not name the same layers as `units`.
            ParameterError: the plan does not write a layer's weight or has no layer of a name; a number is no unit of
                the layer; an outgoing weight does not fit; or as `run_`. Nothing is written then.

        >>> from fastinit import plan
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> of = plan(model, "kaiming_uniform", seed=0)
        >>> of.run_units_({"0": [2, 5]}, outgoing={"0": "2"})
        >>> model[2].weight[:, 2].tolist()
        [0.0, 0.0]
        """
        seed = self._int_seed(seed)
        rows = {row.name: row for row in self.rows if row.action in ("init", "keep")}
        weights = {name: Weight(row.shape, row.kind, row.action == "init") for name, row in rows.items()}
        anew, zeroed = masks_of_units(weights, units, outgoing)
        zeros = {name: row._replace(action="init", distribution=Constant(0.0)) for name, row in rows.items()}
        self._write_masked([(rows, anew), (zeros, zeroed)], seed, on_any_device=True)

    def _int_seed(self, seed: object) -> int:
        """The seed of a call, or the plan's."""
        found = self.seed if seed is None else as_seed(seed)
        if found is None:
            raise ValueError(
                "seed: expected an int, of the plan or of this call; without one, values cannot be made again"
            )
        return found

    def _run_where(self, where: Mapping[str, torch.Tensor], seed: int) -> None:
        rows = {row.name: row for row in self._written}
        for name in where:
            if name not in rows:
                raise ParameterError(name, "`where` has a mask for it, but the plan writes no parameter of this name")
        self._write_masked([(rows, list(where.items()))], seed)

    def _write_masked(
        self, steps: Sequence[tuple[Mapping[str, Row], Masks]], seed: int, *, on_any_device: bool = False
    ) -> None:
        """Write rows to tensors where masks are true, one step after the other. All is checked first."""
        engine.check_modes()
        checked = []
        for rows, masks in steps:
            masked: list[tuple[Target, torch.Tensor]] = []
            distributed = []
            for name, mask in masks:
                row = rows[name]
                _check_no_assignment(row)
                tensor = row.place.current(name)
                mask = mask.to(local_tensor(tensor).device) if on_any_device else mask
                check_mask(name, tensor, mask)
                targets = targets_of(row, tensor)
                masked += zip(targets, masks_of(name, tensor, mask, targets), strict=True)
                if is_dtensor(tensor):
                    distributed.append(tensor)
            engine.Program([target for target, _ in masked], self.backend)  # which checks dtypes and memory
            checked.append((masked, distributed))
        for masked, distributed in checked:
            try:
                rewriting.write_where(masked, self.backend, seed)
            finally:
                if distributed:
                    increment_version(distributed)

    def _warn_of_zeros(self, tensors: Sequence[torch.Tensor]) -> None:
        """Warn of linear maps that somebody set to zero, and of biases that were set to a constant, if no code that was
        read tells that they should be so.
        """
        zeros, constants = [], []
        for row, tensor in zip(self._written, tensors, strict=True):
            guess = self._guessed.get(row.name)
            if guess is None:
                continue
            if guess != "bias":
                if was_set_to_zero(tensor, by_its_code=guess == "made as zeros"):
                    zeros.append(row.name)
            elif (value := constant_of(tensor)) is not None:
                constants.append(f"{row.name} ({value:.6g})")
        if zeros:
            warn(
                f"these linear maps were all zero, and are drawn now: {_listed(zeros)}; if their author meant zeros, "
                'give them a rule with "zeros", or KEEP',
                ZerosWarning,
            )
        if constants:
            warn(
                f"these biases held one value, and are zero now: {_listed(constants)}; if their author meant it, "
                "give them a rule with Constant, or KEEP",
                ConstantWarning,
            )

    def _made(self, tensors: Sequence[torch.Tensor]) -> engine.Program:
        plain: list[Target] = []
        assigned: list[tuple[Target, Assignment]] = []
        distributed: list[tuple[str, torch.Tensor]] = []
        for row, tensor in zip(self._written, tensors, strict=True):
            targets = targets_of(row, tensor)
            assignment = row.place.assignment
            if assignment is None:
                plain += targets
            else:
                assigned += [(target, assignment) for target in targets]
            if is_sharded(tensor):
                distributed.append((row.name, tensor))
        meshes: list[DeviceMesh] = []
        groups = self._seed_groups
        if self.seed is None and not are_plain([row.tensor for row in self.rows]):
            meshes = _meshes_of_seed(self.rows)
            groups = groups | ranks_of_meshes(meshes) | _other_groups_of_seed(self.rows)
        return engine.Program(
            plain,
            self.backend,
            assigned,
            distributed,
            tensors=tensors,
            seed_groups=groups if groups and any(map(_takes_random_numbers, self._written)) else None,
            compared_meshes=meshes if self._strict else (),
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Plan):
            return NotImplemented
        return (self.rows, self.seed, self.backend) == (other.rows, other.seed, other.backend)

    __hash__ = None  # type: ignore[assignment]

    @property
    def uncovered(self) -> tuple[str, ...]:
        """The names of the parameters that neither a rule nor a role covers."""
        return tuple(row.name for row in self.rows if not row.covered)

    @property
    def numel(self) -> int:
        """The number of elements that the plan writes on this rank."""
        return sum(row.held for row in self._written)

    @property
    def nbytes(self) -> int:
        """The number of bytes that the plan writes on this rank."""
        return sum(row.held * row.dtype.itemsize for row in self._written)

    def filter(
        self,
        where: str | Selects | Callable[[Row], bool] | None = None,
        *,
        action: Action | None = None,
        covered: bool | None = None,
    ) -> Plan:
        """A plan with the selected rows alone. `where` is a glob on the name, a `Where` or a function of the row.

        A `Where` must have neither a type nor a role, for rows have no module. With a seed, the new plan writes the
        same values to these rows as the whole plan.

        Raises:
            TypeError, ValueError: the selector has another type, or the action is unknown.
        """
        if action is not None:
            check_choice("action", action, get_args(Action))
        select = _selection(where)
        rows = [
            row
            for row in self.rows
            if select(row) and action in (None, row.action) and (covered is None or row.covered == covered)
        ]
        return Plan(
            rows,
            seed=self.seed,
            generator=self._generator,
            backend=self.backend,
            seed_groups=self._seed_groups,
            strict=self._strict,
            guessed=self._guessed,
        )

    def entries(self, mesh: DeviceMesh) -> list[tuple[str, str]]:
        """The entries that must be equal on all ranks of a mesh: the seed, and the decisions about its DTensors."""
        found = [("seed", "not given" if self.seed is None else str(self.seed))]
        for row in self.rows:
            tensor: Any = row.tensor if row.boxes is not None else None
            if is_dtensor(tensor) and tensor.device_mesh == mesh:
                what = f"{tuple(tensor.shape)} {tensor.dtype} {tensor.placements}"
                found.append((row.name, f"{row.action} {row.distribution!r} for {what}"))
        return found

    def to_json(self) -> str:
        """The rows as a JSON array of objects. A missing value is null, and so is an infinity, since JSON has none.

        "here" is the part of a distributed tensor that this rank writes.
        """
        records = [
            {
                key: None if isinstance(value, float) and not math.isfinite(value) else value
                for key, value in _record(row).items()
            }
            for row in self.rows
        ]
        return json.dumps(records, indent=1, allow_nan=False)

    def __str__(self) -> str:
        cells: dict[Any, tuple[str, ...]] = {}  # most rows of a model equal another row
        lines: list[tuple[str, tuple[str, ...]]] = []
        for row in self.rows:
            key: Any = (
                row.shape,
                row.dtype,
                row.device,
                row.distribution,
                row.fans,
                row.reason,
                row.kind,
                id(row.scheme),
            )
            key = (*key, row.action, row.boxes, row.frozen)
            if key not in cells:
                cells[key] = _cells(row)
            lines.append((row.name, cells[key]))
        table: list[tuple[str, ...]] = [("name", *_COLUMNS)]
        table += [(name, *others) for name, others in _folded(lines)]
        kept = [at for at in range(len(table[0])) if any(line[at] for line in table[1:]) or at < 2]
        table = [tuple(line[at] for at in kept) for line in table]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        text = "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
        )
        return f"{text}\n{self.summary()}"

    def summary(self) -> str:
        """A few lines about what the plan writes, and what it leaves alone."""
        lines = [
            f"{len(self._written)} tensors, {self.numel:,} elements, {self.nbytes / 2**20:,.1f} MiB to write",
        ]
        left: dict[str, list[str]] = {}
        for row in self.rows:
            if row.action == "keep":
                left.setdefault("kept" if row.covered else "not covered by any rule", []).append(row.name)
            elif row.action == "tied":
                left.setdefault("tied to another", []).append(row.name)
            elif row.action == "buffer":
                meta = "buffers without memory, for materialize_ to restore"
                left.setdefault(meta if row.device.type == "meta" else "buffers, kept", []).append(row.name)
            if row.frozen and row.action == "init":
                left.setdefault("frozen, and written all the same", []).append(row.name)
        for what, names in left.items():
            shown = [name for name, _ in _folded([(name, ()) for name in names])]
            more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
            lines.append(f"{what}: {', '.join(shown[:_SHOWN])}{more}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<fastinit.Plan of {len(self.rows)} rows>"


_COLUMNS = ("kind", "shape", "here", "dtype", "device", "scheme", "fan in/out", "distribution", "std", "why")
_SHOWN = 6


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _shown(shape: torch.Size | None) -> str:
    return "lazy" if shape is None else str(tuple(shape))


def _scheme_name(row: Row) -> str | None:
    if isinstance(row.scheme, tuple):
        return " | ".join(map(describe, row.scheme))
    return None if row.scheme is None else describe(row.scheme)


def _record(row: Row) -> dict[str, Any]:
    distribution = row.distribution
    return {
        "name": row.name,
        "action": row.action,
        "kind": row.kind,
        "shape": None if row.shape is None else list(row.shape),
        "here": _here(row),
        "dtype": str(row.dtype).removeprefix("torch."),
        "device": str(row.device),
        "numel": row.numel,
        "bytes": row.numel * row.dtype.itemsize,
        "scheme": _scheme_name(row),
        "fan_in": None if row.fans is None else row.fans.fan_in,
        "fan_out": None if row.fans is None else row.fans.fan_out,
        "distribution": None if distribution is None else str(distribution),
        "mean": None if distribution is None else distribution.mean(),
        "std": None if distribution is None else distribution.std(),
        "covered": row.covered,
        "frozen": row.frozen,
        "reason": row.reason,
    }


def _cells(row: Row) -> tuple[str, ...]:
    """The cells of a row in the table, without its name."""
    distribution = row.distribution
    return (
        row.kind,
        "lazy" if row.shape is None else "x".join(map(str, row.shape)) or "scalar",
        _here(row) or "",
        str(row.dtype).removeprefix("torch."),
        str(row.device),
        _scheme_name(row) or row.action,
        "" if row.fans is None else f"{row.fans.fan_in}/{row.fans.fan_out}",
        "" if distribution is None else str(distribution),
        "" if distribution is None else f"{distribution.std():.4g}",
        f"{row.reason}; frozen" if row.frozen else row.reason,
    )


def _here(row: Row) -> str | None:
    """The indices of a distributed tensor that this rank writes."""
    if row.action != "init" or row.boxes is None or row.shape is None:
        return None
    return " and ".join(_box(box, row.shape) for box in row.boxes) or "nothing"


def _box(box: Box, shape: Sequence[int]) -> str:
    """
    >>> _box(Box((0, 0), (4, 0), (2, 3)), (8, 3))
    '[4:6, :]'
    """
    sizes = zip(box.begin, box.shape, shape, strict=True)
    return f"[{', '.join(':' if size == whole else f'{begin}:{begin + size}' for begin, size, whole in sizes)}]"


_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


def _folded(lines: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """`fold`, with the cells of each fold.

    >>> _folded([("h.0.w", ""), ("h.0.b", ""), ("h.1.w", ""), ("h.1.b", ""), ("h.2.w", "")])
    [('h.{0..2}.w', ''), ('h.{0,1}.b', '')]
    """
    return [(name, lines[members[0]][1]) for name, members in fold(lines)]


def fold(lines: Sequence[tuple[str, Any]]) -> list[tuple[str, list[int]]]:
    """Lines with equal cells, folded into one if their names differ in one number: `h.{0..47}.attn.weight`.

    Each fold comes with the positions of its lines. The last number of a name is folded first. Experts are thus folded
    within their layer, and then layers with equal experts are folded.

    >>> fold([("h.0.w", ""), ("h.0.b", ""), ("h.1.w", "")])
    [('h.{0,1}.w', [0, 2]), ('h.0.b', [1])]
    """
    # An item is a name's text between numbers, its numbers as text, its cells, and the positions of its lines.
    items = [(tuple(_NUMBER.split(name)), _NUMBER.findall(name), cells, [at]) for at, (name, cells) in enumerate(lines)]
    for position in reversed(range(max((len(numbers) for _, numbers, _, _ in items), default=0))):
        groups: dict[Any, tuple[Any, list[str], Any, list[int], list[int]]] = {}
        for text, numbers, cells, members in items:
            if position >= len(numbers):
                groups[len(groups), text] = (text, numbers, cells, [], members)
                continue
            key = (text, *numbers[:position], None, *numbers[position + 1 :], cells)
            group = groups.setdefault(key, (text, numbers, cells, [], []))
            group[3].append(int(numbers[position]))
            group[4].extend(members)
        items = []
        for text, numbers, cells, found, members in groups.values():
            if found:
                numbers = [*numbers[:position], _numbers(found), *numbers[position + 1 :]]
            items.append((text, numbers, cells, members))
    return [
        ("".join(map("".join, zip(text, [*numbers, ""], strict=True))), members) for text, numbers, _, members in items
    ]


def _numbers(found: Sequence[int]) -> str:
    """
    >>> _numbers([0, 1, 2, 5])
    '{0..2,5}'
    """
    if len(found) == 1:
        return str(found[0])
    runs: list[list[int]] = []
    for number in found:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    shown = (f"{run[0]}..{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs)
    return "{" + ",".join(shown) + "}"


def _selection(where: str | Selects | Callable[[Row], bool] | None) -> Callable[[Row], bool]:
    if where is None:
        return lambda row: True
    if isinstance(where, str):
        glob = re.compile(translate(where))
        return lambda row: glob.match(row.name) is not None
    if isinstance(where, Selects):
        if any(getattr(where, key, None) is not None for key in ("type", "role")):
            raise ValueError("where: expected a Where without a type and a role, for rows of a plan have no module")
        selects, nowhere = where, torch.nn.Module()
        return lambda row: selects.matches(row.name, nowhere, row.tensor)
    if not callable(where):
        raise TypeError(f"where: expected a glob, a Where or a function of the row, got {where!r}")
    return where
