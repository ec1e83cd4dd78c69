"""What the ranks of a distributed model agree on: the seed, where none was given; under `strict`, the plan."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from fastinit.run.streams import draw_seed

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

# How long ranks wait for another: for rank 0's seed; under `strict`, for those of their meshes.
TIMEOUT = timedelta(minutes=5)
_seeds_shared = 0
_meetings: dict[str, int] = {}  # of every group of ranks, how many there were


def shared_seed(generator: torch.Generator | None) -> int:
    """Rank 0's seed, on every rank: through the store of the default process group, which no rank's collectives meet.

    Every rank draws, so that their generators stay in step.

    Raises:
        RuntimeError: rank 0 drew no seed within TIMEOUT.
    """
    global _seeds_shared
    seed = draw_seed(generator)
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return seed
    store = dist.distributed_c10d._get_default_store()
    key = f"fastinit/seed/{_seeds_shared}"
    _seeds_shared += 1
    if dist.get_rank() == 0:
        store.set(key, str(seed))
        return seed
    try:
        store.wait([key], TIMEOUT)
    except RuntimeError as error:
        raise RuntimeError(
            f"seed: rank 0 drew none within {TIMEOUT.total_seconds():.0f} s for this rank, {dist.get_rank()}; "
            "with seed=None, every rank must initialise the model, in the same order; or pass the same int on all"
        ) from error
    return int(store.get(key))


Entry = tuple[str, str]  # a name, and what ranks must have in common under it


def check_agreement(entries: Sequence[tuple[DeviceMesh, list[Entry]]], failure: str | None) -> None:
    """Compare what the ranks of every mesh pass, in an exchange along each of its dimensions.

    A failure of one rank, or a difference, is known to all ranks of its meshes when this ends: none is left waiting.

    Raises:
        ValueError: on every rank of the mesh, saying which rank differs, and in what.
        RuntimeError: ranks of a mesh did not come within TIMEOUT: without `strict`, or with other meshes.
    """
    problem = failure
    for mesh, own in entries:
        if mesh.get_coordinate() is None:
            continue
        for dimension in range(mesh.ndim):
            group = mesh.get_group(dimension)
            if dist.get_backend(group) == "fake":
                continue
            _meet(group)
            problem = _compare(group, own, problem)
    if problem is not None and problem != failure:
        raise ValueError(f"strict: {problem}")


def _meet(group: Any) -> None:
    """Wait, for TIMEOUT, until all ranks of a group are here: an exchange that some do not take part in has no end."""
    ranks = dist.get_process_group_ranks(group)
    place = blake2b(repr(ranks).encode(), digest_size=16).hexdigest()
    _meetings[place] = number = _meetings.get(place, 0) + 1
    keys = {rank: f"fastinit/strict/{place}/{number}/{rank}" for rank in ranks}
    store = dist.distributed_c10d._get_default_store()
    store.set(keys[dist.get_rank()], "")
    try:
        store.wait(list(keys.values()), TIMEOUT)
    except RuntimeError as error:
        missing = [str(rank) for rank, key in keys.items() if not store.check([key])]
        raise RuntimeError(
            f"strict: ranks {', '.join(missing)} did not come within {TIMEOUT.total_seconds():.0f} s; all ranks of a "
            "mesh must pass strict=True, for DTensors on the same meshes in the same order"
        ) from error


def _compare(group: Any, own: list[Entry], problem: str | None) -> str | None:
    """What is wrong with any rank of the group, or None."""
    others: list[Any] = [None] * dist.get_world_size(group)
    digest = blake2b(repr(own).encode(), digest_size=16).digest()
    dist.all_gather_object(others, (dist.get_rank(), problem, digest), group=group)
    for rank, its_problem, _ in others:
        if its_problem is not None:
            return its_problem if its_problem.startswith("rank ") else f"rank {rank}: {its_problem}"
    if len({digest for _, _, digest in others}) == 1:
        return None
    lists: list[Any] = [None] * len(others)
    dist.all_gather_object(lists, (dist.get_rank(), own), group=group)
    first_rank, first = lists[0]
    for rank, entries in lists[1:]:
        if entries != first:
            return _difference(rank, dict(entries), first_rank, dict(first))
    return None


def _difference(rank: int, own: dict[str, str], first_rank: int, first: dict[str, str]) -> str:
    for name in {**first, **own}:
        if own.get(name) != first.get(name):
            return (
                f"rank {rank} and rank {first_rank} differ in {name}: {own.get(name, 'not there')} and "
                f"{first.get(name, 'not there')}"
            )
    return f"rank {rank} and rank {first_rank} have their parameters in another order"
