"""What code gives a parameter: a draw, a constant, a pattern or a table, as its tape tells."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fastinit.capture.contexts import name_draws
from fastinit.capture.graph import Geometry, View, draws_of
from fastinit.capture.recorder import Recorder
from fastinit.capture.repeats import Repeats, inner
from fastinit.capture.tapes import Tape, Taped, distribution_of, is_complete
from fastinit.schemes.distributions import Constant, Distribution

Kind = Literal["draw", "constant", "pattern", "table", "unknown"]


class Author(NamedTuple):
    """What a module's own code gives a parameter.

    kind: "draw": random numbers. "constant": one value. "pattern": a known arrangement, such as a diagonal. "table":
        values that its code computes. "unknown": nothing is known.
    distribution: None if it is unknown.
    reason: the code that tells, or why none does.
    """

    kind: Kind
    distribution: Distribution | None
    reason: str


def author_of(tape: Tape, reason: str) -> Author:
    """The answer of a tape. `reason` says which code it is of."""
    distribution = distribution_of(tape)
    if isinstance(distribution, Taped) and tape.view.at.shape.numel() <= _FEW:
        return _looked_at(distribution, reason)
    if distribution.is_random():
        return Author("draw", distribution, reason)
    if isinstance(distribution, Constant):
        return Author("constant", distribution, reason)
    return Author("table" if isinstance(distribution, Taped) else "pattern", distribution, reason)


_FEW = 2**16  # elements that are soon computed; code that sets elements one by one sets fewer


def _looked_at(distribution: Taped, reason: str) -> Author:
    """The answer for the steps that make a small tensor: its values tell what the steps alone do not.

    Steps may overwrite all that random steps have drawn, element by element. The seed then changes nothing.
    """
    values = distribution.tape.replay(0)
    if distribution.is_random() and not torch.equal(values, distribution.tape.replay(1)):
        return Author("draw", distribution, reason)
    values = values.flatten()
    if values.numel() > 0 and not values.is_complex() and bool((values == values[0]).all()):
        return Author("constant", Constant(values[0].item()), reason)
    return Author("table", distribution, reason)


class ModuleTapes:
    """The tapes of one module's parameters, by their names in it, and which code each is of; None: no code sets it."""

    __slots__ = ("_authors", "_told", "names", "tapes")

    def __init__(self, tapes: dict[str, tuple[Tape, str] | None]) -> None:
        self.names = tuple(tapes)
        self.tapes = tapes
        self._authors: dict[str, Author] = {}
        self._told: Hashable = None

    def author(self, own_name: str) -> Author | None:
        """The answer for a parameter; None if its code does not set it."""
        found = self._authors.get(own_name)
        if found is None:
            tape = self.tapes.get(own_name)
            if tape is None:
                return None
            found = self._authors[own_name] = author_of(*tape)
        return found

    def agrees(self, other: ModuleTapes) -> bool:
        """Whether another module is given the same."""
        return self.told() is other.told() or (
            self.names == other.names and all(_agree(self.author(each), other.author(each)) for each in self.names)
        )

    def counts_calls(self) -> bool:
        """Whether random numbers of a parameter follow from the number of calls before, and not from its name."""
        tapes = (each[0] for each in self.tapes.values() if each is not None)
        return any(draw.model is None for tape in tapes for draw in draws_of(tape.view.node))

    def told(self) -> Hashable:
        """All answers."""
        if self._told is None:
            self._told = interned(tuple(
                (own_name, "unknown", None) if (found := self.author(own_name)) is None else (own_name, *found[:2])
                for own_name in self.names
            ))  # fmt: skip
        return self._told


def _agree(one: Author | None, other: Author | None) -> bool:
    if one is None or other is None or one.kind != other.kind or one.distribution == other.distribution:
        return one is other or (one is not None and other is not None and one[:2] == other[:2])
    both = one.distribution, other.distribution
    tables = [each.tape.replay(0) for each in both if type(each) is Taped and one.kind == "table"]
    return len(tables) == 2 and torch.equal(*tables)


def agree(repeats: Repeats, twins: Mapping[int, nn.Module], taped: Mapping[int, ModuleTapes]) -> bool:
    """Whether the layers that were read are all given the same, so that one of them can stand for those left out.

    twins: by the ids of the model's modules. taped: by the ids of twins.
    """
    # Some numbers follow from the calls before them, and only a whole twin makes all calls.
    if any(each.counts_calls() for each in taped.values()):
        return False
    for group in repeats.groups:
        first, *others = (twins[id(layer)] for layer in group.read())
        for each in zip(inner(first), *map(inner, others), strict=True):
            found = [taped[id(module)] for module in each if id(module) in taped]
            if found and not (len(found) == len(each) and all(map(found[0].agrees, found[1:]))):
                return False
    return True


class _Told:
    """Answers for all parameters of a module. Equal answers are one object, so that to compare them takes no time."""

    __slots__ = ("__weakref__", "answers")

    def __init__(self, answers: Any) -> None:
        self.answers = answers


_all_told: weakref.WeakValueDictionary[Any, _Told] = weakref.WeakValueDictionary()


def interned(answers: tuple[Any, ...]) -> Hashable:
    try:
        return _all_told.setdefault(answers, _Told(answers))
    except TypeError:  # a distribution of somebody else that cannot be hashed
        return _Told(answers)


def tapes_of_module(recorder: Recorder, module: nn.Module, reason: str, name_of: Callable[[str], str]) -> ModuleTapes:
    """The tapes of the parameters of a module. `name_of` gives their names in the model."""
    tapes: dict[str, tuple[Tape, str] | None] = {}
    for own_name, parameter in parameters_of(module).items():
        tape = _tape(recorder, parameter, name_of(own_name))
        tapes[own_name] = None if tape is None else (tape, reason)
    return ModuleTapes(tapes)


def _tape(recorder: Recorder, tensor: Tensor, name: str) -> Tape | None:
    """The tape of a tensor; None if nobody has written to all of it."""
    stored = recorder.stored(tensor)
    if stored is None:
        return None
    tape = Tape(View(stored.content, Geometry.of(tensor)), name, 0)
    if not is_complete(tape):
        return None
    name_draws(stored, 0, name)
    return tape


def parameters_of(module: nn.Module) -> dict[str, Tensor]:
    return {own_name: each for own_name, each in module._parameters.items() if each is not None}
