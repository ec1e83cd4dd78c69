"""A report: a row for every parameter, shown as a table or given as data."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from fastinit.audit.flags import ADVICE
from fastinit.audit.statistics import Statistics
from fastinit.plans.folding import fold
from fastinit.rules.roles import RoleName
from fastinit.schemes.fans import Fans


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
