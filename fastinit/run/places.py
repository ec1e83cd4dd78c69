"""Where a plan's row finds its tensor when the plan runs.

A plan follows its model: it never writes to a tensor that the model does not have any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from operator import is_
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from fastinit.distributed.flat import is_flat
from fastinit.errors import ParameterError
from fastinit.run.names import NamedModule, named_modules

if TYPE_CHECKING:
    from fastinit.run.parametrized import Computed


class Assignment(Protocol):
    """How to set a weight that is computed from originals: `prepare` finds their values, `commit` writes them."""

    def prepare(self, weight: torch.Tensor) -> object: ...

    def commit(self, prepared: object) -> None: ...


class Place:
    """A parameter or buffer `own_name` of a module; a tensor that was given; or a weight that is computed.

    `first` is the place of the parameter that this one is tied to, if it is tied.
    """

    __slots__ = ("_tensor", "computed", "first", "holder", "own_name")

    def __init__(
        self,
        tensor: torch.Tensor,
        holder: dict[str, Any],
        own_name: str,
        computed: Computed | None = None,
        first: Place | None = None,
    ) -> None:
        self._tensor = tensor
        self.holder = holder
        self.own_name = own_name
        self.computed = computed
        self.first = first

    @staticmethod
    def of_tensor(tensor: torch.Tensor) -> Place:
        """The place of a tensor that was given by itself, which never changes."""
        return Place(tensor, {"": tensor}, "")

    @staticmethod
    def of_computed(computed: Computed) -> Place:
        """The place of a weight that is set through its originals."""
        return Place(computed.weight, {"": computed.weight}, "", computed)

    @property
    def is_given(self) -> bool:
        """Whether it is a tensor that was given by itself."""
        return self.own_name == "" and self.computed is None

    @property
    def assignment(self) -> Assignment | None:
        """How to set the weight, if it is a computed one."""
        return None if self.computed is None else self.computed.setter

    def tensor(self) -> torch.Tensor:
        """The tensor that the model has now; if it has none of this name, the one that it had."""
        found = self.holder.get(self.own_name)
        return self._tensor if found is None else found

    def current(self, name: str) -> torch.Tensor:
        """The tensor that the model has now, to write to.

        Raises:
            ParameterError: the model has no such parameter any more, or computes it from others than planned.
        """
        if self.computed is not None and not self.computed.is_current():
            raise ParameterError(name, "is not computed as it was when it was planned; make a new plan")
        found = self.holder.get(self.own_name)
        if found is None:
            raise ParameterError(
                name, "its module has no parameter of this name any more (parametrised or removed); make a new plan"
            )
        tensor: torch.Tensor = found
        return tensor

    def check_tied(self, name: str) -> None:
        """Raise ParameterError unless a tied parameter is still the same object as the first one."""
        if self.first is not None and self.tensor() is not self.first.tensor():
            raise ParameterError(name, "was tied to another parameter when planned, and is not now; make a new plan")

    def check_kept(self, name: str, dtype: torch.dtype) -> None:
        """Raise ParameterError unless what is kept still has the dtype that the plan tells."""
        now = self.tensor().dtype
        if now != dtype:
            raise ParameterError(name, f"is kept, and was {dtype} when planned, but is {now} now; make a new plan")


class CurrentTensors:
    """The tensors that the model has now at the places of a plan's rows, to write to. Every run asks for all of them.

    They stay the same as long as every module has the parameters that it had at the last look. A few passes in C
    compare the parameters of all modules: looking each up by its name takes longer than filling a small one.
    """

    def __init__(self, named: Iterable[tuple[str, Place]]) -> None:
        self._named = list(named)
        # The holders' contents at the last look, and the tensors found. The object is replaced, never changed, since
        # several threads may run one plan.
        self._seen: _Seen | None = None

    def find(self) -> list[torch.Tensor]:
        """The tensors, in a list that is the same object as long as they are the same; nobody may change it.

        Raises:
            ParameterError: see Place.current.
        """
        seen = self._seen
        if seen is not None and seen.is_current():
            return seen.found
        # First what the holders have, then the tensors: what another thread changes in between is noticed next time.
        seen = None
        if all(place.computed is None for _, place in self._named):  # the others ask about more than their holder
            changing = (place.holder for _, place in self._named if not place.is_given)
            seen = _Seen(list({id(holder): holder for holder in changing}.values()))
        found = []
        for name, place in self._named:
            # The common case by itself, since a call costs more than all of it.
            tensor = place.holder.get(place.own_name) if place.computed is None else None
            found.append(place.current(name) if tensor is None else tensor)
        if seen is not None:
            seen.found = found
            self._seen = seen
        return found


class _Seen:
    """What holders have at one time, and the tensors that were found then."""

    def __init__(self, holders: list[dict[str, Any]]) -> None:
        self._holders = holders
        self._names = list(chain.from_iterable(holders))
        self._values = list(chain.from_iterable(map(dict.values, holders)))
        self.found: list[torch.Tensor] = []

    def is_current(self) -> bool:
        """Whether they still have the same names and values, in the same order."""
        return (
            sum(map(len, self._holders)) == len(self._names)
            and all(map(is_, chain.from_iterable(self._holders), self._names))
            and all(map(is_, chain.from_iterable(map(dict.values, self._holders)), self._values))
        )


class PlannedModules:
    """The modules of a model when it was planned. A run sees by them whether one was replaced, removed or renamed."""

    def __init__(self, modules: Sequence[NamedModule] = ()) -> None:
        self._planned = modules
        self._seen: _Seen | None = None

    def groups(self) -> dict[int, int]:
        """In how many groups modules compute, if in several, by the ids of what holds their parameters."""
        found = ((id(each.module._parameters), each.module.__dict__.get("groups")) for each in self._planned)
        return {holder: groups for holder, groups in found if isinstance(groups, int) and groups > 1}

    def check(self, named: Iterable[tuple[str, Place]]) -> None:
        """Raise ParameterError if a row's module is not in the model any more, or another one has its name now.

        Wrappers may have come since, or gone: they are no part of canonical names.
        """
        if not self._planned or (self._seen is not None and self._seen.is_current()):
            return
        now = named_modules(self._planned[0].module)
        seen = _Seen([each.module._modules for each in now if isinstance(each.module._modules, dict)])
        if len(now) != len(self._planned) or not all(map(_is_same, now, self._planned)):
            planned = {id(each.module._parameters): each.name for each in self._planned}
            is_there = {id(each.module._parameters) for each in now}
            holders = {each.name: id(each.module._parameters) for each in now}
            for name, place in named:
                holder = id(place.holder)
                if holder not in planned:  # of a weight that is computed, or of a part of a flat parameter
                    continue
                if holder not in is_there:
                    raise ParameterError(name, "its module is not in the model any more; make a new plan")
                if holders.get(planned[holder], holder) != holder:
                    raise ParameterError(name, "another module has the name of its module now; make a new plan")
        self._seen = seen


def _is_same(one: NamedModule, other: NamedModule) -> bool:
    return one.module is other.module and one.name == other.name


def place_of(module: nn.Module, own_name: str, tensor: torch.Tensor, first: Place | None = None) -> Place:
    """The place of a parameter of a module."""
    # A stand-in for a part of a flat parameter is in its module only inside `unflattened` (distributed/flat.py).
    holder = {own_name: tensor} if tensor.__dict__ and is_flat(tensor) else module._parameters
    return Place(tensor, holder, own_name, None, first)
