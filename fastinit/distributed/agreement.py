"""Agreement between the ranks of a distributed model: on the seed if none was given, and under `strict` on the plan."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from fastinit._torch import default_store

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Ranks = frozenset[int]  # ranks of the default process group that hold something in common

# How long a rank waits for others: for a seed, or under `strict` for the ranks of its meshes.
TIMEOUT = timedelta(minutes=5)
_LONGEST_SLEEP_SECONDS = 0.5  # between two looks at the store
_SHOWN = 8  # ranks in a message


def ranks_of(group: Any = None) -> Ranks:
    """The ranks of a process group. None, or a group that was destroyed, stands for the default group."""
    if not _is_distributed():
        return frozenset()
    try:
        return frozenset(dist.get_process_group_ranks(group))
    except (KeyError, ValueError):
        return frozenset(dist.get_process_group_ranks(None))


def ranks_of_meshes(meshes: Iterable[DeviceMesh]) -> set[Ranks]:
    """The ranks of every mesh. Meshes of the same ranks, in whatever shape, count as one."""
    return {frozenset(mesh.mesh.flatten().tolist()) for mesh in dict.fromkeys(meshes)}


def shared_seed(own: int, groups: Iterable[Ranks]) -> int:
    """One seed for a call on all ranks of each group: the seed of a group's smallest rank.

    A rank passes the groups that it shares tensors with: the meshes of its DTensors, the process groups of its
    wrappers. Groups without this rank and groups within another one are left out. The others meet one after another, in
    the same order on all ranks. A rank takes the seed of its first meeting, and gives it on in the meetings that it
    leads. So one seed reaches all ranks of a grid of meshes, although no rank sees the whole grid. Ranks that no group
    connects, such as pipeline stages, have seeds of their own.

    All ranks of a group meet, so a call of one rank belongs to exactly one call of every other. A call that fails
    before it comes here does not count, and calls on other meshes do not. The meetings go through the store of the
    default process group and are counted there. They and collective operations do not wait for each other. Nothing is
    kept in this process, so they work for ranks that are threads, and after `destroy_process_group`. Only one thread of
    a rank may be here at a time.

    Args:
        own: the seed that this rank drew. Every rank draws, so that their generators stay in step.
        groups: the groups of this rank. If there is none, `own` is returned.

    Raises:
        RuntimeError: a rank of a group did not come within TIMEOUT, or there is no store.
        ValueError: two groups of this rank have different seeds, because nothing else connects them.
    """
    if not _is_distributed() or dist.get_backend() == "fake":
        return own
    rank = dist.get_rank()
    mine = {group for group in groups if rank in group and len(group) > 1}
    # A group within another gets the seed of that one. Its ranks know this, because they are all in the other one, too.
    widest = sorted(sorted(group) for group in mine if not any(group < other for other in mine))
    seed = own
    for position, ranks in enumerate(widest):
        given = int(_meet(ranks, "seed", str(seed), _SEED_ADVICE))
        if position > 0 and given != seed:
            raise ValueError(
                f"seed: expected an int, got None: rank {ranks[0]} gives ranks {_listed(ranks)} another seed than rank "
                f"{widest[0][0]} gives ranks {_listed(widest[0])}, and this rank, {rank}, shares tensors with both; "
                "pass the same int on all ranks"
            )
        seed = given
    return seed


_SEED_ADVICE = (
    "with seed=None, all ranks of a mesh must initialise its tensors, in the same order; or pass the same int on all"
)
_STRICT_ADVICE = "all ranks of a mesh must pass strict=True, for DTensors on the same meshes in the same order"


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _store() -> Any:
    """The store of the default process group."""
    public = getattr(dist.group.WORLD, "get_group_store", None)
    store = None if public is None else public()
    if store is None:  # threads as ranks have none there
        store = default_store()
    if store is None:
        raise RuntimeError(
            f"seed: the default process group ({dist.get_backend()}) has no store through which ranks could agree; "
            "pass the same int on all ranks, and leave out strict"
        )
    return store


def _meet(ranks: Sequence[int], what: str, word: str, advice: str) -> str:
    """The word of the first of `ranks`, once all of them are here.

    Every rank sets a sign that it is here, and waits for the outcome. The first rank waits for all signs and then makes
    its word the outcome. A rank that has waited too long makes its failure the outcome, so that all hear of it at once.
    The store counts the meetings that are over, and the count is the number of the present one. A meeting leaves only
    its outcome, until the next one.

    Raises:
        RuntimeError: ranks that did not come within TIMEOUT, by their numbers; or a store that does not answer.
    """
    store, rank = _store(), dist.get_rank()
    place = f"fastinit/{what}/{blake2b(repr(list(ranks)).encode(), digest_size=16).hexdigest()}"
    try:
        number = store.add(f"{place}/over", 0)
        signs = {each: f"{place}/{number}/{each}" for each in ranks}
        outcome = f"{place}/{number}/outcome"
        store.set(signs[rank], "")
        begun = time.monotonic()
        try:
            # store.wait would not react to Ctrl-C, so this looks again and again.
            while not store.check([outcome]):
                waited = time.monotonic() - begun
                left = TIMEOUT.total_seconds() - waited
                if rank == ranks[0] and store.check(list(signs.values())):
                    ending = f"{_ALL_CAME}{word}"
                elif left <= 0:
                    # If all are here, the first rank was lost before it gave its word.
                    ending = _listed([each for each in ranks if not store.check([signs[each]])] or ranks[:1])
                else:
                    time.sleep(min(0.001 + waited / 8, _LONGEST_SLEEP_SECONDS, left))
                    continue
                # This comes before the outcome, because a rank that has it may come to the next meeting at once.
                store.set(f"{place}/over", str(number + 1))
                store.compare_set(outcome, "", ending)
            found = str(store.get(outcome).decode())
            if rank == ranks[0] and found.startswith(_ALL_CAME):
                store.delete_key(f"{place}/{number - 1}/outcome")  # all ranks that read it are here
        finally:
            with suppress(RuntimeError):
                store.delete_key(signs[rank])
    except dist.DistNetworkError as error:
        raise RuntimeError(
            f"{what}: the store of the default process group does not answer this rank, {rank}; the rank that holds "
            "it, as a rule rank 0, may have ended"
        ) from error
    if not found.startswith(_ALL_CAME):
        raise RuntimeError(
            f"{what}: ranks {found} did not come within {TIMEOUT.total_seconds():.0f} s for this rank, {rank}; {advice}"
        )
    return found.removeprefix(_ALL_CAME)


_ALL_CAME = "all:"


def _listed(ranks: Sequence[int]) -> str:
    more = f" and {len(ranks) - _SHOWN} more" if len(ranks) > _SHOWN else ""
    return ", ".join(map(str, ranks[:_SHOWN])) + more


Entry = tuple[str, str]  # a name, and what ranks must have in common under it


def check_agreement(entries: Sequence[tuple[DeviceMesh, list[Entry]]], failure: str | None) -> None:
    """Compare the entries of the ranks of every mesh, in an exchange along each of its dimensions.

    When this ends, all ranks of a mesh know of a difference, or of a failure of one of them. No rank is left waiting.

    Raises:
        ValueError: two ranks differ. Every rank of the mesh raises, and says which rank differs in what.
        RuntimeError: ranks of a mesh did not come within TIMEOUT, because they lack `strict` or have other meshes.
    """
    problem = failure
    for mesh, own in entries:
        if mesh.get_coordinate() is None:
            continue
        for dimension in range(mesh.ndim):
            group = mesh.get_group(dimension)
            if dist.get_backend(group) == "fake":
                continue
            # An exchange that lacks a rank would never end, so all ranks meet before it.
            _meet(sorted(dist.get_process_group_ranks(group)), "strict", "", _STRICT_ADVICE)
            problem = _compare(group, own, problem)
    if problem is not None and problem != failure:
        raise ValueError(f"strict: {problem}")


def _compare(group: Any, own: list[Entry], problem: str | None) -> str | None:
    """A failure of any rank of the group, or a difference between two; None: there is neither."""
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
