"""A parameter as the table of roles sees it, and what a test of the table finds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import nn

from fastinit.distributed.held import global_shape
from fastinit.run.names import NamedModule
from fastinit.schemes.base import Scheme


class Surroundings:
    """The model around its parameters.

    unwritten: canonical names of parameters whose memory has just been made, and that have no values to keep.
    """

    def __init__(self, modules: Sequence[NamedModule], unwritten: Collection[str] = ()) -> None:
        self.named = modules
        self.unwritten = unwritten

    @cached_property
    def modules(self) -> Mapping[str, nn.Module]:
        """The modules by their canonical names. A wrapper and the module in it share a name: that is the module's."""
        return {each.name: each.module for each in self.named}

    @cached_property
    def has_adapters(self) -> bool:
        """Whether the model has layers of PEFT, which list the names of what they add."""
        return any(hasattr(kind, "adapter_layer_names") for kind in {type(each.module) for each in self.named})

    @cached_property
    def has_words(self) -> bool:
        """Whether a word of PUBLISHED_WORDS is in the name of any module."""
        return has_word("\n".join([each.name for each in self.named]))


# Classes of torch.nn may hold parameters of a published method. One of these words is then in the name.
PUBLISHED_WORDS = ("lora_", "ia3_l", "dt_proj")


def has_word(name: str) -> bool:
    return any(word in name for word in PUBLISHED_WORDS)


class Asked:
    """A parameter of a module, as the tests of the table see it.

    `name` is canonical, `own_name` that in the module, and `shape` the global one.
    """

    __slots__ = ("around", "long_axes", "module", "module_type", "name", "own_name", "parameter", "shape")

    def __init__(
        self, around: Surroundings, name: str, module: nn.Module, own_name: str, parameter: torch.Tensor
    ) -> None:
        self.around = around
        self.name = name
        self.module = module
        self.module_type: Any = type(module)  # mypy takes the types of modules for unhashable
        self.own_name = own_name
        self.parameter = parameter
        # A lazy parameter has no shape. Counted as a matrix, it reaches the check that reports this.
        is_lazy = nn.parameter.is_lazy(parameter)
        self.shape = torch.Size() if is_lazy else global_shape(parameter, name)
        self.long_axes = 2 if is_lazy else long_axes_of(self.shape)

    @property
    def is_new(self) -> bool:
        """Whether the parameter has no values yet that could be kept."""
        return self.parameter.is_meta or self.name in self.around.unwritten


class Found(NamedTuple):
    """What a test of the table found.

    scheme: the role's own scheme, if it has one. zero_row: the row that becomes zero. follows: whether the
    values follow from those of other parameters, so that nothing else can tell them.
    """

    reason: str
    scheme: Scheme | None = None
    zero_row: int | None = None
    follows: bool = False


Test = Callable[[Asked], Found | None]


def long_axes_of(shape: Sequence[int]) -> int:
    """The number of axes longer than one. A tensor of shape (1, C, 1, 1) counts as a vector."""
    return sum(size != 1 for size in shape)


@lru_cache(maxsize=4096)
def own_type(module_type: type) -> type:
    """The class as its author wrote it: the base of what fully_shard, replicate and parametrizations derive from it."""
    while module_type.__name__.endswith(module_type.__bases__[-1].__name__):
        first, made_from = module_type.__bases__[0], module_type.__bases__[-1]
        sharded = len(module_type.__bases__) == 2 and first.__module__.startswith("torch.distributed.")
        if not sharded and module_type.__name__ != f"Parametrized{made_from.__name__}":
            break
        module_type = made_from
    return module_type


def kind_of(module: nn.Module) -> str:
    """The name of a module's class, as its author wrote it."""
    module_type: Any = type(module)  # mypy takes the types of modules for unhashable
    return own_type(module_type).__name__
