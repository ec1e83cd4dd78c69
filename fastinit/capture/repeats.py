"""Layers that a model has many of, and a way to build the model again without building all of them.

What the code of equal layers gives is read from a few of them: the first, the second, the third and the last. The
others are left out of the building, or of the copy whose reset code is run (copies.py): in their place stands the third
one, so that the model has all of its layers when code walks over them, under their numbers. Who reads such a model has
to see that the four agree.

So code is seen that treats layers by their number or depth: the first and the last show what grows, the first two what
changes from layer to layer, and the third whatever is done to any layer between them once the layers are built. Two
things go unnoticed. A constructor may treat the middle layers differently through an argument that leaves no trace in
their attributes, shapes and classes. Or it may pick middle layers by the names from `named_modules`, which has every
module once. Exact numbers come from reading every layer (`Authors.exactly`).
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules import module as hooks

_FEWEST = 6  # so many equal layers are worth it
_STACKS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
_NO_ARGUMENTS = frozenset({"training", "_is_hf_initialized"})  # attributes that change after the building
_SEEN = frozenset({bool, int, float, str, type(None), tuple})
CONTAINERS = frozenset({dict, OrderedDict, set, list})  # of attributes of modules


class Looks(NamedTuple):
    """What can be seen of a layer: classes, shapes, attributes of all modules in it. Numbers are apart, since the
    number of the layer is among them."""

    fixed: tuple[Any, ...]
    numbers: tuple[float, ...]

    @staticmethod
    def of(layer: nn.Module) -> Looks:
        fixed: list[Any] = []
        numbers: list[float] = []
        _look(layer, fixed, numbers)
        return Looks(tuple(fixed), tuple(numbers))


def _look(module: nn.Module, fixed: list[Any], numbers: list[float]) -> None:
    kind: Any = type(module)
    fixed.append(kind)
    for own_name, parameter in module._parameters.items():
        fixed.append(own_name)
        fixed.append(None if parameter is None else parameter.shape)
    if not _is_of_torch(kind):
        for key, value in [each for each in module.__dict__.items() if type(each[1]) in _SEEN]:  # most are for hooks
            if type(value) is int or type(value) is float:
                fixed.append(key)
                numbers.append(value)
            elif key not in _NO_ARGUMENTS:
                fixed.append(key)
                fixed.append(value)
    for name, child in module._modules.items():
        if child is not None:
            fixed.append(name)
            _look(child, fixed, numbers)
    fixed.append(kind)


def is_of_torch(module: nn.Module) -> bool:
    """Whether torch's authors wrote a module's class."""
    kind: Any = type(module)  # mypy takes the types of modules for unhashable
    return _is_of_torch(kind)


@functools.lru_cache(maxsize=4096)
def _is_of_torch(module_type: type) -> bool:
    return module_type.__module__.startswith("torch.")


class Group(NamedTuple):
    """Layers that look alike, in the order in which they are built."""

    layers: list[nn.Module]

    def read(self) -> list[nn.Module]:
        """Those that are built: the first, the second, the third, which stands for all others, and the last."""
        return [*self.layers[:3], self.layers[-1]]

    def left_out(self) -> list[nn.Module]:
        """The layer that stands for others, and then those others."""
        return self.layers[2:-1]


class Repeats(NamedTuple):
    """The layers of a model: for each class all that it has, and those among them that look alike."""

    layers: dict[type, list[nn.Module]]
    groups: list[Group]


def repeats_of(modules: Sequence[nn.Module]) -> Repeats | None:
    """The layers that a model has many of; None if there are none. `modules` are all of the model, in their order.

    Layers are modules of one class that is not torch's, in lists of torch.nn. Of layers within layers, the outer ones
    count.
    """
    of_class: dict[type, list[nn.Module]] = {}
    for module in modules:
        of_class.setdefault(type(module), []).append(module)
    in_lists: dict[type, set[int]] = {}
    for module in modules:
        if isinstance(module, _STACKS):
            for each in module._modules.values():
                in_lists.setdefault(type(each), set()).add(id(each))
    layers: dict[type, list[nn.Module]] = {}
    groups: list[Group] = []
    inside: set[int] = set()
    kinds = [kind for kind, listed in in_lists.items()
             if len(listed) >= _FEWEST and not _is_of_torch(kind)
             and len(of_class.get(kind, ())) == len(listed)]  # fmt: skip
    kinds.sort(key=lambda kind: -sum(1 for _ in of_class[kind][0].modules()))  # what is in others has fewer modules
    for kind in kinds:
        every = of_class[kind]
        if not inside.isdisjoint(map(id, every)):
            continue
        found = _groups(every)
        if found:
            layers[kind] = every
            groups += found
            if kind is not kinds[-1]:
                inside.update(id(each) for layer in every for each in inner(layer))
    return Repeats(layers, groups) if groups else None


def _groups(layers: list[nn.Module]) -> list[Group]:
    alike: dict[Any, list[tuple[nn.Module, tuple[float, ...]]]] = {}
    try:
        for layer in layers:
            looks = Looks.of(layer)
            alike.setdefault(looks.fixed, []).append((layer, looks.numbers))
    except (TypeError, RuntimeError):  # an attribute that cannot be hashed, or a lazy parameter
        return []
    found: dict[Any, list[nn.Module]] = {}
    for number, group in enumerate(alike.values()):
        # A number that no two layers share counts them, such as an index or a rate of stochastic depth. Every other one
        # may tell two kinds of layers apart.
        columns = list(zip(*(numbers for _, numbers in group), strict=True))
        telling = [at for at, column in enumerate(columns) if len(set(column)) != len(column)]
        for layer, numbers in group:
            found.setdefault((number, *(numbers[at] for at in telling)), []).append(layer)
    return [Group(each) for each in found.values() if len(each) >= _FEWEST]


_patching = threading.Lock()


def built_without(repeats: Repeats, build: Callable[[], nn.Module]) -> tuple[nn.Module, list[nn.Module | None]]:
    """Build a model with the third layer of each group in the place of those that are left out, and these third layers.

    The layers of a class are taken to be built in the order in which the model has them. `pairs` finds out.

    Raises:
        RuntimeError: another thread does the same just now. Nobody waits for it, since it runs other people's code.
    """
    standing: list[nn.Module | None] = [None] * len(repeats.groups)
    number_of = {id(layer): number for number, group in enumerate(repeats.groups) for layer in group.left_out()}
    replaced: dict[int, tuple[nn.Module, nn.Module]] = {}  # by the id of a layer that was not built
    thread = threading.get_ident()

    def abridged(kind: Any, layers: list[nn.Module]) -> Callable[..., None]:
        own = kind.__init__
        numbers = iter([number_of.get(id(each)) for each in layers])

        @functools.wraps(own)
        def init(self: nn.Module, *args: Any, **kwargs: Any) -> None:
            number = next(numbers, None) if type(self) is kind and threading.get_ident() == thread else None
            other = None if number is None else standing[number]
            if number is None or other is None:
                if number is not None:
                    standing[number] = self
                own(self, *args, **kwargs)
                return
            object.__setattr__(self, "__dict__", other.__dict__)
            replaced[id(self)] = self, other

        return init

    def registered(module: nn.Module, name: str, child: Any) -> Any:
        found = replaced.get(id(child))
        return None if found is None else found[1]

    if not _patching.acquire(blocking=False):
        raise RuntimeError("another thread builds a model without some of its layers")
    try:
        inherited = [kind for kind in repeats.layers if "__init__" not in kind.__dict__]
        before = {kind: kind.__init__ for kind in repeats.layers}  # type: ignore[misc]
        handle = hooks.register_module_module_registration_hook(registered)
        try:
            for kind, layers in repeats.layers.items():
                kind.__init__ = abridged(kind, layers)  # type: ignore[misc]
            return build(), standing
        finally:
            handle.remove()
            for kind, own in before.items():
                if kind in inherited:
                    del kind.__init__  # type: ignore[misc]
                else:
                    kind.__init__ = own  # type: ignore[misc]
    finally:
        _patching.release()


def pairs(
    repeats: Repeats, standing: list[nn.Module | None], model: nn.Module, twin: nn.Module
) -> dict[int, nn.Module] | None:
    """The module of the twin that stands in the place of each module of the model, by its id; None: they do not fit."""
    left_out = {id(layer): number for number, group in enumerate(repeats.groups) for layer in group.left_out()}
    stands = {id(each) for each in standing}
    found: dict[int, nn.Module] = {}
    left: list[tuple[nn.Module, nn.Module]] = [(model, twin)]
    while left:
        own, other = left.pop()
        number = left_out.get(id(own))
        if number is not None:
            if other is not standing[number] or found.setdefault(id(own), other) is not other:
                return None
            if own is not repeats.groups[number].left_out()[0]:  # its parts follow from how it looks
                continue
        elif id(other) in stands or found.setdefault(id(own), other) is not other:
            return None
        if not _are_of_one_class(own, other) or own._modules.keys() != other._modules.keys():
            return None
        for name, child in own._modules.items():
            twin_child = other._modules[name]
            if (child is None) != (twin_child is None):
                return None
            if child is not None and twin_child is not None and found.get(id(child)) is not twin_child:
                left.append((child, twin_child))
    for group in repeats.groups:
        first, *others = group.left_out()
        parts = [(each, found[id(each)]) for each in inner(first)]
        for layer in others:
            for each, (its, other) in zip(inner(layer), parts, strict=True):
                if each is not its and found.setdefault(id(each), other) is not other:
                    return None
    for group in repeats.groups:
        # The numbers that count the layers must be those of the layers that were built.
        if any(Looks.of(each).numbers != Looks.of(found[id(each)]).numbers for each in group.read()):
            return None
    return found


def _are_of_one_class(one: Any, other: Any) -> bool:
    """Whether two modules have one class. torch makes a class of its own for each parametrised module."""
    kinds = type(one), type(other)
    return kinds[0] is kinds[1] or (kinds[0].__name__ == kinds[1].__name__ and kinds[0].__bases__ == kinds[1].__bases__)


def inner(layer: nn.Module) -> list[nn.Module]:
    """All modules in a layer, in an order that is the same in layers that look alike."""
    found: list[nn.Module] = []
    _add(layer, found)
    return found


def _add(module: nn.Module, found: list[nn.Module]) -> None:
    found.append(module)
    for child in module._modules.values():
        if child is not None:
            _add(child, found)
