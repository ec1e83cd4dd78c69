"""Which ranks must run a plan with one seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastinit.distributed.agreement import Ranks
from fastinit.distributed.held import held_of, is_sharded
from fastinit.distributed.shards import is_dtensor
from fastinit.distributed.wrapped import is_wrapped
from fastinit.errors import ParameterError
from fastinit.plans.rows import Row

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def takes_random_numbers(row: Row) -> bool:
    return row.action == "init" and row.distribution is not None and row.distribution.is_random()


def meshes_of_seed(rows: Sequence[Row]) -> list[DeviceMesh]:
    """The meshes on which all ranks must take one seed: those with random DTensors, or all if plain tensors are random.

    A plain tensor beside DTensors is a replica: tensor parallelism leaves some parameters alone. A DTensor counts even
    if this rank holds no element of it, because all ranks of a mesh must answer alike.
    """
    concerned = [(row.tensor, takes_random_numbers(row)) for row in rows]
    plain_is_random = any(is_random and (not is_sharded(each) or is_wrapped(each)) for each, is_random in concerned)
    meshes: dict[DeviceMesh, None] = {}
    for tensor, is_random in concerned:
        if is_dtensor(tensor) and (is_random or plain_is_random):
            meshes.setdefault(tensor.device_mesh)
    return list(meshes)


def other_groups_of_seed(rows: Sequence[Row]) -> set[Ranks]:
    """The sets of ranks that together hold a random tensor, for shards of other kinds than DTensors.

    Raises:
        ParameterError: nobody knows these ranks.
    """
    found: set[Ranks] = set()
    for row in rows:
        tensor = row.tensor
        if not takes_random_numbers(row) or not is_sharded(tensor) or is_dtensor(tensor):
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
