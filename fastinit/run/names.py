"""Canonical names of parameters: without the components that wrappers add, and renamed in parts of models."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import nn

# Attributes under which wrappers keep the module that they wrap. Nobody else uses these names. They are from
# torch.compile, FSDP1, activation checkpointing and Lightning Fabric.
_RESERVED = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})
# Wrappers that keep it under `module`. Any model may use that name, so these wrappers are known by the names of their
# classes: torch's, and those of apex, DeepSpeed and Megatron-LM.
_WRAPPERS = frozenset(
    {
        "DistributedDataParallel",
        "DataParallel",
        "FullyShardedDataParallel",
        "AveragedModel",
        "DeepSpeedEngine",
        "PipelineEngine",
        "Float16Module",
    }
)
_PARAMETRIZED = re.compile(r"(^|\.)parametrizations\.([^.]+)\.original(\d*)$")


class NamedModule(NamedTuple):
    """A module of a model: its name as `named_modules()` gives it, and its canonical name."""

    full_name: str
    name: str
    module: nn.Module

    def names_of(self, own_name: str) -> tuple[str, str]:
        """(canonical name, full name) of the parameter or buffer `own_name` of this module."""
        full_name, name, _ = self
        full_name_of = f"{full_name}.{own_name}" if full_name else own_name
        name_of = full_name_of if name is full_name else f"{name}.{own_name}" if name else own_name
        return _unparametrized(name_of) if "parametrizations." in name_of else name_of, full_name_of


def named_modules(model: nn.Module) -> list[NamedModule]:
    """All modules of a model, each once, in the order of `named_modules()`.

    A canonical name is the full name without the components that wrappers add: `module` where the module above is a
    wrapper (DistributedDataParallel, DataParallel, FSDP1, ...), `_orig_mod`, `_fsdp_wrapped_module`,
    `_checkpoint_wrapped_module` and `_forward_module` anywhere. A model's own attribute `module` keeps its name.
    """
    found: list[NamedModule] = []
    _walk(model, "", "", set(), found)
    return found


def _walk(module: nn.Module, full_name: str, name: str, seen: set[nn.Module], found: list[NamedModule]) -> None:
    """Add a module and all below it to what was found."""
    if module in seen:
        return
    seen.add(module)
    # To make the tuple by its own function takes twice the time, and every plan makes one for every module.
    found.append(tuple.__new__(NamedModule, (full_name, name, module)))
    for own_name, child in module._modules.items():
        if child is None:
            continue
        below = f"{full_name}.{own_name}" if full_name else own_name
        if own_name in _RESERVED or (own_name == "module" and is_wrapper(module)):
            _walk(child, below, name, seen, found)
        elif name is full_name:
            _walk(child, below, below, seen, found)
        else:
            _walk(child, below, f"{name}.{own_name}" if name else own_name, seen, found)


def is_wrapper(module: nn.Module) -> bool:
    """Whether a module wraps another one that it keeps under the name `module`."""
    return any(kind.__name__ in _WRAPPERS for kind in type(module).__mro__)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside all wrappers; a model without wrappers as it is."""
    while True:
        inner = next((model._modules[each] for each in _RESERVED if each in model._modules), None)
        if inner is None and is_wrapper(model):
            inner = model._modules.get("module")
        if inner is None:
            return model
        model = inner


def named_parameters(model: nn.Module, *, ties: bool = False) -> Iterator[tuple[str, str, nn.Parameter]]:
    """(canonical name, full name, parameter) of every parameter, in the order of `named_parameters()`.

    Each parameter comes once, under its first name; with `ties`, under all of its names.
    """
    seen: set[int] = set()
    for each in named_modules(model):
        for own_name, parameter in each.module._parameters.items():
            if parameter is not None and (ties or id(parameter) not in seen):
                seen.add(id(parameter))
                yield *each.names_of(own_name), parameter


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers of a model, each once, under the first of its canonical names."""
    seen: set[int] = set()
    found: dict[str, torch.Tensor] = {}
    for each in named_modules(model):
        for own_name, tensor in [*each.module._parameters.items(), *each.module._buffers.items()]:
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                found[each.names_of(own_name)[0]] = tensor
    return found


def canonical_name(name: str) -> str:
    """A name without the components that only wrappers use.

    `_orig_mod`, `_fsdp_wrapped_module`, `_checkpoint_wrapped_module` and `_forward_module` are dropped wherever they
    stand; `parametrizations.weight.original` becomes `weight`, and `parametrizations.weight.original1` becomes
    `weight.1`.

    >>> canonical_name("_orig_mod.layers.0._checkpoint_wrapped_module.mlp.weight")
    'layers.0.mlp.weight'
    """
    parts = name.split(".")
    if not _RESERVED.isdisjoint(parts):
        name = ".".join(part for part in parts if part not in _RESERVED)
    return _unparametrized(name) if "parametrizations." in name else name


def _unparametrized(name: str) -> str:
    match = _PARAMETRIZED.search(name)
    if match is None:
        return name
    dot, tensor_name, number = match.groups()
    return name[: match.start()] + dot + tensor_name + (f".{number}" if number else "")


Renaming = Mapping[str, str] | Callable[[str], str]


class Renamer:
    """Turns canonical names in a part of a model (a pipeline stage, the experts of a rank) into those in the whole.

    `names` is a function, or a mapping from names or from beginnings of names up to a dot. The longest beginning that
    fits is replaced. None leaves every name as it is.

    Raises:
        TypeError: `names` is neither, or gives something else than a name. The message says for which name.

    >>> Renamer({"layers.0": "layers.24"})("layers.0.weight")
    'layers.24.weight'
    """

    def __init__(self, names: Renaming | None) -> None:
        if not (names is None or isinstance(names, Mapping) or callable(names)):
            raise TypeError(f"names: expected a mapping of names or a function of one, got {type(names).__name__}")
        if isinstance(names, Mapping):
            for key, value in names.items():
                if not (isinstance(key, str) and isinstance(value, str)):
                    raise TypeError(f"names: expected a mapping of names to names, got {key!r}: {value!r}")
        self._names = names
        self._used: set[str] = set()
        self.changes_nothing = names is None

    def __call__(self, name: str) -> str:
        names = self._names
        if names is None:
            return name
        if isinstance(names, Mapping):
            return self._replaced(names, name)
        try:
            found = names(name)
        except Exception as error:
            raise ValueError(f"names: the function raised {type(error).__name__} for {name}: {error}") from error
        if not isinstance(found, str):
            raise TypeError(f"names: expected a name for {name}, got {found!r}")
        return found

    def _replaced(self, names: Mapping[str, str], name: str) -> str:
        end = len(name)
        while end >= 0:
            if (found := names.get(name[:end])) is not None:
                self._used.add(name[:end])
                return found + name[end:]
            end = name.rfind(".", 0, end)
        return name

    def check_used(self) -> None:
        """Raise ValueError if a name or beginning in the mapping fitted no name that was asked for."""
        if isinstance(self._names, Mapping):
            unused = [each for each in self._names if each not in self._used]
            if unused:
                raise ValueError(f"names: no parameter or buffer is called so or begins so: {', '.join(unused)}")
