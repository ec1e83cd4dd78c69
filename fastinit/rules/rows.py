"""The row of a parameter that is written, and rows made from it for parameters that differ in name and place alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastinit.distributed.held import global_shape
from fastinit.errors import NAMELESS, FanWarning, warn
from fastinit.plans.overwritten import Guess
from fastinit.plans.rows import Row, boxes_of
from fastinit.rules.resolve import Resolver
from fastinit.rules.roles import Treatment
from fastinit.run.memory import check_tensor, is_usual
from fastinit.run.places import Place


class RowMaker:
    """Makes the rows of parameters that are written, and collects warnings about them."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolve = resolver
        self.warnings: list[str] = []
        self.disagreements: list[str] = []

    def row(
        self,
        name: str,
        own_name: str,
        module: nn.Module | None,
        tensor: torch.Tensor,
        treatment: Treatment,
        place: Place,
        kind: str = "",
    ) -> KnownRow:
        """The row. It is settled if equal parameters get an equal one, except for name and place, in all modules with
        equal looks of which authors' code says the same.
        """
        scheme = treatment.scheme
        assert scheme is not None
        boxes = None
        if is_usual(tensor):
            shape = tensor.shape
        else:
            check_tensor(tensor, name)
            shape, boxes = global_shape(tensor, name), boxes_of(tensor, name)
        fans = distribution = None
        reason, dtype = treatment.reason, tensor.dtype
        is_settled, disagreement = True, None
        if 0 in shape:
            reason = "empty"
        else:
            found = self._resolve(name, own_name, module, shape, dtype, treatment)
            fans, distribution = found.fans, found.distribution
            unsettled = found.asked
            if unsettled and treatment.told:
                unsettled -= _TOLD
            if unsettled and len(shape) == 2:
                unsettled -= _OF_MATRICES
            is_settled = not (unsettled or found.warning)
            if found.warning is not None:
                self.warnings.append(f"{name or NAMELESS}: {found.warning}")
            if found.disagreement is not None:
                by_torch, by_module, maps = found.disagreement
                of_maps = f" to each of its {maps} maps" if maps > 1 else ""
                disagreement = f"{by_torch:.3g} and {by_module:.3g}{of_maps}"
                self.disagreements.append(f"{name} {disagreement}")
        frozen = module is not None and not tensor.requires_grad
        what = shape, dtype, tensor.device, reason, place, scheme, fans, distribution, True, frozen, boxes
        made = KnownRow(Row(name, "init", kind, *what), is_settled, disagreement)
        made.is_of_any_shape = treatment.told and distribution is not None and distribution.same_everywhere
        return made

    def again(self, known: KnownRow, name: str, place: Place) -> Row:
        """The row of another parameter, equal to that of a settled one."""
        if known.disagreement is not None:
            self.disagreements.append(f"{name} {known.disagreement}")
        return known.at(name, place)

    def warn(self) -> None:
        if self.warnings:
            more = f"; and {len(self.warnings) - _SHOWN} more" if len(self.warnings) > _SHOWN else ""
            warn("; ".join(self.warnings[:_SHOWN]) + more)
        if self.disagreements:
            more = f" and {len(self.disagreements) - _SHOWN} more" if len(self.disagreements) > _SHOWN else ""
            warn(
                "the std depends on the convention for fans: fan='torch', the default, reads the shape, and "
                f"fan='module' what the module computes. They give {', '.join(self.disagreements[:_SHOWN])}{more}; "
                "pass the fan= that you mean",
                FanWarning,
            )


class KnownRow:
    """The row of a parameter, and of those that differ from it in nothing but name and place.

    is_settled: whether there are such parameters. disagreement: what a warning of two conventions for fans tells of it.
    guess: what `Survey.guessed` says of them. is_of_any_shape: whether the row also fits non-empty parameters of other
    shapes, because their author's code gives every element the same distribution.
    """

    __slots__ = ("_fields", "device", "disagreement", "dtype", "guess", "is_of_any_shape", "is_settled", "row")

    def __init__(self, row: Row, is_settled: bool, disagreement: str | None) -> None:
        self.row = row
        self.is_settled = is_settled
        self.disagreement = disagreement
        self.guess: Guess | None = None
        self.is_of_any_shape = False
        self.dtype = row.dtype
        self.device = row.device
        self._fields: list[Any] = list(row)

    def at(self, name: str, place: Place) -> Row:
        """The row of another one of the parameters."""
        fields = self._fields
        fields[0] = name
        fields[_PLACE] = place
        return tuple.__new__(Row, fields)

    def of_shape(self, shape: torch.Size) -> KnownRow:
        """The row for another shape, made from a row that fits any shape."""
        known = KnownRow(self.row._replace(shape=shape), self.is_settled, self.disagreement)
        known.guess = self.guess
        return known


_TOLD = frozenset({"author"})
_OF_MATRICES = frozenset({"geometry", "geometry by module", "own_name"})  # modules with equal looks answer alike
_PLACE = Row._fields.index("place")
_SHOWN = 6
