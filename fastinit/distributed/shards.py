"""The boxes of a global tensor that a rank holds, from a DTensor's mesh and placements. No communication.

It is the first kind of shards (held.py).
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import torch

from fastinit import _torch
from fastinit.distributed.pieces import Box, Held, Piece
from fastinit.errors import ParameterError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Interval = tuple[int, int]  # a box of one dimension: begin, end


class MeshSplit(NamedTuple):
    """A mesh dimension of `ranks` ranks divides dimension `dim` of a tensor, and this rank gets share `which`.

    With stride 1 the shares are consecutive. Otherwise the dimension is first cut into `stride` equal stretches, and
    each of them is divided (torch's _StridedShard).
    """

    dim: int
    ranks: int
    which: int
    stride: int = 1


def is_dtensor(tensor: object) -> TypeGuard[DTensor]:
    """Whether a tensor is distributed over a mesh. Imports nothing: without the module there is no such tensor."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def boxes_held(shape: Sequence[int], splits: Sequence[MeshSplit]) -> list[Box]:
    """The boxes that a rank holds of a tensor of `shape`, in their order in its local tensor."""
    held = [intervals(size, [split for split in splits if split.dim == dim]) for dim, size in enumerate(shape)]
    found = []
    for edges in itertools.product(*(_with_places(each) for each in held)):
        local, begin, lengths = (tuple(edge[k] for edge in edges) for k in range(3))
        found.append(Box(local, begin, lengths))
    return found


def _with_places(held: Sequence[Interval]) -> list[tuple[int, int, int]]:
    """(place in the local tensor, begin, length) of intervals that lie there one behind the other."""
    found, place = [], 0
    for begin, end in held:
        found.append((place, begin, end - begin))
        place += end - begin
    return found


def intervals(size: int, splits: Sequence[MeshSplit]) -> list[Interval]:
    """The intervals of one dimension that a rank holds after its splits. Splits of outer mesh dimensions come first."""
    held = [(0, size)] if size > 0 else []
    for split in _in_order(splits):
        length = sum(end - begin for begin, end in held)
        stretch = -(-length // split.stride)
        taken: list[Interval] = []
        for begin in range(0, length, max(stretch, 1)):
            end = min(begin + stretch, length)
            share = -(-(end - begin) // split.ranks)
            first = begin + split.which * share
            taken += _cut(held, min(first, end), min(first + share, end))
        held = _merged(taken)
    return held


def _in_order(splits: Sequence[MeshSplit]) -> list[MeshSplit]:
    """The splits of one dimension in the order in which they were made.

    FSDP2 divides what tensor parallelism left, although its mesh dimension comes first. Its stride says so: it equals
    the number of shares that all later splits make together. Such a split moves behind them and gets stride 1, unless
    one of them keeps a stride of its own. Its shares are then right even where they are uneven.
    """
    ordered: list[MeshSplit] = []
    shares = 1
    for split in reversed(splits):
        if split.stride > 1 and split.stride == shares and all(later.stride == 1 for later in ordered):
            ordered.append(split._replace(stride=1))
        else:
            ordered.insert(0, split)
        shares *= split.ranks
    return ordered


def _cut(held: Sequence[Interval], begin: int, end: int) -> list[Interval]:
    """Elements begin ... end of intervals that lie one behind the other."""
    found, place = [], 0
    for first, last in held:
        low, high = max(begin - place, 0), min(end - place, last - first)
        if low < high:
            found.append((first + low, first + high))
        place += last - first
    return found


def _merged(held: Sequence[Interval]) -> list[Interval]:
    merged: list[Interval] = []
    for begin, end in held:
        if merged and merged[-1][1] == begin:
            begin = merged.pop()[0]
        merged.append((begin, end))
    return merged


def splits_of(tensor: DTensor, name: str) -> list[MeshSplit]:
    """How a DTensor is divided, for this rank.

    Raises:
        ValueError: a placement that is not known, or that holds no values (Partial).
    """
    coordinate = _coordinate(tensor)
    sizes: Sequence[int] = tensor.device_mesh.shape
    splits = []
    for position, placement in enumerate(tensor.placements):
        kind = type(placement).__name__
        # The terms of a sum of one term are values.
        if placement.is_replicate() or (placement.is_partial() and sizes[position] == 1):
            continue
        if placement.is_partial():
            raise ParameterError(
                name,
                f"its placement {placement!r} on mesh dimension {position} holds terms of a sum, not values; "
                "redistribute it to Replicate or Shard first",
            )
        if kind not in ("Shard", "_StridedShard"):
            raise ParameterError(name, f"expected placements Shard and Replicate, got {placement!r}")
        shard: Any = placement
        stride = int(shard.split_factor) if kind == "_StridedShard" else 1
        splits.append(MeshSplit(shard.dim % max(tensor.dim(), 1), sizes[position], coordinate[position], stride))
    return splits


def _coordinate(tensor: DTensor) -> Sequence[int]:
    found: Sequence[int] | None = tensor.device_mesh.get_coordinate()
    assert found is not None, "asked for ranks of the mesh only"
    return found


def local_boxes(tensor: DTensor, name: str) -> list[Box]:
    """The boxes of a DTensor that lie in this rank's local tensor; none on a rank outside of its mesh.

    Raises:
        ParameterError: a Partial placement, or a local tensor whose shape is not what the placements say.
    """
    if tensor.device_mesh.get_coordinate() is None:
        return []
    splits = splits_of(tensor, name)
    expected = tuple(
        sum(end - begin for begin, end in intervals(size, [split for split in splits if split.dim == dim]))
        for dim, size in enumerate(tensor.shape)
    )
    local = _torch.local_part(tensor)
    # An empty local tensor may have lost its other dimensions.
    if tuple(local.shape) != expected and (math.prod(expected) > 0 or local.numel() > 0):
        raise ParameterError(
            name,
            f"expected a local tensor of shape {expected} for {tuple(tensor.shape)} as {tensor.placements} on "
            f"a mesh of {tuple(tensor.device_mesh.shape)}, got {tuple(local.shape)}",
        )
    return boxes_held(tensor.shape, splits) if math.prod(expected) > 0 else []


def held_of_dtensor(tensor: DTensor, name: str) -> Held:
    """What this rank holds of a DTensor.

    Raises:
        ValueError: as `local_boxes`.
    """
    local = _torch.local_part(tensor).detach()
    pieces = [Piece(box.begin, view_of(local, box)) for box in local_boxes(tensor, name)]
    ranks = tensor.device_mesh.mesh.flatten().tolist()
    copies, is_first = num_replicas(tensor), is_first_replica(tensor)
    return Held(tensor.shape, pieces, ranks=ranks, copies=copies, is_first=is_first)


def view_of(local: torch.Tensor, box: Box) -> torch.Tensor:
    for dim, (first, size) in enumerate(zip(box.local, box.shape, strict=True)):
        if size != local.shape[dim]:
            local = local.narrow(dim, first, size)
    return local


def is_first_replica(tensor: DTensor) -> bool:
    """Whether this rank is the first among those that hold the same elements."""
    coordinate = tensor.device_mesh.get_coordinate()
    if coordinate is None:
        return False
    return all(at == 0 for at, placement in zip(coordinate, tensor.placements, strict=True) if placement.is_replicate())


def num_replicas(tensor: DTensor) -> int:
    """How many ranks hold every element."""
    sizes: Sequence[int] = tensor.device_mesh.shape
    return math.prod(size for size, placement in zip(sizes, tensor.placements, strict=True) if placement.is_replicate())
