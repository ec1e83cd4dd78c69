"""Stand-ins for the tensors of a model on the meta device, so that the code of its modules can compute on the CPU."""

from __future__ import annotations

import copy
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from fastinit._torch import wraps_others
from fastinit.meta.lost import Lost

# Every byte of a stand-in has this value until somebody writes to it.
_BLANK = 0xA5


def _blank(like: torch.Tensor) -> torch.Tensor:
    size = like.numel() * like.element_size()
    return torch.full((size,), _BLANK, dtype=torch.uint8, device="cpu").view(like.dtype).view(like.shape)


def is_written(blank: torch.Tensor) -> bool:
    """Whether every element of a stand-in was written, or for elements of one byte, whether any was.

    A written byte may happen to equal the blank.
    """
    same = blank.reshape(-1).view(torch.uint8).view(-1, blank.element_size()) == _BLANK
    whole = same.all(dim=1)
    return not bool(whole.all() if blank.element_size() == 1 else whole.any())


@contextmanager
def stand_ins(modules: Sequence[nn.Module], lost: Sequence[Lost]) -> Iterator[None]:
    """Give the modules stand-ins for their tensors, and put everything back afterwards.

    Buffers on meta become blank memory on the CPU, other buffers copies, and parameters are on meta.
    """
    kinds = ("_parameters", "_buffers", "_modules")
    before = [
        (
            module,
            dict(module.__dict__),
            [dict(module.__dict__[kind]) for kind in kinds],
            set(module._non_persistent_buffers_set),
        )
        for module in modules
    ]
    instead: dict[int, torch.Tensor] = {}
    for each in lost:
        each.blank = instead[id(each.tensor)] = _blank(each.tensor)

    def stand_in(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in instead:
            instead[id(tensor)] = _twin(tensor)
        return instead[id(tensor)]

    try:
        for module in modules:
            for holder in (module._parameters, module._buffers, module.__dict__):
                for own_name, value in holder.items():
                    if isinstance(value, torch.Tensor):
                        holder[own_name] = stand_in(value)  # type: ignore[assignment]
            for own_name, value in module.__dict__.items():
                if own_name not in kinds:
                    module.__dict__[own_name] = _copied(value)
        yield
    finally:
        for module, attributes, held, transient in before:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for kind, members in zip(kinds, held, strict=True):
                module.__dict__[kind].clear()
                module.__dict__[kind].update(members)
            module._non_persistent_buffers_set.clear()
            module._non_persistent_buffers_set.update(transient)


def _copied(value: Any) -> Any:
    """A copy of a container and of those within it, because a module's code may write to them."""
    if type(value) in (list, set, deque):
        return type(value)(map(_copied, value))
    if type(value) in (dict, OrderedDict):
        return type(value)((key, _copied(each)) for key, each in value.items())
    return copy.copy(value) if isinstance(value, (list, dict, set, deque, bytearray, np.ndarray)) else value


class _StandIn(nn.Parameter):
    """A parameter without memory."""


class OnCpu(TorchFunctionMode):
    """Tells code that asks a stand-in for its device, to compute buffers there, that it is the CPU."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function == _DEVICE and isinstance(args[0], _StandIn):
            return torch.device("cpu")
        return function(*args, **(kwargs or {}))


_DEVICE: Any = getattr(torch.Tensor, "device").__get__  # noqa: B009 (typed as a device)


@torch.no_grad()
def _twin(tensor: torch.Tensor) -> torch.Tensor:
    """A stand-in to write to freely: for a parameter one without memory, for a buffer a copy."""
    if nn.parameter.is_lazy(tensor):
        return tensor
    if isinstance(tensor, nn.Parameter) or tensor.is_meta or wraps_others(tensor):
        empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        if not isinstance(tensor, nn.Parameter):
            return empty
        twin = _StandIn(empty, requires_grad=tensor.requires_grad)
        twin.__dict__.update(tensor.__dict__)
        return twin
    return tensor.detach().to("cpu", copy=True)


def put_blank(each: Lost) -> None:
    """Put the stand-in of a lost buffer back into all its places, as if nobody had written to it."""
    assert each.blank is not None
    each.blank.view(-1).view(torch.uint8).fill_(_BLANK)
    for place in each.places:
        place.holder()[place.own_name] = each.blank
