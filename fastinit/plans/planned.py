"""A plan: the rows of a model, and what can be done with them. What a run needs is made at the first one."""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from fnmatch import translate
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, get_args, runtime_checkable

import torch

from fastinit._torch import increment_version
from fastinit.distributed.agreement import Ranks, ranks_of_meshes
from fastinit.distributed.held import are_plain, is_sharded, local_tensor
from fastinit.distributed.shards import is_dtensor
from fastinit.errors import ParameterError
from fastinit.plans.folding import folded
from fastinit.plans.overwritten import Guess, warn_of_overwritten
from fastinit.plans.rows import Action, Row, targets_of
from fastinit.plans.seeds import meshes_of_seed, other_groups_of_seed, takes_random_numbers
from fastinit.plans.text import as_record, as_table
from fastinit.run import engine, rewriting
from fastinit.run.at_exit import waited_for_at_exit
from fastinit.run.masks import Masks, Weight, check_mask, masks_of, masks_of_units
from fastinit.run.memory import are_usual, check_tensor
from fastinit.run.places import Assignment, CurrentTensors, PlannedModules
from fastinit.run.progress import Progress, check_progress
from fastinit.run.streams import as_seed, as_seed_of_run
from fastinit.run.targets import Target
from fastinit.schemes.base import check_choice
from fastinit.schemes.distributions import Constant
from fastinit.schemes.numbers import as_number

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def _check_no_assignment(row: Row) -> None:
    if row.place.assignment is not None:
        raise ParameterError(
            row.name, "is computed by a parametrization, so it cannot keep a part of its values; filter its row out"
        )


def _finite(name: str, given: object) -> float:
    number = as_number(name, given)
    if not abs(number) <= torch.finfo(torch.float32).max:
        raise ValueError(f"{name}: expected a finite number of float32, got {number}")
    return float(number)


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
        guessed: Mapping[str, Guess] = MappingProxyType({}),
        modules: PlannedModules | None = None,
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
        self._guessed = guessed  # by the name of what is looked at before a run
        self._written = [row for row in self.rows if row.action == "init" and row.distribution is not None]
        self._kept = [row for row in self.rows if row.action == "keep"]
        self._ties = [row for row in self.rows if row.action == "tied" and row.place.first is not None]
        self._modules = PlannedModules() if modules is None else modules
        self._lock = threading.Lock()
        self._current: CurrentTensors | None = None  # of what is written; made at the first run
        self._prepared: engine.Program | None = None

    @waited_for_at_exit
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
            ParameterError: a tensor has no memory (meta), or lost it; its shape, dtype or device is not as planned (of
                what is kept, the dtype); the model no longer has the parameter; a parametrisation cannot take the
                weight; or a mask has another shape, dtype or device, or is for a weight that is parametrised or that
                the plan does not write. Nothing is written then.
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
            engine.check_not_traced()
        tensors, program, is_new = self._current_program()
        if is_new and self._guessed:
            warn_of_overwritten(self._written, tensors, self._guessed)
            self._guessed = {}  # later runs find what this one writes
        program.run_(seed, generator, progress)

    def _current_program(self) -> tuple[list[torch.Tensor], engine.Program, bool]:
        """The tensors that the model has now, the program for them, and whether it was made just now."""
        self._modules.check((row.name, row.place) for row in self._written)
        for row in self._ties:
            row.place.check_tied(row.name)
        for row in self._kept:
            row.place.check_kept(row.name, row.dtype)
        if self._current is None:
            self._current = CurrentTensors((row.name, row.place) for row in self._written)
        tensors = self._current.find()
        with self._lock:
            program = self._prepared
            is_new = program is None or not program.is_for(tensors)
            if program is None or is_new:
                program = self._prepared = self._made(tensors)
        return tensors, program, is_new

    @waited_for_at_exit
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
            engine.check_not_traced()
        for row in self._written:
            _check_no_assignment(row)
        _, program, _ = self._current_program()
        for target in program.targets:
            rewriting.check_blends(target)
        rewriting.blend(program, keep, scale, seed)

    @waited_for_at_exit
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
        for input k become zero. If that layer has f times as many inputs (features of flattened channels), the weights
        for inputs k f to k f + f - 1 become zero. So the units start anew, and what the model computes is what it
        computed without them (ReDo, Sokar et al.: "The Dormant Neuron Phenomenon in Deep Reinforcement Learning", ICML
        2023).

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
        groups = self._modules.groups()
        weights = {
            name: Weight(row.shape, row.kind, row.action == "init", groups.get(id(row.place.holder), 1))
            for name, row in rows.items()
        }
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
        if not isinstance(where, Mapping):
            raise TypeError(f"where: expected a mapping from names to masks, got {type(where).__name__}")
        rows = {row.name: row for row in self.rows if row.action == "init"}
        for name in where:
            if name not in rows:
                raise ParameterError(name, "`where` has a mask for it, but the plan writes no parameter of this name")
        self._write_masked([(rows, list(where.items()))], seed)

    def _write_masked(
        self, steps: Sequence[tuple[Mapping[str, Row], Masks]], seed: int, *, on_any_device: bool = False
    ) -> None:
        """Write rows to tensors where masks are true, one step after the other. All is checked first."""
        engine.check_modes()
        engine.check_not_traced()
        self._modules.check((name, rows[name].place) for rows, masks in steps for name, _ in masks)
        checked = []
        for rows, masks in steps:
            masked: list[tuple[Target, torch.Tensor]] = []
            distributed = []
            for name, mask in masks:
                row = rows[name]
                _check_no_assignment(row)
                tensor = row.place.current(name)
                check_tensor(tensor, name)
                mask = mask.to(local_tensor(tensor).device) if on_any_device else mask
                check_mask(name, tensor, mask)
                targets = targets_of(row, tensor)
                masked += zip(targets, masks_of(name, tensor, mask, targets), strict=True)
                if is_dtensor(tensor):
                    distributed.append(tensor)
            masks_of_names = {name for name, _ in masks}
            others = (row for row in self.rows if row.action in ("init", "keep") and row.name not in masks_of_names)
            engine.Program(  # which checks dtypes and memory
                [target for target, _ in masked],
                self.backend,
                kept=((row.name, row.place.tensor()) for row in others),
            )
            checked.append((masked, distributed))
        for masked, distributed in checked:
            try:
                rewriting.write_where(masked, self.backend, seed)
            finally:
                if distributed:
                    increment_version(distributed)

    def _made(self, tensors: Sequence[torch.Tensor]) -> engine.Program:
        plain: list[Target] = []
        assigned: list[tuple[Target, Assignment]] = []
        distributed: list[tuple[str, torch.Tensor]] = []
        are_as_usual = are_usual(tensors)
        for row, tensor in zip(self._written, tensors, strict=True):
            if not are_as_usual:  # since it was planned, it may have become a lazily negated view, say
                check_tensor(tensor, row.name)
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
            meshes = meshes_of_seed(self.rows)
            groups = groups | ranks_of_meshes(meshes) | other_groups_of_seed(self.rows)
        return engine.Program(
            plain,
            self.backend,
            assigned,
            distributed,
            tensors=tensors,
            kept=((row.name, row.place.tensor()) for row in self._kept),
            seed_groups=groups if groups and any(map(takes_random_numbers, self._written)) else None,
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
    def has_generator(self) -> bool:
        """Whether a generator gives the seed of every run."""
        return self._generator is not None

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
            modules=self._modules,
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
                for key, value in as_record(row).items()
            }
            for row in self.rows
        ]
        return json.dumps(records, indent=1, allow_nan=False)

    def __str__(self) -> str:
        return f"{as_table(self.rows)}\n{self.summary()}"

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
            shown = [name for name, _ in folded([(name, ()) for name in names])]
            more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
            lines.append(f"{what}: {', '.join(shown[:_SHOWN])}{more}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<fastinit.Plan of {len(self.rows)} rows>"


_SHOWN = 6


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
