"""The plan: what will be written where, and why, as plain data. Making one writes nothing; planner.py makes them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import torch

from fastinit import agreement, engine, throughput
from fastinit.distributions import Distribution, is_random
from fastinit.engine import Assignment
from fastinit.fans import Fans
from fastinit.layout import box_of
from fastinit.registry import Scheme, check_choice, describe
from fastinit.rules import Where
from fastinit.sharding import is_dtensor, local_pieces, local_tensor
from fastinit.streams import check_seed
from fastinit.table import Target, begin_of

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Action = Literal["init", "keep", "tied", "buffer", "original"]


class Row(NamedTuple):
    """One parameter or buffer of a plan.

    `name` is the canonical name, which together with the seed decides the random numbers. `action`: "init", it is
    written; "keep"; "tied" to another parameter; "buffer", kept; "original", one that a parametrised weight is
    computed from, and written through it. `scheme` is a tuple where fused blocks have one each. `covered` is false
    where no rule decided.
    """

    name: str
    action: Action
    tensor: torch.Tensor
    scheme: Scheme | tuple[Scheme, ...] | None
    fans: Fans | None
    distribution: Distribution | None
    reason: str
    covered: bool = True
    assignment: Assignment | None = None


def targets_of(row: Row) -> Sequence[Target]:
    """What this process writes of a row: all of a tensor, or the boxes of it that lie in the rank's local tensor.

    Raises:
        ValueError: a DTensor with a Partial placement, or whose local tensor is not what the placements say.
    """
    tensor, distribution = row.tensor, row.distribution
    if row.action != "init" or distribution is None:
        return ()
    if not is_dtensor(tensor):
        return (Target(row.name, tensor, tensor.shape, tensor.dtype, tensor.device, distribution),)
    found = []
    for piece in local_pieces(tensor, row.name):
        local = local_tensor(tensor)
        if piece.shape != tuple(local.shape):
            local = box_of(local.detach(), piece.local, piece.shape)
        begin = None if piece.shape == tuple(tensor.shape) else piece.begin
        found.append(Target(row.name, local, tensor.shape, local.dtype, local.device, distribution, None, begin))
    return found


_COLUMNS = ("name", "shape", "here", "dtype", "device", "scheme", "fan in/out", "distribution", "std", "why")
_HERE = _COLUMNS.index("here")
_SORT_KEYS: dict[str, Callable[[Row], Any]] = {
    "name": lambda row: row.name,
    "numel": lambda row: row.tensor.numel(),
    "bytes": lambda row: row.tensor.numel() * row.tensor.element_size(),
    "std": lambda row: -1.0 if row.distribution is None else row.distribution.std(),
    "fan_in": lambda row: -1 if row.fans is None else row.fans.fan_in,
    "fan_out": lambda row: -1 if row.fans is None else row.fans.fan_out,
    "scheme": lambda row: _scheme_name(row) or "",
    "action": lambda row: row.action,
}


def _scheme_name(row: Row) -> str | None:
    if isinstance(row.scheme, tuple):
        return " | ".join(map(describe, row.scheme))
    return None if row.scheme is None else describe(row.scheme)


def _takes_random_numbers(row: Row) -> bool:
    return row.action == "init" and row.distribution is not None and is_random(row.distribution)


def _meshes_of_seed(rows: Sequence[Row]) -> list[DeviceMesh]:
    """The meshes whose ranks must take one seed: those with random DTensors; if plain tensors are random, too, all.

    Plain tensors beside DTensors are replicas: what tensor parallelism leaves alone. Whether this rank holds elements
    of a DTensor does not matter, for all ranks of a mesh must answer alike.
    """
    concerned = [row for row in rows if _takes_random_numbers(row)]
    if not all(is_dtensor(row.tensor) for row in concerned):
        concerned = list(rows)
    return list(dict.fromkeys(row.tensor.device_mesh for row in concerned if is_dtensor(row.tensor)))


class Plan:
    """Rows for every parameter and buffer of a model (or tensors of a list), and how to run them.

    `print(plan)` shows a table, `plan.to_json()` and `plan.to_records()` the same as data, `plan.run_()` writes the
    values.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        seed: int | None,
        generator: torch.Generator | None,
        backend: str,
        seed_groups: Collection[agreement.Ranks] = (),
        strict: bool = False,
    ) -> None:
        check_seed(seed)
        if seed is not None and generator is not None:
            raise ValueError("seed, generator: expected one of them at the most, got both")
        self.rows = tuple(rows)
        self.seed = seed
        self._generator = generator
        self.backend = backend
        distributed = [row for row in self.rows if is_dtensor(row.tensor)]
        self._strict = strict
        meshes = _meshes_of_seed(self.rows)
        self._seed_groups = {*seed_groups, *agreement.ranks_of_meshes(meshes)}
        shares_seed = bool(self._seed_groups) and any(map(_takes_random_numbers, self.rows))
        plain: list[Target] = []
        assigned: list[tuple[Target, Assignment]] = []
        for row in self.rows:
            for target in targets_of(row):
                if row.assignment is None:
                    plain.append(target)
                else:
                    assigned.append((target, row.assignment))
        self._targets = [*plain, *(target for target, _ in assigned)]
        self._program = engine.Program(
            plain,
            backend,
            assigned,
            [(row.name, row.tensor) for row in distributed if row.action == "init"],
            seed_groups=self._seed_groups if shares_seed else None,
            compared_meshes=meshes if strict else (),
        )

    def run_(self) -> None:
        """Write all values, in one pass. With a seed, running again gives the same bits.

        Raises:
            ValueError: a tensor has no memory (meta); or lost it, or changed its shape, dtype or device, since the plan
                was made; or a parametrisation cannot take the weight. Nothing is written then.
            RuntimeError: CUDA's error if the kernel cannot be launched; without a seed, in a distributed model, a rank
                of its meshes did not come (`fastinit.agreement.shared_seed`).
        """
        self._program.run_(self.seed, self._generator)

    @property
    def uncovered(self) -> tuple[str, ...]:
        """Names of the parameters that no rule decided about."""
        return tuple(row.name for row in self.rows if not row.covered)

    @property
    def numel(self) -> int:
        """How many elements the plan writes: of DTensors, those of this rank."""
        return sum(target.tensor.numel() for target in self._targets)

    @property
    def nbytes(self) -> int:
        """How many bytes the plan writes: of DTensors, those of this rank."""
        return sum(target.tensor.numel() * target.dtype.itemsize for target in self._targets)

    def expected_seconds(self) -> float | None:
        """How long `run_` will take on memory that was touched before, from speeds measured on this machine.

        The first call for a kind of values and a device measures (some milliseconds, 32 MiB). None where that is not
        possible: values that go through torch, orthogonal matrices.
        """
        if self.backend == "torch":
            return None
        return throughput.expected_seconds(self._targets)

    def filter(
        self,
        where: str | Where | Callable[[Row], bool] | None = None,
        *,
        action: Action | None = None,
        covered: bool | None = None,
    ) -> Plan:
        """The plan of the rows that fit: a glob on the name, a `Where` without a type, or any function of the row.

        Running it writes those parameters alone, with a seed the values that the whole plan gives them.

        Raises:
            TypeError, ValueError: a selector of another kind, or an unknown action.
        """
        if action is not None:
            check_choice("action", action, get_args(Action))
        select = _selection(where)
        rows = [
            row
            for row in self.rows
            if select(row) and action in (None, row.action) and (covered is None or row.covered == covered)
        ]
        return self._with(rows)

    def sorted(self, by: str | Callable[[Row], Any] = "name", *, reverse: bool = False) -> Plan:
        """The same plan with its rows in the order of "name", "numel", "bytes", "std", "fan_in", "fan_out", "scheme",
        "action", or of any function of the row. The values stay the same; only those that torch's own generator gives,
        without a seed, come in the order of the rows.

        Raises:
            ValueError: an unknown order.
        """
        if isinstance(by, str):
            check_choice("by", by, tuple(_SORT_KEYS))
            by = _SORT_KEYS[by]
        rows = sorted(self.rows, key=by, reverse=reverse)
        return self._with(rows)

    def entries(self, mesh: DeviceMesh) -> list[tuple[str, str]]:
        """What all ranks of a mesh must plan alike: the seed, and what happens to the DTensors on it."""
        found = [("seed", "not given" if self.seed is None else str(self.seed))]
        for row in self.rows:
            if is_dtensor(row.tensor) and row.tensor.device_mesh == mesh:
                what = f"{tuple(row.tensor.shape)} {row.tensor.dtype} {row.tensor.placements}"
                found.append((row.name, f"{row.action} {row.distribution!r} for {what}"))
        return found

    def _with(self, rows: Sequence[Row]) -> Plan:
        return Plan(
            rows,
            seed=self.seed,
            generator=self._generator,
            backend=self.backend,
            seed_groups=self._seed_groups,
            strict=self._strict,
        )

    def _records(self) -> Iterable[dict[str, Any]]:
        for row in self.rows:
            distribution = row.distribution
            yield {
                "name": row.name,
                "action": row.action,
                "shape": list(row.tensor.shape),
                "here": _here(row),
                "dtype": str(row.tensor.dtype).removeprefix("torch."),
                "device": str(row.tensor.device),
                "numel": row.tensor.numel(),
                "bytes": row.tensor.numel() * row.tensor.element_size(),
                "scheme": _scheme_name(row),
                "fan_in": None if row.fans is None else row.fans.fan_in,
                "fan_out": None if row.fans is None else row.fans.fan_out,
                "distribution": None if distribution is None else str(distribution),
                "mean": None if distribution is None else distribution.mean(),
                "std": None if distribution is None else distribution.std(),
                "covered": row.covered,
                "reason": row.reason,
            }

    def to_json(self) -> str:
        """The rows as a JSON array of objects; null for what is not there, and for infinities, which JSON lacks.

        "here" is what this rank writes of a DTensor.
        """
        records = [
            {
                key: None if isinstance(value, float) and not math.isfinite(value) else value
                for key, value in each.items()
            }
            for each in self._records()
        ]
        return json.dumps(records, indent=1, allow_nan=False)

    def to_records(self) -> Any:
        """The rows as a NumPy record array: what `to_json` has, with -1 for no fan, NaN for no number, "" for no text.

        >>> from fastinit import plan
        >>> records = plan(torch.nn.Linear(3, 2), "xavier_uniform").to_records()
        >>> records[records.action == "init"].bytes.sum()
        np.int64(32)
        """
        columns: dict[str, list[Any]] = {}
        for record in self._records():
            record["shape"] = "x".join(map(str, record["shape"]))
            for key, value in record.items():
                columns.setdefault(key, []).append(value)
        arrays: list[Any] = [_column(key, columns.get(key, [])) for key in _RECORD_KEYS]
        return np.rec.fromarrays(arrays, names=",".join(_RECORD_KEYS))  # type: ignore[call-overload]

    def __str__(self) -> str:
        lines: list[tuple[str, ...]] = [_COLUMNS]
        for record in self._records():
            fans = "" if record["fan_in"] is None else f"{record['fan_in']}/{record['fan_out']}"
            lines.append(
                (
                    record["name"],
                    "x".join(map(str, record["shape"])) or "scalar",
                    record["here"] or "",
                    record["dtype"],
                    record["device"],
                    record["scheme"] or record["action"],
                    fans,
                    record["distribution"] or "",
                    "" if record["std"] is None else f"{record['std']:.4g}",
                    record["reason"],
                )
            )
        if all(line[_HERE] == "" for line in lines[1:]):  # nothing is distributed
            lines = [line[:_HERE] + line[_HERE + 1 :] for line in lines]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        )
        return f"{table}\n{self.summary()}"

    def summary(self) -> str:
        """What the plan writes, how long that will take, and what it does not write, in a few lines."""
        written = sum(row.action == "init" for row in self.rows)
        lines = [
            f"{written} tensors, {self.numel:,} elements, {self.nbytes / 2**20:,.1f} MiB to write{self._expected()}"
        ]
        left: dict[str, list[str]] = {}
        for row in self.rows:
            if row.action == "keep":
                left.setdefault("kept" if row.covered else "not covered by any rule", []).append(row.name)
            elif row.action in ("tied", "buffer"):
                left.setdefault({"tied": "tied to another", "buffer": "buffers, kept"}[row.action], []).append(row.name)
        for what, names in left.items():
            shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
            lines.append(f"{what}: {shown}")
        return "\n".join(lines)

    def _expected(self) -> str:
        if any(target.device.type != "cpu" for target in self._targets):
            return ""  # measuring takes memory and time of a device: only when asked
        seconds = self.expected_seconds()
        return "" if seconds is None else f", about {throughput.as_text(seconds)}"

    def __repr__(self) -> str:
        return f"<fastinit.Plan of {len(self.rows)} rows>"


def _here(row: Row) -> str | None:
    """The indices of a DTensor that this rank writes."""
    if row.action != "init" or not is_dtensor(row.tensor):
        return None
    return " and ".join(map(_box, targets_of(row))) or "nothing"


def _box(target: Target) -> str:
    """
    >>> _box(Target("", torch.empty(2, 3), torch.Size((8, 3)), torch.float32, None, None, None, (4, 0)))
    '[4:6, :]'
    """
    sizes = zip(begin_of(target), target.tensor.shape, target.shape, strict=True)
    return f"[{', '.join(':' if size == whole else f'{begin}:{begin + size}' for begin, size, whole in sizes)}]"


_SHOWN = 6
_INTEGERS = ("numel", "bytes", "fan_in", "fan_out")
_NUMBERS = ("mean", "std")
_RECORD_KEYS = (
    "name", "action", "shape", "here", "dtype", "device", "numel", "bytes", "scheme", "fan_in", "fan_out",
    "distribution", "mean", "std", "covered", "reason",
)  # fmt: skip


def _column(key: str, values: list[Any]) -> np.ndarray[Any, Any]:
    if key in _INTEGERS:
        return np.array([-1 if value is None else value for value in values], dtype=np.int64)
    if key in _NUMBERS:
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    if key == "covered":
        return np.array(values, dtype=bool)
    texts = ["" if value is None else value for value in values]
    return np.array(texts, dtype=np.str_) if texts else np.array([], dtype="U1")


def _selection(where: str | Where | Callable[[Row], bool] | None) -> Callable[[Row], bool]:
    if where is None:
        return lambda row: True
    if isinstance(where, str):
        where = Where(name=where)
    if isinstance(where, Where):
        if where.type is not None:
            raise ValueError("where: expected a Where without a type, for rows of a plan have no module")
        glob = where
        return lambda row: glob.matches(row.name, torch.nn.Module(), row.tensor)
    if not callable(where):
        raise TypeError(f"where: expected a glob, a Where or a function of the row, got {where!r}")
    return where
