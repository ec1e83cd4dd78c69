"""What a model's parameters hold, beside what a plan wants, with a sentence on all that is off. Writes nothing."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from fastinit.audit.statistics import NOTHING, Statistics, equal_rows, spectrum, statistics
from fastinit.distributed.flat import unflattened
from fastinit.distributed.held import is_sharded, local_tensor
from fastinit.distributed.shards import is_dtensor, is_first_replica
from fastinit.errors import ParameterError
from fastinit.plans.folding import fold
from fastinit.plans.plan import Plan
from fastinit.plans.rows import Row
from fastinit.rules.roles import RoleName, Roles
from fastinit.run.memory import check_readable
from fastinit.run.names import Renamer, Renaming, named_modules
from fastinit.run.parametrized import computed_weights
from fastinit.run.progress import Progress, check_progress, metered
from fastinit.schemes.base import as_scheme
from fastinit.schemes.distributions import Distribution
from fastinit.schemes.fans import Fans, Geometry, geometry_of

# What to do about each flag. Every sentence follows the name of the parameter and what was found.
ADVICE: Mapping[str, str] = {
    "no memory": "it is on the meta device; call fastinit.materialize_, or load a checkpoint",
    "not finite": "nobody initialised this memory, or training diverged; initialise it, or lower the learning rate",
    "never initialised": "it holds what fresh memory holds; run the plan after the last to_empty() or resize",
    "all equal": "all units compute the same and get the same gradient; draw it, with a scheme for its layer",
    "equal rows": "these units compute the same and stay equal in training; draw every row, from one seed, once",
    "equal shards": "ranks hold equal parts where they should differ; write DTensors with fastinit, not rank by rank",
    "no signal": "nothing passes through it; fine at the end of a residual branch or in an adapter, else draw it",
    "shrinks": "the signal all but vanishes behind it; use a std near 1 / sqrt(fan_in), or a scheme that does",
    "explodes": "the signal grows with every such layer; use a std near 1 / sqrt(fan_in), or a scheme that does",
    "off the plan": "something wrote to it after the plan ran, or the plan never ran; run the plan last",
}

# A std further from the plan's than this share of it, plus six standard errors, is off. The errors are those of values
# with a kurtosis of up to 5: std sqrt((5 - 1) / (4 n)).
_TOLERANCE = 0.05
_ERRORS = 6.0
# Values of this size come from no initialisation and no training that works.
_GARBAGE = 1e15
# The factors on the std of a signal of independent inputs beyond which a map alone spoils it. In a hundred layers
# factors of 0.9 and 1.1 do so, too: trace_signal measures that.
_LEAST_GAIN, _MOST_GAIN = 0.01, 10.0


class ParameterReport(NamedTuple):
    """One parameter: what it is, what the plan wants of it, what it holds, and what is off.

    role: "map", "table" (an embedding), "scale", "bias", or another of docs/ROLES.md.
    fans: what the module computes with it (`fan="module"`); None for all but maps and tables.
    wanted: the plan's distribution in words; None without a plan, or where the plan keeps the values.
    held: what the values are (`Statistics`). gain: std * sqrt(fan_in), for maps alone.
    largest, smallest, orthogonality: of the singular values, if asked for.
    flags: (name, what was found) of all that is off; `ADVICE` says what to do.
    """

    name: str
    kind: str
    role: RoleName
    shape: tuple[int, ...]
    dtype: torch.dtype
    fans: Fans | None
    wanted: str | None
    wanted_mean: float | None
    wanted_std: float | None
    wanted_bounds: tuple[float, float] | None
    held: Statistics
    gain: float | None
    largest: float | None
    smallest: float | None
    orthogonality: float | None
    flags: tuple[tuple[str, str], ...]


class Report:
    """Statistics of every parameter of a model. `print` shows a table with equal layers folded, notebooks show HTML.

    `rows` has a `ParameterReport` for every parameter, `flagged` those of which something is off.
    """

    def __init__(self, rows: Sequence[ParameterReport]) -> None:
        self.rows = tuple(rows)

    @property
    def flagged(self) -> tuple[ParameterReport, ...]:
        return tuple(row for row in self.rows if row.flags)

    def __getitem__(self, name: str) -> ParameterReport:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def advice(self) -> tuple[str, ...]:
        """One sentence for everything that is off, equal layers folded."""
        found: dict[str, list[tuple[str, str]]] = {}
        for row in self.rows:
            for flag, what in row.flags:
                found.setdefault(flag, []).append((row.name, what))
        sentences = []
        for flag, lines in found.items():
            for name, members in fold([(name, flag) for name, _ in lines]):
                more = f", and {len(members) - 1} like it" if len(members) > 1 else ""
                sentences.append(f"{name}: {lines[members[0]][1]}{more}: {ADVICE[flag]}.")
        return tuple(sentences)

    def to_json(self) -> str:
        """The rows as a JSON array of objects. A missing value is null, and so is what JSON cannot write (NaN, inf)."""
        return json.dumps([_plain(_record(row)) for row in self.rows], indent=1, allow_nan=False)

    def to_numpy(self) -> np.ndarray[Any, Any]:
        """The rows as a structured array. A missing number is NaN, a missing fan 0."""
        records = [_record(row) for row in self.rows]
        array = np.zeros(len(records), dtype=_FIELDS)
        for name, dtype in _FIELDS:
            missing: Any = "" if dtype is object else 0 if dtype == "i8" else math.nan
            array[name] = [missing if each[name] is None else each[name] for each in records]
        return array

    def _table(self) -> list[tuple[tuple[str, ...], bool]]:
        """The lines, the heading first, and whether something is off in each."""
        keys = [
            (row.kind, row.shape, row.dtype, row.fans, row.wanted, row.wanted_std, tuple(f for f, _ in row.flags))
            for row in self.rows
        ]
        lines: list[tuple[tuple[str, ...], bool]] = [(("parameter", *_HEADINGS), False)]
        for name, members in fold([(row.name, key) for row, key in zip(self.rows, keys, strict=True)]):
            rows = [self.rows[at] for at in members]
            lines.append(((name, *_cells(rows)), bool(rows[0].flags)))
        shown = [at for at in range(len(lines[0][0])) if any(cells[at] for cells, _ in lines[1:]) or at < 2]
        return [(tuple(cells[at] for at in shown), off) for cells, off in lines]

    def _conclusion(self) -> str:
        of = f"{len(self.rows)} parameters, {sum(row.held.numel for row in self.rows):,} values"
        return f"{of}; {len(self.flagged)} flagged" if self.flagged else f"{of}; nothing is off"

    def __str__(self) -> str:
        table = [cells for cells, _ in self._table()]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
        ]
        return "\n".join((*lines, self._conclusion(), *self.advice()))

    def __repr__(self) -> str:
        return f"<fastinit report: {self._conclusion()}>"

    def _repr_html_(self) -> str:
        lines = []
        for at, (cells, off) in enumerate(self._table()):
            # A red that can be read on white and on black.
            tag, style = (
                ("td" if at else "th"),
                "text-align:left;white-space:nowrap;padding:2px 8px" + (";color:#e53935" if off else ""),
            )
            row = "".join(f'<{tag} style="{style}">{html.escape(cell)}</{tag}>' for cell in cells)
            lines.append(f"<tr>{row}</tr>")
        table = f'<div style="overflow-x:auto"><table>{"".join(lines)}</table></div>'
        sentences = "".join(f"<li>{html.escape(each)}</li>" for each in self.advice())
        return f"{table}<p>{html.escape(self._conclusion())}</p><ul>{sentences}</ul>"

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        """What `rich.print(report)` shows: the same table, with what is off in red.

        Where the console is too narrow, columns are left out, the most dispensable ones first.
        """
        from rich.table import Table
        from rich.text import Text

        lines = self._table()
        heading = lines[0][0]
        widths = {heading[at]: max(len(cells[at]) for cells, _ in lines) + 2 for at in range(len(heading))}
        left_out = []
        for each in _DISPENSABLE:
            if each in widths and sum(widths.values()) > options.max_width:
                del widths[each]
                left_out.append(each)
        table = Table(box=None)
        for each in widths:
            table.add_column(each, overflow="fold", no_wrap=each != "parameter")
        for cells, off in lines[1:]:
            shown = [Text(cell) for each, cell in zip(heading, cells, strict=True) if each in widths]
            table.add_row(*shown, style="red" if off else None)
        yield table
        if left_out:
            yield Text(f"(too narrow for {', '.join(left_out)}; print(report) shows them)")
        yield Text(self._conclusion())
        yield from map(Text, self.advice())


def report(
    model: nn.Module,
    plan: Plan | None = None,
    *,
    names: Renaming | None = None,
    singular_values: bool = False,
    progress: Progress = None,
) -> Report:
    """What every parameter of a model holds, beside what a plan wants of it, and what is off.

    For each parameter: mean, std (over all elements), least and largest value, zeros, values that are not finite, fans,
    and for linear maps the gain std * sqrt(fan_in), the factor on the std of a signal whose values are independent with
    mean zero. Flags name what is off, each with a sentence on what to do: memory that nobody initialised, values that
    are not finite, equal values or rows, a map that passes no signal or blows it up, values that are not the plan's.

    Nothing is written, and no random numbers are drawn. Every rank reads the elements of DTensors that it holds. The
    ranks of a mesh must all call, and all get the statistics of the whole. Without DTensors, ranks exchange nothing.

    Args:
        model: any module. Parameters on the meta device are flagged.
        plan: what the parameters should hold; rows are found by name. It may come from another instance of the model.
        names: the names of parameters in the whole model, if `model` is a part of it, as in `fastinit.plan`.
        singular_values: whether to compute those of all maps: n^3 operations each. DTensors are gathered for it.
        progress: a bar or a function, as for `Plan.run_`. It tells of the reading, not of singular values.

    Raises:
        TypeError: the model, the plan, a parameter or progress has another type.
        ValueError: the plan has another shape for a parameter; a parameter's memory was freed, or has an unknown
            placement. If one rank of a mesh fails, every rank raises.

    >>> from fastinit import init_model_, plan
    >>> model = init_model_(torch.nn.Linear(3, 2), "ones", seed=0)
    >>> for sentence in report(model).advice():
    ...     print(sentence)
    weight: all its values are 1: all units compute the same and get the same gradient; draw it, with a scheme for its layer.
    """  # noqa: E501 (as it is printed)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if plan is not None and not isinstance(plan, Plan):
        raise TypeError(f"plan: expected a fastinit.Plan, got {type(plan).__name__}")
    check_progress(progress)
    wanted = {} if plan is None else {row.name: row for row in plan.rows}
    with unflattened(model):
        asked = list(_asked(model, Renamer(names)))
    for each in asked:
        if is_sharded(each.tensor) and not is_dtensor(each.tensor):
            raise ParameterError(each.name, "is a shard of another kind than DTensor, of which no report can be made")
    own: list[_Measured] = []
    with metered(progress, "reading", sum(_bytes_here(each) for each in asked)) as meter:
        for each in asked:
            own.append(_measured(each, wanted.get(each.name)))
            if meter is not None:
                meter.advance(_bytes_here(each))
    measured = _over_ranks(asked, own)
    return Report(
        [
            _reported(each, found, wanted.get(each.name), singular_values)
            for each, found in zip(asked, measured, strict=True)
        ]
    )


# ---- what is read ----


class _Asked(NamedTuple):
    name: str
    module: nn.Module
    role: RoleName
    geometry: Geometry | None
    tensor: torch.Tensor


def _asked(model: nn.Module, rename: Renamer) -> Iterator[_Asked]:
    """The parameters, each once, and the weights that parametrizations compute."""
    modules = named_modules(model)
    roles = Roles(model, as_scheme("own"), modules=modules)
    seen: set[int] = set()
    for of in modules:
        tensors: list[tuple[str, torch.Tensor]] = []
        for own_name, parameter in of.module._parameters.items():
            if parameter is not None and id(parameter) not in seen and not nn.parameter.is_lazy(parameter):
                seen.add(id(parameter))
                tensors.append((own_name, parameter))
        tensors += [(each.own_name, each.weight) for each in computed_weights(of.module)]
        for own_name, tensor in tensors:
            canonical = of.names_of(own_name)[0]
            role = roles.role(canonical, of.module, own_name, tensor)
            geometry = None
            if role in ("map", "table"):
                try:
                    geometry = geometry_of("module", of.module, own_name, tensor.shape)
                except ValueError:  # a vector in an unusual place
                    geometry = None
            yield _Asked(rename(canonical), of.module, role, geometry, tensor)


def _bytes_here(asked: _Asked) -> int:
    """The bytes of a parameter that this rank reads."""
    local = local_tensor(asked.tensor)
    return 0 if local.is_meta else local.nbytes


class _Measured(NamedTuple):
    """What this rank, or all ranks together, found in a parameter. `failure`: what went wrong on a rank."""

    held: Statistics | None  # None: no memory
    equal_rows: int = 0
    equal_shards: bool = False
    counted: bool = True
    failure: str | None = None


def _measured(asked: _Asked, wanted: Row | None) -> _Measured:
    tensor = asked.tensor
    try:
        if wanted is not None and wanted.shape is not None and tuple(wanted.shape) != tuple(tensor.shape):
            raise ParameterError(
                asked.name, f"planned as {tuple(wanted.shape)}, the model's is {tuple(tensor.shape)}; make a new plan"
            )
        local = local_tensor(tensor).detach()
        if local.is_meta:
            return _Measured(None)
        check_readable(tensor, asked.name)
        rows = 0
        if asked.role == "map" and asked.geometry is not None and local.dim() >= 2 and local.numel() > 0:
            rows = equal_rows(_units(local, asked.geometry))
        return _Measured(statistics(local), rows, counted=not is_dtensor(tensor) or is_first_replica(tensor))
    except Exception as error:
        if not is_dtensor(tensor):
            raise
        return _Measured(None, failure=str(error))  # the other ranks wait for this one


def _units(tensor: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """A map, or a stack of maps, as a matrix with a row for each unit."""
    stacked = geometry.stacked
    return tensor.movedim(geometry.out_dim, stacked).flatten(0, stacked).flatten(1)


def _over_ranks(asked: Sequence[_Asked], own: list[_Measured]) -> list[_Measured]:
    """What was found in the whole tensors: the parts of DTensors are joined, in one exchange along each mesh dimension.

    Raises:
        ValueError: a rank could not read a parameter.
    """
    of_meshes: dict[Any, list[int]] = {}
    for at, each in enumerate(asked):
        if is_dtensor(each.tensor):
            of_meshes.setdefault(each.tensor.device_mesh, []).append(at)
    found = list(own)
    for mesh, positions in of_meshes.items():
        if mesh.get_coordinate() is None:
            continue
        parts = [[own[at] for at in positions]]
        for dimension in range(mesh.ndim):
            group = mesh.get_group(dimension)
            if dist.get_backend(group) == "fake":
                raise ValueError(f"{asked[positions[0]].name}: its mesh has the backend 'fake', which joins nothing")
            gathered: list[Any] = [None] * dist.get_world_size(group)
            dist.all_gather_object(gathered, parts, group=group)
            parts = [part for of_rank in gathered for part in of_rank]
        for which, at in enumerate(positions):
            found[at] = _joined([part[which] for part in parts], asked[at].name)
    return found


def _joined(parts: Sequence[_Measured], name: str) -> _Measured:
    for part in parts:
        if part.failure is not None:
            raise ParameterError(name, f"a rank could not read it: {part.failure}")
    counted = [part for part in parts if part.counted]
    held = [part.held for part in counted if part.held is not None]
    if len(held) < len(counted):
        return _Measured(None)
    total = NOTHING
    for each in held:
        total = total.joined(each)
    # Equal to the last bit in all moments: no two parts of random values are.
    drawn = [each for each in held if each.squares > 0.0 and each.numel >= 4]
    return _Measured(total, sum(part.equal_rows for part in counted), len(set(drawn)) < len(drawn))


# ---- what is off ----


def _reported(asked: _Asked, found: _Measured, row: Row | None, singular_values: bool) -> ParameterReport:
    held, geometry = found.held, asked.geometry
    distribution = None if row is None or row.action != "init" else row.distribution
    fans = None if geometry is None else geometry.fans
    is_map = asked.role == "map" and fans is not None
    is_complex = asked.tensor.is_complex()
    inputs = 0 if fans is None else 2 * fans.fan_in if is_complex else fans.fan_in  # the std is that of the parts
    gain = held.std * math.sqrt(inputs) if is_map and held is not None else None
    moments = None if distribution is None else _moments(distribution, is_complex)
    singular: tuple[float | None, float | None, float | None] = (None, None, None)
    if singular_values and is_map and geometry is not None and held is not None and held.numel > 0:
        tensor: Any = asked.tensor.detach()
        singular = spectrum(_maps(tensor.full_tensor() if is_dtensor(tensor) else tensor, geometry))
    return ParameterReport(
        asked.name,
        type(asked.module).__name__,
        asked.role,
        tuple(asked.tensor.shape),
        asked.tensor.dtype,
        fans,
        None if distribution is None else str(distribution),
        None if moments is None else moments[0],
        None if moments is None else moments[1],
        None if moments is None else moments[2],
        NOTHING if held is None else held,
        gain,
        *singular,
        tuple(_flags(asked, found, row, gain)),
    )


def _maps(tensor: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """A map as a matrix, or a stack of maps as a stack of matrices."""
    stacked = geometry.stacked
    return tensor.movedim(geometry.out_dim, stacked).flatten(stacked + 1)


def _flags(asked: _Asked, found: _Measured, row: Row | None, gain: float | None) -> Iterator[tuple[str, str]]:
    held = found.held
    if held is None:
        yield "no memory", "no values"
        return
    if held.numel == 0:
        return
    distribution = None if row is None or row.action != "init" else row.distribution
    is_drawn = distribution is not None and distribution.is_random()
    if held.non_finite:
        yield "not finite", f"{held.non_finite:,} of {held.numel:,} values are NaN or infinite"
        return
    largest = max(abs(held.low), abs(held.high))
    if largest > _GARBAGE:
        yield "never initialised", f"values of up to {largest:.1e}"
        return
    if is_drawn and held.zeros == held.numel:
        yield "never initialised", "all its values are 0 where the plan draws them"
        return
    is_meant = distribution is not None and not is_drawn  # by the plan: zeros, ones, an identity
    if asked.role == "map" and held.numel > 1 and not is_meant:
        if held.zeros == held.numel:
            yield "no signal", "all its values are 0"
        elif held.low == held.high:
            yield "all equal", f"all its values are {held.low:.4g}"
        elif found.equal_rows:
            yield "equal rows", f"{found.equal_rows:,} of its units have the weights of another"
    elif is_drawn and held.numel > 1 and held.low == held.high:
        yield "all equal", f"all its values are {held.low:.4g}"
    if found.equal_shards and not is_meant:
        yield "equal shards", "ranks hold parts with equal values"
    if distribution is not None and (off := _off_plan(held, distribution, asked.tensor.dtype)):
        yield "off the plan", off
    if gain is not None and held.low != held.high and not is_meant:
        if gain < _LEAST_GAIN:
            yield "shrinks", f"its gain, std * sqrt(fan_in), is {gain:.2g}"
        elif gain > _MOST_GAIN:
            yield "explodes", f"its gain, std * sqrt(fan_in), is {gain:.3g}"


def _moments(distribution: Distribution, is_complex: bool) -> tuple[float, float, tuple[float, float]] | None:
    """Mean, std and bounds of the numbers that a tensor holds, which in a complex one are both parts of every value.

    None: they are not told for complex values in blocks.
    """
    mean, std, (low, high) = distribution.mean(), distribution.std(), distribution.bounds()
    if not is_complex:
        return mean, std, (low, high)
    if distribution.blocks() is not None:
        return None
    parts = distribution.of_parts()
    if parts is None:  # matrices, of mean zero, whose parts share the variance
        return mean, std / math.sqrt(2.0), (low, high)
    if parts[0] == parts[1]:
        return parts[0].mean(), parts[0].std(), parts[0].bounds()
    # The imaginary parts are zero.
    return 0.5 * mean, math.sqrt(0.5 * std * std + 0.25 * mean * mean), (min(low, 0.0), max(high, 0.0))


def _off_plan(held: Statistics, distribution: Distribution, dtype: torch.dtype) -> str | None:
    """In what the values differ from those that the plan writes; None if in nothing."""
    moments = _moments(distribution, dtype.is_complex)
    if moments is None:
        return None
    mean, std, (low, high) = moments
    rounding = torch.finfo(dtype).eps if dtype.is_floating_point or dtype.is_complex else 0.0
    slack = rounding * max(abs(mean), std)
    error = _ERRORS / math.sqrt(held.finite)
    if held.low == held.high and std > 0.0 and held.finite > 1:
        return None  # that is another flag
    if abs(held.std - std) > std * (_TOLERANCE + error) + slack:
        return f"std {held.std:.4g}, the plan's is {std:.4g}"
    if abs(held.mean - mean) > std * (_TOLERANCE + error) + slack:
        return f"mean {held.mean:.4g}, the plan's is {mean:.4g}"
    for value, bound, beyond in ((held.low, low, held.low < low), (held.high, high, held.high > high)):
        if beyond and abs(value - bound) > 2.0 * rounding * abs(bound) + 2.0 * slack:
            return f"a value of {value:.4g}, the plan's bound is {bound:.4g}"
    return None


# ---- what is shown ----

_HEADINGS = (
    "shape", "dtype", "fan in/out", "wanted", "wanted std", "std", "mean", "min", "max", "zeros", "not finite", "gain",
    "largest s", "smallest s", "orth. error", "off",
)  # fmt: skip


# Columns that a narrow console does without, the first ones first.
_DISPENSABLE = (
    "dtype", "wanted", "min", "max", "fan in/out", "mean", "smallest s", "orth. error", "largest s", "shape", "zeros",
    "not finite", "gain", "wanted std",
)  # fmt: skip


def _cells(rows: Sequence[ParameterReport]) -> tuple[str, ...]:
    """The cells of equal layers; numbers that differ are shown as a range."""
    first = rows[0]
    held = [row.held for row in rows]
    return (
        "x".join(map(str, first.shape)) or "scalar",
        str(first.dtype).removeprefix("torch."),
        "" if first.fans is None else f"{first.fans.fan_in}/{first.fans.fan_out}",
        first.wanted or "",
        _range([first.wanted_std]),
        _range([each.std for each in held]),
        _range([each.mean for each in held], digits=2),
        _range([each.low for each in held]),
        _range([each.high for each in held]),
        _share(held),
        "" if not any(each.non_finite for each in held) else f"{sum(each.non_finite for each in held):,}",
        _range([row.gain for row in rows]),
        _range([row.largest for row in rows]),
        _range([row.smallest for row in rows]),
        _range([row.orthogonality for row in rows], digits=2),
        ", ".join(flag for flag, _ in first.flags),
    )


def _range(numbers: Sequence[float | None], digits: int = 3) -> str:
    """
    >>> _range([0.02, 0.0200001, 0.0213])
    '0.02..0.0213'
    """
    known = sorted(each for each in numbers if each is not None and not math.isnan(each))
    if not known:
        return ""
    low, high = (f"{each:.{digits}g}" for each in (known[0], known[-1]))
    return low if low == high else f"{low}..{high}"


def _share(rows: Sequence[Statistics]) -> str:
    """The share of zeros; nothing where there are none."""
    shares = sorted(100.0 * each.zeros / each.numel for each in rows if each.zeros)
    if not shares:
        return ""
    low, high = (f"{round(each, 2):g}%" for each in (shares[0] if len(shares) == len(rows) else 0.0, shares[-1]))
    return low if low == high else f"{low}..{high}"


_FIELDS: list[tuple[str, Any]] = [
    ("name", object), ("kind", object), ("role", object), ("shape", object), ("dtype", object), ("numel", "i8"),
    ("fan_in", "i8"), ("fan_out", "i8"), ("wanted", object), ("wanted_mean", "f8"), ("wanted_std", "f8"),
    ("wanted_min", "f8"), ("wanted_max", "f8"), ("mean", "f8"), ("std", "f8"), ("min", "f8"), ("max", "f8"),
    ("zeros", "f8"), ("non_finite", "i8"), ("gain", "f8"), ("largest_singular", "f8"), ("smallest_singular", "f8"),
    ("orthogonality_error", "f8"), ("flags", object),
]  # fmt: skip


def _record(row: ParameterReport) -> dict[str, Any]:
    held = row.held
    low, high = (None, None) if row.wanted_bounds is None else row.wanted_bounds
    return {
        "name": row.name,
        "kind": row.kind,
        "role": row.role,
        "shape": "x".join(map(str, row.shape)),
        "dtype": str(row.dtype).removeprefix("torch."),
        "numel": math.prod(row.shape),
        "fan_in": None if row.fans is None else row.fans.fan_in,
        "fan_out": None if row.fans is None else row.fans.fan_out,
        "wanted": row.wanted,
        "wanted_mean": row.wanted_mean,
        "wanted_std": row.wanted_std,
        "wanted_min": low,
        "wanted_max": high,
        "mean": held.mean,
        "std": held.std,
        "min": held.low,
        "max": held.high,
        "zeros": held.zeros / held.numel if held.numel else None,
        "non_finite": held.non_finite,
        "gain": row.gain,
        "largest_singular": row.largest,
        "smallest_singular": row.smallest,
        "orthogonality_error": row.orthogonality,
        "flags": ", ".join(flag for flag, _ in row.flags),
    }


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record for JSON, with null for what JSON cannot write, and the flags as a list with what was found."""
    found = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()
    }
    found["flags"] = [each for each in record["flags"].split(", ") if each]
    found["shape"] = [int(size) for size in record["shape"].split("x") if size]
    return found
