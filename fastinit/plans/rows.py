"""A row of a plan: what becomes of one parameter, and which targets this process writes for it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch

from fastinit.distributed.held import held_of
from fastinit.distributed.pieces import Box, Held
from fastinit.errors import ParameterError
from fastinit.run.places import Place
from fastinit.run.targets import Target
from fastinit.schemes.base import Scheme
from fastinit.schemes.distributions import Constant, Distribution
from fastinit.schemes.fans import Fans

Action = Literal["init", "keep", "tied", "buffer", "original"]


class Row(NamedTuple):
    """One parameter or buffer of a plan. Two rows are equal if all their fields except `place` are equal.

    name: the canonical name. Together with the seed, it decides the random numbers.
    action: "init": the parameter is written. "keep": it keeps its values. "tied": it is tied to another parameter.
        "buffer": a buffer, which is kept. "original": a parametrised weight is computed from it, and writing the weight
        sets it.
    kind: the class of the module that holds the parameter ("Linear"); empty for a tensor of a list.
    shape: the global shape; None for a lazy parameter that has none yet.
    boxes: the parts of a distributed tensor that this rank holds; None for any other tensor.
    scheme: a tuple if fused blocks have a scheme each.
    covered: false if no rule and no role decided.
    frozen: whether the parameter is not trained.
    place: where a run finds the tensor. It is neither compared nor printed.
    """

    name: str
    action: Action
    kind: str
    shape: torch.Size | None
    dtype: torch.dtype
    device: torch.device
    reason: str
    place: Place
    scheme: Scheme | tuple[Scheme, ...] | None = None
    fans: Fans | None = None
    distribution: Distribution | None = None
    covered: bool = True
    frozen: bool = False
    boxes: tuple[Box, ...] | None = None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Row):
            return NotImplemented
        return self._replace(place=_NOWHERE)[:] == other._replace(place=_NOWHERE)[:]

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((self.name, self.action, self.reason))

    @property
    def tensor(self) -> torch.Tensor:
        """The tensor as the model has it now."""
        return self.place.tensor()

    @property
    def numel(self) -> int:
        """The number of elements of the whole tensor; 0 if it is lazy."""
        return 0 if self.shape is None else self.shape.numel()

    @property
    def held(self) -> int:
        """The number of elements that this rank holds."""
        return self.numel if self.boxes is None else sum(math.prod(box.shape) for box in self.boxes)

    def at(self, tensor: torch.Tensor) -> Row:
        """The row for another tensor of the same name."""
        return self._replace(place=Place.of_tensor(tensor))


_NOWHERE = Place.of_tensor(torch.empty(0, device="cpu"))


def boxes_of(tensor: torch.Tensor, name: str) -> tuple[Box, ...] | None:
    """The boxes of a distributed tensor that this rank holds; None for any other tensor.

    Raises:
        ParameterError: its kind of shards refuses it.
    """
    held = held_of(tensor, name)
    return None if held is None else tuple(piece.box for piece in held.pieces)


def targets_of(row: Row, tensor: torch.Tensor) -> list[Target]:
    """The targets that this process writes for a row: the whole tensor, or the boxes in the rank's local tensor.

    Raises:
        ParameterError: the tensor is not as planned, or `boxes_of` raises it.
    """
    if row.action != "init" or row.distribution is None:
        return []
    held = held_of(tensor, row.name)
    shape, dtype, device = tensor.shape if held is None else held.shape, tensor.dtype, tensor.device
    if held is None and row.boxes is None and dtype is row.dtype and device == row.device and shape == row.shape:
        # Nearly all tensors come this way. Made by tuple's own function, the target takes a third of the time.
        return [tuple.__new__(Target, (row.name, tensor, shape, dtype, device, row.distribution, None, None))]
    was_distributed = row.boxes is not None
    same_device = device == row.device or held is not None or row.device.type == "meta"
    if shape != row.shape or dtype != row.dtype or not same_device or (was_distributed and held is None):
        planned = f"{_shown(row.shape)} {row.dtype} on {row.device}{' in shards' if was_distributed else ''}"
        raise ParameterError(
            row.name,
            f"planned as {planned}, is now {_shown(shape)} {dtype} on {device}; make a new plan",
        )
    if held is None:
        return [Target(row.name, tensor, shape, dtype, device, row.distribution)]
    return list(_targets_of_pieces(row.name, held, row.distribution))


def _targets_of_pieces(name: str, held: Held, distribution: Distribution) -> Iterator[Target]:
    for piece in (*held.pieces, *held.mirrors):
        local = piece.tensor
        begin = None if local.shape == held.shape else piece.begin
        yield Target(name, local, held.shape, local.dtype, local.device, distribution, None, begin)
    for each in held.padding:
        yield Target(name, each, each.shape, each.dtype, each.device, Constant(0.0))


def _shown(shape: torch.Size | None) -> str:
    return "lazy" if shape is None else str(tuple(shape))
