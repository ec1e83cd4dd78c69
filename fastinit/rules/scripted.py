"""Modules of torch.jit, seen as those that they were made from: rules know modules by their classes and attributes."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from fastinit._torch import list_weights


def seen_through(model: nn.Module, modules: Iterable[nn.Module]) -> nn.Module:
    """A model of the same parameters and buffers whose modules are plain ones; the model itself if all of its are.

    `modules` are all of the model. A module of torch.jit has no class but `RecursiveScriptModule`, and its parameters
    are in no dict. What its class was is known by name.

    Raises:
        TypeError: a traced module, of whose attributes nothing is left.
    """
    kinds: set[Any] = set(map(type, modules))
    if not any(issubclass(kind, torch.jit.ScriptModule) for kind in kinds):
        return model
    return _plain(model, {})


def _plain(module: nn.Module, known: dict[int, nn.Module]) -> nn.Module:
    if id(module) in known:
        return known[id(module)]
    original = _original(str(module.original_name)) if isinstance(module, torch.jit.ScriptModule) else type(module)
    seen: nn.Module = known.setdefault(id(module), object.__new__(original))
    if original is type(module):
        seen.__dict__.update(module.__dict__)
    else:
        nn.Module.__init__(seen)
        for name in (*getattr(original, "__constants__", ()), "transposed"):
            if hasattr(module, name):
                seen.__dict__[name] = getattr(module, name)
            elif name != "transposed" and isinstance(module, torch.jit.TracedModule):  # type: ignore[attr-defined]
                raise TypeError(
                    f"model: expected modules with their attributes, got a {original.__name__} of torch.jit.trace, "
                    "which keeps none; initialise the module that it was made from, and trace it then"
                )
        seen.__dict__["_parameters"] = dict(module._parameters.items())
        seen.__dict__["_buffers"] = dict(module._buffers.items())
        if isinstance(seen, nn.RNNBase):
            list_weights(seen)
    children = {name: None if each is None else _plain(each, known) for name, each in module._modules.items()}
    seen.__dict__["_modules"] = children
    return seen


@lru_cache(maxsize=4096)
def _original(name: str) -> type[nn.Module]:
    """The class of torch.nn of this name, or one of that name of which nothing else is known."""
    found: Any = getattr(nn, name, None)
    return found if isinstance(found, type) and issubclass(found, nn.Module) else type(name, (nn.Module,), {})
