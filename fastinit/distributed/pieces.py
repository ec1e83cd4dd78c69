"""What a rank holds of a tensor: the global shape, and pieces of it in local memory. All kinds of shards give these."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch


class Box(NamedTuple):
    """A box of a global tensor that a rank holds: where it begins in the local and in the global tensor; its shape."""

    local: tuple[int, ...]
    begin: tuple[int, ...]
    shape: tuple[int, ...]


class Piece(NamedTuple):
    """A box of a global tensor that a rank holds, and its memory: a view that has the shape of the box.

    begin: the global index of the view's first element, one number a dimension.
    """

    begin: tuple[int, ...]
    tensor: torch.Tensor

    @property
    def box(self) -> Box:
        return Box((0,) * len(self.begin), self.begin, tuple(self.tensor.shape))


@dataclass(frozen=True)
class Held:
    """What this rank holds of a tensor.

    shape: the shape of the global tensor.
    pieces: what this rank holds of it. No element is in two of them.
    padding: views of local memory that belongs to no element. It becomes zero.
    mirrors: further memory of this rank with elements of the tensor, which is written, and does not count as held.
    ranks: the ranks of the default process group that hold the tensor together, in their order. Empty: nobody knows.
    groups: the sets of ranks that must take one seed, if none is given. None: `ranks` is the only one.
    copies: how many of `ranks` hold each element.
    is_first: whether this rank is the first of those that hold its elements.

    >>> held = Held(torch.Size((4, 3)), [Piece((2, 0), torch.empty(2, 3))])
    >>> held.pieces[0].box
    Box(local=(0, 0), begin=(2, 0), shape=(2, 3))
    """

    shape: torch.Size
    pieces: Sequence[Piece]
    padding: Sequence[torch.Tensor] = ()
    mirrors: Sequence[Piece] = ()
    ranks: Sequence[int] = ()
    groups: frozenset[frozenset[int]] | None = None
    copies: int = 1
    is_first: bool = True

    @staticmethod
    def flat(shape: Sequence[int], begin: int, memory: torch.Tensor) -> Held:
        """A range of the elements of a tensor, in row-major order, from index `begin` on.

        `memory` has one dimension and is contiguous. What lies in it beyond the tensor's last element is padding.

        >>> held = Held.flat((3, 4), 6, torch.empty(8))
        >>> [(piece.begin, tuple(piece.tensor.shape)) for piece in held.pieces], held.padding[0].shape
        ([((1, 2), (1, 2)), ((2, 0), (1, 4))], torch.Size([2]))
        """
        pieces, padding = pieces_of_range(shape, begin, memory)
        return Held(torch.Size(shape), pieces, padding)


def pieces_of_range(
    shape: Sequence[int], begin: int, memory: torch.Tensor
) -> tuple[list[Piece], tuple[torch.Tensor, ...]]:
    """The pieces in a flat range of a tensor's elements that begins at `begin`, and the padding behind the last."""
    numel = math.prod(shape)
    end = max(min(begin + memory.numel(), numel), begin)
    pieces, place = [], 0
    for at, of_box in _boxes_of_range(tuple(shape), min(begin, numel), min(end, numel)):
        length = math.prod(of_box)
        pieces.append(Piece(at, memory.narrow(0, place, length).view(of_box)))
        place += length
    return pieces, (memory.narrow(0, place, memory.numel() - place),) if place < memory.numel() else ()


_Sizes = tuple[int, ...]


def _boxes_of_range(shape: _Sizes, begin: int, end: int) -> list[tuple[_Sizes, _Sizes]]:
    """(begin, shape) of boxes with elements begin ... end in row-major order: one, and two for each outer dimension."""
    if begin >= end:
        return []
    if not shape:
        return [((), ())]
    inner = math.prod(shape[1:])
    first, last = -(-begin // inner), end // inner  # whole rows
    if first > last:  # within one row
        return _in_row(last, shape, begin - last * inner, end - last * inner)
    found = _in_row(first - 1, shape, begin - (first - 1) * inner, inner) if begin < first * inner else []
    if first < last:
        found.append(((first, *(0,) * (len(shape) - 1)), (last - first, *shape[1:])))
    return found + (_in_row(last, shape, 0, end - last * inner) if last * inner < end else [])


def _in_row(row: int, shape: _Sizes, begin: int, end: int) -> list[tuple[_Sizes, _Sizes]]:
    return [((row, *at), (1, *of_box)) for at, of_box in _boxes_of_range(shape[1:], begin, end)]
