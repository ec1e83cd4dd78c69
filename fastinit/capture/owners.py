"""Which modules were built while something was recorded, and what they call their tensors."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules import module as hooks

from fastinit.run.names import named_modules

# What most attributes of modules are of: this is faster than to ask whether they are tensors.
_NO_TENSORS = frozenset({dict, OrderedDict, set, bool, int, float, str, type(None)})


class Owned(NamedTuple):
    """A tensor of a module: which of the models it belongs to, its canonical name there, and where it is kept."""

    model: int
    name: str
    own_name: str
    module: nn.Module
    tensor: torch.Tensor
    kind: str  # "parameter", "buffer" or "attribute"


class Owners:
    """Notes the modules that get parameters, buffers or children in this thread.

    Args:
        is_innermost: whether no other recording goes on inside this one. Modules that are first seen in an inner one
            count after the others, so that what is done there gives the models out here no other numbers.
    """

    def __init__(self, is_innermost: Callable[[], bool]) -> None:
        self._thread = threading.get_ident()
        self._is_innermost = is_innermost
        self._modules: dict[int, weakref.ref[nn.Module]] = {}
        self._guests: dict[int, weakref.ref[nn.Module]] = {}
        self._handles: list[Any] = []

    def watch(self) -> None:
        self._handles = [
            hooks.register_module_parameter_registration_hook(self._registered),
            hooks.register_module_buffer_registration_hook(self._registered),
            hooks.register_module_module_registration_hook(self._registered),
        ]

    def unwatch(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _registered(self, module: nn.Module, name: str, value: Any) -> None:
        known = self._modules.get(id(module))
        if known is not None and known() is module:  # as for all registrations of a module but the first
            return
        if threading.get_ident() != self._thread:
            return
        noted = self._modules if self._is_innermost() else self._guests
        known = noted.get(id(module))
        if known is None or known() is not module:
            noted[id(module)] = weakref.ref(module)

    def models(self) -> list[nn.Module]:
        """The modules that no other one contains, in the order in which they were first seen."""
        noted = [*self._modules.values(), *self._guests.values()]
        modules = list(dict.fromkeys(module for each in noted if (module := each()) is not None))
        inside: set[int] = set()
        left = list(modules)
        while left:  # through modules between them that nobody has noted, too: copies register nothing
            children = {id(child): child for child in left.pop()._modules.values() if child is not None}
            left += [child for key, child in children.items() if key not in inside]
            inside.update(children)
        return [module for module in modules if id(module) not in inside]

    def owned(self) -> Iterator[Owned]:
        """The tensors of all models: parameters first, since their names decide; then buffers; then attributes."""
        models = [named_modules(model) for model in self.models()]
        for kind, holder in (("parameter", "_parameters"), ("buffer", "_buffers"), ("attribute", "__dict__")):
            for number, modules in enumerate(models):
                for each in modules:
                    for own_name, tensor in getattr(each.module, holder).items():
                        if type(tensor) not in _NO_TENSORS and isinstance(tensor, torch.Tensor):
                            name = each.names_of(own_name)[0]
                            yield Owned(number, name, own_name, each.module, tensor, kind)
