"""One number for the values of all parameters of a model, the same on one device and on many (docs/FINGERPRINT.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import mul
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from fastinit import _torch
from fastinit.audit.hashing import MASK, Hashed, key_of, sums
from fastinit.distributed.flat import unflattened
from fastinit.distributed.held import held_of
from fastinit.distributed.pieces import Held
from fastinit.errors import ParameterError
from fastinit.run.at_exit import waited_for_at_exit
from fastinit.run.engine import check_modes
from fastinit.run.index_maps import BoxIndices, whole
from fastinit.run.memory import check_readable
from fastinit.run.names import Renamer, Renaming, named_parameters


@waited_for_at_exit
def fingerprint(
    model: nn.Module,
    *,
    names: Renaming | None = None,
    group: dist.ProcessGroup | None = None,
    replicated: bool = True,
) -> int:
    """A 64-bit hash of the global values of all parameters of `model`: the same on one device and on many.

    It is the sum over parameters p and indices i of mix((key(p) + i * 0x9E3779B97F4A7C15) ^ bits(p[i])) modulo 2^64.
    Here key(p) is a hash of the canonical name, the dtype and the global shape, i the row-major index in the global
    tensor, bits(...) the value's bits, in which 0 and -0 differ, and mix SplitMix64's finaliser. So the number depends
    on the values, names, dtypes and shapes alone: not on devices, sharding, memory formats or the order of parameters.
    A parameter that modules share counts once, under its first name in the order of `named_parameters()`. A
    parametrised weight counts by its originals. Buffers do not count.

    Every rank reads the elements that it holds. Then all ranks of the group must take part in one all-reduce of a few
    integers. Elements that several ranks hold count once and are compared: if replicas differ, every rank raises.

    Args:
        model: any module whose parameters have memory. Nothing is written.
        names: the names of parameters in the whole model, if `model` is a part of it, as in `fastinit.plan`.
        group: the process group over which the parameters are spread; None: the default one, if there is one.
        replicated: whether the ranks of the group hold the same parameters, as replicas or as shards of DTensors
            (data, fully sharded and tensor parallel). False: ranks have parameters of their own (pipeline stages,
            experts). Parameters of one name, tied over two stages, then count once and must be equal. For that, the
            ranks exchange all names.

    Raises:
        TypeError: a parameter is not a dense tensor.
        ValueError: a parameter has no memory (meta), or an unknown placement; two parameters have one name; replicas
            differ; under `replicated`, ranks hold different parameters. If one rank fails, every rank raises.

    >>> from fastinit import init_model_
    >>> f"{fingerprint(init_model_(torch.nn.Linear(2, 2), 'ones')):016x}"
    'f620f75bbd5ce7c5'
    """
    check_modes()
    ranks = _ranks_of(group)
    failure: Exception | None = None
    prints: list[_Print] = []
    try:
        prints = _prints(model, Renamer(names), ranks, replicated)
    except Exception as error:  # the other ranks wait for this one
        if ranks.size == 1:
            raise
        failure = error
    if ranks.size == 1:
        return sum(each.sum for each in prints) & MASK
    combine = _combine_replicated if replicated else _combine_own
    return combine(prints, ranks, failure)


class _Ranks(NamedTuple):
    """The processes over which a model is spread, and the place of this process among them."""

    group: Any
    size: int
    rank: int
    members: tuple[int, ...]  # ranks in the default group, in the order of this group


class _Print(NamedTuple):
    """The hash of the elements that this rank holds of a parameter.

    `holders` is the first of the ranks that together hold the whole parameter. Each element is on `copies` of these
    ranks. `counted` says whether this rank is the first that holds its elements.
    """

    name: str
    key: int
    sum: int
    counted: bool
    copies: int
    holders: int

    def difference(self) -> int:
        """A term that sums to zero over ranks with equal copies: every copy, less `copies` times the first one."""
        return self.sum - (self.copies * self.sum if self.counted else 0)


def _ranks_of(group: Any) -> _Ranks:
    if group is None and not (dist.is_available() and dist.is_initialized()):
        return _Ranks(None, 1, 0, (0,))
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    if rank < 0:
        raise ValueError("group: this process is not a member of it")
    if size > 1 and dist.get_backend(group) == "fake":
        raise ValueError("group: its backend is 'fake', over which ranks cannot compare what they hold")
    return _Ranks(group, size, rank, tuple(dist.get_process_group_ranks(group)))


def _prints(model: nn.Module, rename: Callable[[str], str], ranks: _Ranks, replicated: bool) -> list[_Print]:
    """The hashes of this rank's parameters."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    found: list[_Print] = []
    hashed: list[Hashed] = []
    owners: list[int] = []  # for every Hashed, the position of its parameter in found
    full_names: dict[str, str] = {}
    with unflattened(model):
        parameters = list(named_parameters(model))
    for canonical, full_name, parameter in parameters:
        name = rename(canonical)
        if full_names.setdefault(name, full_name) != full_name:
            raise ParameterError(
                name,
                f"two parameters have this name, {full_names[name]} and {full_name}; rename a module, or give "
                "names=, if they are parts of a larger model",
            )
        check_readable(parameter, name)
        held = held_of(parameter, name)
        key = key_of(name, parameter.dtype, parameter.shape if held is None else held.shape)
        boxes = list(_boxes(parameter, held))
        owners += [len(found)] * len(boxes)
        hashed += [Hashed(key, tensor, indices) for tensor, indices in boxes]
        found.append(_Print(name, key, 0, *_place(held, name, ranks, replicated)))
    totals = [0] * len(found)
    for owner, total in zip(owners, sums(hashed), strict=True):
        totals[owner] += total
    return [each._replace(sum=total & MASK) for each, total in zip(found, totals, strict=True)]


def _boxes(parameter: torch.Tensor, held: Held | None) -> Iterable[tuple[torch.Tensor, BoxIndices]]:
    """The boxes that this rank holds of a parameter, with the indices of their elements."""
    if held is None:
        yield parameter.detach(), whole(parameter.shape)
        return
    strides = whole(held.shape).strides
    for piece in held.pieces:
        yield piece.tensor, BoxIndices(sum(map(mul, piece.begin, strides)), strides)


def _place(held: Held | None, name: str, ranks: _Ranks, replicated: bool) -> tuple[bool, int, int]:
    """Whether this rank counts its elements, how many ranks hold each element, and the first rank that holds any."""
    if held is not None:
        holders = list(held.ranks)
        if not holders and sum(piece.tensor.numel() for piece in held.pieces) == held.shape.numel():
            holders = [dist.get_rank() if ranks.size > 1 else 0]  # all of it is here
        if not holders:
            raise ParameterError(
                name, "is a shard, and which ranks hold the others is not known here (fastinit.tensor_parallel(group=))"
            )
        if not set(ranks.members).issuperset(holders):
            raise ParameterError(name, f"is distributed over ranks {holders}, not all of which are in the group")
        counted, copies = held.is_first, held.copies
        if replicated:
            # If only some of the ranks hold it together, the others have copies among themselves.
            mine = ranks.members[ranks.rank] in holders
            if ranks.size % len(holders) != 0 or not mine:
                raise ParameterError(
                    name,
                    f"is distributed over {len(holders)} of the {ranks.size} ranks of the group, and the "
                    "others cannot all have copies; if they have parameters of their own, give replicated=False",
                )
            counted, copies = counted and ranks.members[0] in holders, copies * (ranks.size // len(holders))
        return counted, copies, holders[0]
    if replicated:
        return ranks.rank == 0, ranks.size, 0
    return True, 1, dist.get_rank() if ranks.size > 1 else 0


def _combine_replicated(prints: Sequence[_Print], ranks: _Ranks, failure: Exception | None) -> int:
    """The sum where all ranks hold the same parameters. It takes one all-reduce, and another one if replicas differ."""
    names = sum(each.key for each in prints)
    total, difference, other_names, failures = _reduced(
        [
            sum(each.sum for each in prints if each.counted),
            sum(each.difference() for each in prints),
            names - (ranks.size * names if ranks.rank == 0 else 0),
            failure is not None,
        ],
        ranks,
    )
    if failures:
        raise failure or ValueError("group: another rank of it could not take the fingerprint of its parameters")
    if other_names:
        raise ValueError(
            "replicated: the ranks of the group hold parameters of different names, shapes or dtypes; give "
            "replicated=False (and names=, if theirs are not those in the whole)"
        )
    if difference:
        in_order = sorted(prints)
        differences = _reduced([each.difference() for each in in_order], ranks)
        raise _differing([each.name for each, by in zip(in_order, differences, strict=True) if by])
    return total


def _combine_own(prints: Sequence[_Print], ranks: _Ranks, failure: Exception | None) -> int:
    """The sum where ranks hold different parameters. Every rank gets the names and hashes of all."""
    mine = ([(each.name, each.holders, each.sum, each.counted, each.difference()) for each in prints], failure is None)
    gathered: list[Any] = [None] * ranks.size
    dist.all_gather_object(gathered, mine, group=ranks.group)
    if not all(succeeded for _, succeeded in gathered):
        raise failure or ValueError("group: another rank of it could not take the fingerprint of its parameters")
    totals: dict[str, dict[int, int]] = {}  # for every name, the hash of each set of holders
    differing: dict[str, int] = {}
    for entries, _ in gathered:
        for name, holders, of_rank, counted, difference in entries:
            of_name = totals.setdefault(name, {})
            of_name[holders] = (of_name.get(holders, 0) + of_rank * counted) & MASK
            differing[name] = (differing.get(name, 0) + difference) & MASK
    unequal = [name for name, of_name in totals.items() if differing[name] or len(set(of_name.values())) > 1]
    if unequal:
        raise _differing(unequal)
    return sum(next(iter(of_name.values())) for of_name in totals.values()) & MASK


def _differing(names: Sequence[str]) -> ValueError:
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return ValueError(f"{shown}: replicas differ, the ranks of the group hold other values of the same elements")


_SHOWN = 6


def _reduced(numbers: Sequence[int], ranks: _Ranks) -> list[int]:
    """Sums over all ranks, modulo 2^64. They are taken in halves of 32 bits, whose sums never overflow."""
    halves = [half for number in numbers for half in (number & 0xFFFFFFFF, number >> 32 & 0xFFFFFFFF)]
    tensor = torch.tensor(halves, dtype=torch.int64, device=device_of(ranks.group))
    dist.all_reduce(tensor, group=ranks.group)
    found = tensor.tolist()
    return [(low + (high << 32)) & MASK for low, high in zip(found[::2], found[1::2], strict=True)]


def device_of(group: Any) -> torch.device:
    """A device whose tensors the group can reduce: the CPU if possible."""
    spread: Any = group or dist.group.WORLD
    kinds = _torch.group_devices(spread)
    if torch.device("cpu") in kinds:
        return torch.device("cpu")
    kind = kinds[0].type
    return torch.device(kind, torch.get_device_module(kind).current_device())
