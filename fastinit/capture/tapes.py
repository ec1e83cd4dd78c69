"""Tapes: what a module remembers of how its tensors are made, and the distributions that tell it in a plan."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from fastinit.capture.calls import OVERWRITES, is_basic
from fastinit.capture.graph import Call, Changed, Fill, Geometry, Replay, View, chain_of, draws_of, is_written
from fastinit.run.composed import Source, writes
from fastinit.run.index_maps import box_of
from fastinit.run.targets import Target, begin_of
from fastinit.schemes.distributions import ZERO, Distribution, ZeroRow

_ATTRIBUTE = "_fastinit_tapes"


class Tape(NamedTuple):
    """How a tensor is made: its content, and its name in the model number `model` of the recording."""

    view: View
    name: str
    model: int

    def replay(self, seed: int) -> Tensor:
        """The tensor's values under the seed of its model."""
        return Replay(seed, self.model).tensor(self.view)


class _Tapes(dict[str, Tape]):
    """The tapes of a module, by the names of its tensors. Copies share them, and pickles leave them out."""

    def __deepcopy__(self, memo: Any) -> _Tapes:
        return _Tapes(self)

    def __reduce__(self) -> tuple[type[_Tapes], tuple[()]]:
        return _Tapes, ()


def keep_tape(module: nn.Module, own_name: str, tape: Tape) -> None:
    """Let a module remember how one of its tensors is made."""
    module.__dict__.setdefault(_ATTRIBUTE, _Tapes())[own_name] = tape


def tape_of(module: nn.Module, own_name: str) -> Tape | None:
    """What a module remembers of one of its tensors."""
    tapes: _Tapes | None = module.__dict__.get(_ATTRIBUTE)
    return None if tapes is None else tapes.get(own_name)


def has_tapes(module: nn.Module) -> bool:
    """Whether a module remembers how its tensors are made."""
    return bool(module.__dict__.get(_ATTRIBUTE))


def with_tapes(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Those of the modules that remember how their tensors are made."""
    return [module for module in modules if module.__dict__.get(_ATTRIBUTE)]


def drop_tape(module: nn.Module, own_name: str) -> None:
    """Let a module forget how one of its tensors is made."""
    module.__dict__.get(_ATTRIBUTE, {}).pop(own_name, None)


def drop_tapes(model: nn.Module) -> None:
    """Let all modules of a model forget."""
    for module in model.modules():
        module.__dict__.pop(_ATTRIBUTE, None)


def is_complete(tape: Tape) -> bool:
    """Whether the code has written to all of a tensor's memory."""
    return is_written(tape.view.node, _overwritten)


def _overwritten(call: Call) -> Geometry | None:
    if call.target is None:
        return None
    if call.function is Tensor.__setitem__:
        return Geometry.of(call.target.at.meta()[call.args[1]]) if is_basic(call.args[1]) else None
    return call.target.at if call.function in OVERWRITES or "out" in call.kwargs else None


@dataclass(frozen=True, eq=False)
class Taped(Distribution):
    """Values that other people's code computes: its steps are replayed on the CPU, and the result is rounded once."""

    tape: Tape
    takes_complex: ClassVar[bool] = True
    told_by_formula: ClassVar[bool] = False

    def _values(self) -> Tensor:
        """The values under seed 0, for what a plan prints; of complex ones both parts."""
        values = self.tape.replay(0).detach().resolve_conj()
        return (torch.view_as_real(values) if values.is_complex() else values).double()

    def mean(self) -> float:
        return float(self._values().mean())

    def std(self) -> float:
        return float(self._values().std(correction=0))

    def bounds(self) -> tuple[float, float]:
        values = self._values()
        return float(values.min()), float(values.max())

    def farthest(self) -> float:
        return 0.0  # its author's business

    def is_random(self) -> bool:
        return bool(draws_of(self.tape.view.node))

    def of_parts(self) -> tuple[Taped, Taped]:
        return self, self  # a replay makes complex values like any others

    def __str__(self) -> str:
        return f"{'random steps' if self.is_random() else 'a table'}, by its author's code"


@writes(Taped)
def _taped(target: Target, distribution: Taped, source: Source, later: Any) -> None:
    values = distribution.tape.replay(source.seed if distribution.is_random() else 0)
    if target.begin is not None:
        values = box_of(values, begin_of(target), target.tensor.shape)
    target.tensor.detach().copy_(values)


def distribution_of(tape: Tape) -> Distribution:
    """The distribution of a recorded tensor: one of the usual kinds where its steps leave it one, else its tape."""
    view = tape.view
    base, calls = chain_of(view.node)
    if isinstance(base, Fill) and _is_own(base, tape):
        if not calls:
            return base.distribution
        if len(calls) == 1 and (row := _zeroed_row(view.node, view.at)) is not None:
            return ZeroRow(row, view.at.shape[0], base.distribution)
    return Taped(tape)


def _is_own(fill: Fill, tape: Tape) -> bool:
    """Whether a tensor is all of what a distribution was written to, and the first to be named after it."""
    draw, view = fill.draw, tape.view
    is_named = draw.seed is None and (draw.name, draw.model) == (tape.name, tape.model)
    if fill.distribution.is_random() and not is_named:
        return False
    if fill.at.shape == view.at.shape and fill.at.strides == view.at.strides:
        return True
    return fill.distribution.same_everywhere and fill.at.shape.numel() == view.at.shape.numel()


def _zeroed_row(node: Any, at: Geometry) -> int | None:
    """The row of a tensor that one call sets to zero; None if the call does something else."""
    assert isinstance(node, Changed)
    call = node.call
    target = call.target
    if target is None or len(at.shape) < 2 or at.strides != _packed(at.shape) or at.offset != 0:
        return None
    source = call.args[1] if len(call.args) > 1 else None
    row = None
    if call.function is Tensor.copy_ and isinstance(source, View) and isinstance(source.node, Fill):
        if source.node.distribution == ZERO and target.at.shape == at.shape[1:]:
            row = target.at.offset // at.strides[0]
    elif call.function is Tensor.__setitem__ and type(source) is int and target.at.shape == at.shape:
        value = call.args[2] if len(call.args) == 3 else None
        row = source % at.shape[0] if value in (0, 0.0) and not isinstance(value, View) else None
    packed = target.at.strides == _packed(at.shape)[-len(target.at.shape) :]
    return row if packed else None


def _packed(shape: torch.Size) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))
