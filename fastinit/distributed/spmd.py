"""Shards by SPMD types (the package spmd_types, as torchtitan uses it): plain local tensors, annotated for each mesh
axis as replicated, varying or partial, with a partition spec that names the axes that divide each dimension.

The package is asked if it is loaded. An axis is a pattern of ranks from zero; this rank's place on it follows from its
number, for meshes that tile the ranks of the default process group in order.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from fastinit.distributed.pieces import Held, Piece
from fastinit.errors import ParameterError


def is_spmd(tensor: Any) -> bool:
    """Whether a tensor is annotated with a type on some mesh axis."""
    types: Any = sys.modules.get("spmd_types")
    return types is not None and isinstance(tensor, torch.Tensor) and bool(types.get_local_type(tensor))


def held_of_spmd(tensor: torch.Tensor, name: str) -> Held:
    """What this rank holds of an annotated tensor: an equal part along each divided dimension.

    Raises:
        ParameterError: a type that says no values (partial) or no place (varying without a partition spec); or the
            ranks are not known.
    """
    types: Any = sys.modules["spmd_types"]
    local_type = types.get_local_type(tensor)
    spec = tuple(types.get_partition_spec(tensor) or ())
    by_dim = [entry if isinstance(entry, tuple) else (() if entry is None else (entry,)) for entry in spec]
    dividing = [axis for axes in by_dim for axis in axes]
    if len(spec) > tensor.dim():
        raise ParameterError(name, f"its partition spec {spec} is for {len(spec)} dimensions, it has {tensor.dim()}")
    for axis, kind in local_type.items():
        if getattr(kind, "value", None) == "P":
            raise ParameterError(name, f"is partial on mesh axis {axis}, so no rank holds values of it")
        if getattr(kind, "value", None) == "V" and axis not in dividing:
            raise ParameterError(
                name,
                f"varies on mesh axis {axis}, and nothing says how; annotate it with S(dim), or with a partition spec",
            )
    every = list(dict.fromkeys([*local_type, *dividing]))
    rank = _own_rank(every, name)
    shape, begin = list(tensor.shape), [0] * tensor.dim()
    for dim, axes in enumerate(by_dim):
        part = 0
        for axis in axes:  # the first divides into the largest parts
            part = part * axis.size() + _place(axis, rank)
        begin[dim] = part * tensor.shape[dim]
        shape[dim] *= math.prod(axis.size() for axis in axes)
    replicating = [axis for axis in every if axis not in dividing]
    return Held(
        torch.Size(shape),
        [Piece(tuple(begin), tensor.detach())],
        ranks=_ranks(every, rank),
        copies=math.prod(axis.size() for axis in replicating),
        is_first=all(_place(axis, rank) == 0 for axis in replicating),
    )


def _own_rank(axes: Iterable[Any], name: str) -> int:
    """This rank's number.

    Raises:
        ParameterError: there are no process groups, or the axes do not tile their ranks.
    """
    size = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    for axis in axes:
        if axis.size() > 1 and any(size % (count * step) != 0 for count, step in _strides(axis)):
            raise ParameterError(
                name, f"is annotated on mesh axis {axis} of {axis.size()} ranks, which does not tile {size} of them"
            )
    return dist.get_rank() if size > 1 else 0


def _strides(axis: Any) -> list[tuple[int, int]]:
    """(count, step) of the axis' ranks from zero, the smallest step first."""
    ranks, found = sorted(axis.layout.all_ranks_from_zero()), []
    while len(ranks) > 1:
        step, count = ranks[1], 2
        while count < len(ranks) and ranks[count] == count * step:
            count += 1
        found.append((count, step))
        ranks = ranks[::count]
    return found


def _place(axis: Any, rank: int) -> int:
    """A rank's place on an axis."""
    place, below = 0, 1
    for count, step in _strides(axis):
        place += rank // step % count * below
        below *= count
    return place


def _ranks(axes: Sequence[Any], rank: int) -> tuple[int, ...]:
    """The ranks that differ from this one by their places on these axes alone."""
    found = [rank]
    for count, step in [each for axis in axes for each in _strides(axis)]:
        found = [each + (place - each // step % count) * step for each in found for place in range(count)]
    return tuple(sorted(found))
