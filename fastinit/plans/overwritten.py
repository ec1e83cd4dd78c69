"""Warnings of what a run overwrites, though somebody seems to have set it. Values are looked at, and decide nothing."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastinit._torch import version_of
from fastinit.distributed.held import local_tensor
from fastinit.errors import ConstantWarning, ZerosWarning, warn
from fastinit.plans.rows import Row
from fastinit.run.memory import USUAL_TYPES
from fastinit.schemes.distributions import Constant, Distribution


class Guess(NamedTuple):
    """What a parameter is taken for that no rule tells.

    role: "author" if its author's code tells. is_of_zeros, is_empty: whether its constructor makes it of zeros, or of
    memory that it does not write to. Such memory holds by chance what somebody else has left there.
    """

    role: str
    is_of_zeros: bool = False
    is_empty: bool = False


def warn_of_overwritten(rows: Sequence[Row], tensors: Sequence[Tensor], guessed: Mapping[str, Guess]) -> None:
    """Warn of maps that were zero, constant or a pattern, and of constants that become other ones.

    guessed: by the name of what is looked at. All others are told by rules, or drawn by their authors. Only values on
    the CPU are looked at, and nearly always no more than the first few of a tensor.
    """
    zeros: list[str] = []
    drawn: list[tuple[str, str]] = []
    biases: list[tuple[str, str]] = []
    others: list[tuple[str, str]] = []
    usual: dict[tuple[str, int, torch.dtype], bytes | None] = {}
    for row, tensor in zip(rows, tensors, strict=True):
        guess = guessed.get(row.name)
        if guess is None or not tensor.is_cpu:
            continue
        is_new = version_of(tensor) == 0
        if is_new and guess.is_empty:
            continue
        role, distribution = guess.role, row.distribution
        key = role, id(distribution), row.dtype
        if key in usual:
            held = usual[key]
        else:
            held = usual[key] = _usual(role, distribution, row.dtype)
        if held == b"":
            continue
        local = tensor if row.boxes is None and type(tensor) in USUAL_TYPES else local_tensor(tensor)
        if _looks_random(local) if held is None else local.numel() > 0 and _first(local) == held:
            continue  # as nearly always
        if local.numel() == 0 or (role == "bias" and row.place.computed is not None):
            continue  # nobody looks at the originals of a bias
        becomes = distribution.value if type(distribution) is Constant else None
        local = local.detach()
        value = _constant(local)
        if value is None:
            if role == "map" and _is_pattern(local, is_new=is_new):
                drawn.append((row.name, "a pattern"))
        elif value == 0.0 and is_new and not guess.is_of_zeros:
            continue  # new memory may be zero by itself
        elif becomes is None:
            if value == 0.0:
                zeros.append(row.name)
            else:
                drawn.append((row.name, f"{value:.6g}"))
        elif value != becomes and not _is_meaningless(row, role, value):
            if role == "bias" and becomes == 0.0:
                biases.append((row.name, f"{value:.6g}"))
            else:
                others.append((row.name, f"{value:.6g}, now {becomes:.6g}"))
    if zeros:
        warn(
            f"these linear maps were all zero, and are drawn now: {listed(zeros)}; if their author meant zeros, "
            'give them a rule with "zeros", or KEEP',
            ZerosWarning,
        )
    if not (drawn or biases or others) or _are_filled(tensors):
        return
    for what, found in (
        ("linear maps held one value, or a pattern such as a diagonal, and are drawn now", drawn),
        ("biases held one value, and are zero now", biases),
        ("parameters held one value, and hold another now", others),
    ):
        if found:
            shown = listed([f"{name} ({held})" for name, held in found])
            warn(
                f"these {what}: {shown}; if their author meant it, give them a rule with Constant, or KEEP",
                ConstantWarning,
            )


_CONSTANT = ("bias", "scale", "author")  # what is looked at, if it becomes constant; all else are maps and tables
MOST_LISTED = 100


def listed(names: Sequence[str]) -> str:
    """Names in a warning, which whoever reads it by program looks for: all of them, unless there are very many."""
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return ", ".join(names[:MOST_LISTED]) + more


def _first(local: Tensor) -> bytes:
    """The first element as it lies in memory."""
    return ctypes.string_at(local.data_ptr(), local.dtype.itemsize)


def _bytes_of(value: float, dtype: torch.dtype) -> bytes:
    """A number as it lies in memory."""
    held = torch.tensor([value], dtype=dtype, device="cpu")
    return _first(held)


def _usual(role: str, distribution: Distribution | None, dtype: torch.dtype) -> bytes | None:
    """The constant that what gets it holds nearly always; None: of what is drawn; empty: of what is not looked at."""
    if distribution is None or not dtype.is_floating_point:
        return b""
    if role in _CONSTANT:
        return _bytes_of(distribution.value, dtype) if type(distribution) is Constant else b""
    return None if distribution.is_random() else b""


def _looks_random(local: Tensor) -> bool:
    """Whether the first elements of a map, and the one below the first, are all different numbers: it is no constant
    and no pattern. Eight bits are too few to tell."""
    size, numel = local.dtype.itemsize, local.numel()
    if numel < 4 or size < 2 or not local.is_contiguous():
        return False
    begin, below = local.data_ptr(), numel // local.shape[0]
    head = ctypes.string_at(begin, 4 * size)
    first = head[:size]
    if len({first, head[size : 2 * size], head[2 * size : 3 * size], head[3 * size :]}) < 4:
        return False
    return below == numel or first != ctypes.string_at(begin + below * size, size)


def _constant(local: Tensor) -> float | None:
    """The value that all elements have, if it is one."""
    if local.is_contiguous():
        size = local.dtype.itemsize
        if _first(local) != ctypes.string_at(local.data_ptr() + local.nbytes - size, size):
            return None
        pieces: Iterator[Tensor] = iter(torch.split(local.view(-1), _PIECE))
    else:
        pieces = iter(torch.split(local, max(1, _PIECE * len(local) // local.numel())))
    value = local[(0,) * local.dim()]
    return value.item() if all(bool((piece == value).all()) for piece in pieces) else None


_PIECE = 2**18  # asked for all elements at once, torch keeps a byte of each answer


def _is_pattern(local: Tensor, *, is_new: bool) -> bool:
    """Whether a map has few values, as the identity and other diagonals, or equal rows or columns. No draw does.

    Some elements tell, far apart: a part that is zero, such as a row for padding, is not enough. is_new: whether
    nothing has been written to it, so that it may hold what was in its memory before.
    """
    if not local.is_contiguous() or local.dim() < 2 or local.numel() < 4 or local.dtype.itemsize < 2:
        return False
    values = _sample(local, 64)
    is_few = len(set(values)) <= max(2, len(values) // 4)
    if is_new:
        held = set(_sample(local, 4096)) - {0.0}
        return is_few and 0 < len(held) <= 16 and all(1e-6 < abs(each) < 1e6 for each in held)
    return is_few or any(
        len(rows) > 2 and all(torch.equal(rows[0], rows[at]) for at in (1, len(rows) // 2, -1))
        for rows in (local, local.transpose(0, 1))
    )


def _sample(local: Tensor, most: int) -> list[float]:
    sample: list[float] = local.view(-1)[:: -(-local.numel() // most)].tolist()
    return sample


def _is_meaningless(row: Row, role: str, value: float) -> bool:
    """Whether a constant tells nothing: the ones that torch gives every norm, also one that computes 1 + w; and a
    single element, if it may have been drawn, as torch draws a bias from U[-b, b] with b^-2 inputs, or trained."""
    if role == "scale" and value == 1.0:
        return True
    if row.numel > 1:
        return row.held == 1
    maps = (each for each in row.place.holder.values() if isinstance(each, Tensor) and each.dim() > 1)
    bound = max((each[0].numel() ** -0.5 for each in maps if each.numel() > 0), default=0.0)
    return role == "author" or abs(value) <= 1.01 * bound


def _are_filled(tensors: Sequence[Tensor]) -> bool:
    """Whether all tensors, or all of several maps, hold one value: somebody has filled the memory, and meant none."""
    local = [local_tensor(tensor).detach() for tensor in tensors if tensor.is_cpu]
    maps = [each for each in local if each.dim() > 1]
    return _hold_one(local) or (len(maps) > 1 and _hold_one(maps))


def _hold_one(tensors: Sequence[Tensor]) -> bool:
    held = set()
    for local in tensors:
        value = _constant(local) if local.numel() > 0 else None
        if value is not None:
            held.add(f"{value:.4g}")
        if len(held) > 1 or (value is None and local.numel() > 0):
            return False
    return True
