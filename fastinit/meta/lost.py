"""Buffers without memory: where they are in a model, and what was found for them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils.weight_norm import WeightNorm

from fastinit.run.names import named_modules
from fastinit.run.parametrized import SpectralNorm

RECORDED = "recorded when it was built"


class Place(NamedTuple):
    """Where a module holds a tensor."""

    module: nn.Module
    own_name: str
    is_buffer: bool  # or a plain attribute

    def holder(self) -> dict[str, Any]:
        holder: dict[str, Any] = self.module._buffers if self.is_buffer else self.module.__dict__
        return holder


class Lost:
    """A buffer without memory (or a tensor that is a plain attribute): its places in the model, and its value."""

    def __init__(self, name: str, tensor: torch.Tensor) -> None:
        self.name = name
        self.tensor = tensor
        self.places: list[Place] = []
        self.blank: torch.Tensor | None = None  # stands in for it while modules compute
        self.value: torch.Tensor | None = None
        self.way = ""  # how the value was found; empty: it has not been found
        self.failed: list[str] = []

    @property
    def module(self) -> nn.Module:
        return self.places[0].module

    @property
    def own_name(self) -> str:
        return self.places[0].own_name

    def described(self) -> str:
        size = "x".join(map(str, self.tensor.shape)) or "scalar"
        kind = "buffer" if self.places[0].is_buffer else "attribute"
        failed = "".join(f"; {each}" for each in self.failed)
        return f"{self.name} ({kind} of {type(self.module).__name__}, {self.tensor.dtype}, {size}{failed})"


def lost_in(model: nn.Module) -> list[Lost]:
    """Buffers and plain attributes that are on meta, each object once, without weights that hooks compute."""
    found: dict[int, Lost] = {}
    for of in named_modules(model):
        module = of.module
        computed = {
            hook.name for hook in module._forward_pre_hooks.values() if isinstance(hook, (WeightNorm, SpectralNorm))
        }
        held = [(own_name, tensor, True) for own_name, tensor in module._buffers.items()]
        held += [(own_name, value, False) for own_name, value in module.__dict__.items() if own_name not in computed]
        for own_name, tensor, is_buffer in held:
            if not isinstance(tensor, torch.Tensor) or isinstance(tensor, nn.Parameter):
                continue
            if nn.parameter.is_lazy(tensor) or not tensor.is_meta:
                continue
            name = of.names_of(own_name)[0]
            found.setdefault(id(tensor), Lost(name, tensor)).places.append(Place(module, own_name, is_buffer))
    return list(found.values())
