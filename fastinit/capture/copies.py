"""A copy of a model on meta, which its code may do anything to: whole, or with one layer in the place of equal ones."""

from __future__ import annotations

import copy
import copyreg
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastinit._torch import typed_like
from fastinit.capture.repeats import CONTAINERS, Group, inner, is_of_torch
from fastinit.distributed.held import global_shape

_ATOMS = frozenset({bool, int, float, str, type(None)})
_HF_MARK = "_is_hf_initialized"  # the code of the copy is to run for everything


class Copied(NamedTuple):
    """A copy of a model, and what of the model has a twin in it.

    pairs: modules of the model and their twins, each twin once, in the order of `modules()`.
    twins: by the ids of modules; several layers have one where it stands for them.
    names: whether the code of the copy has asked for the names of modules that are not all there.
    """

    model: nn.Module
    pairs: list[tuple[nn.Module, nn.Module]]
    twins: dict[int, nn.Module]
    tensors: list[Tensor]
    names: Names


class Names:
    """Notes that somebody asks a module for the names below it, where every module counts once.

    Where one layer stands for others, their names are missing. Code that asks for modules and parameters without names
    needs no note: what it gives one layer counts for all that the layer stands for.
    """

    def __init__(self) -> None:
        self.were_asked = False
        self._without = 0

    def watch(self, module: nn.Module) -> None:
        attributes = module.__dict__
        self.were_asked |= not attributes.keys().isdisjoint(_NAMED)  # somebody's own
        for named, without in _NAMED.items():
            attributes[named] = MethodType(self._noting(named), module)  # deepcopy binds methods anew
            attributes[without] = MethodType(self._passing(without), module)

    def _noting(self, name: str) -> Callable[..., Any]:
        def method(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            self.were_asked |= not self._without
            return getattr(type(module), name)(module, *args, **kwargs)

        return method

    def _passing(self, name: str) -> Callable[..., Any]:
        def method(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            self._without += 1
            try:
                return iter(list(getattr(type(module), name)(module, *args, **kwargs)))
            finally:
                self._without -= 1

        return method


_NAMED = {
    "named_modules": "modules",
    "named_children": "children",
    "named_parameters": "parameters",
    "named_buffers": "buffers",
}


def copied_on_meta(every: Sequence[nn.Module], groups: Sequence[Group] = ()) -> Copied | None:
    """A deep copy of a model whose tensors are on meta. Nothing of the model is shared. `every`: its modules.

    In each group, the third layer stands for the others that are left out. None: one of the others differs from it in
    something that code can see (except numbers that count the layers), or shares a part with something else.
    """
    model = every[0]
    left_out = {id(layer): group.left_out()[0] for group in groups for layer in group.left_out()[1:]}
    modules: dict[int, nn.Module] = {}
    _walk(model, left_out.keys(), modules)
    memo: dict[int, Any] = {}
    for module in modules.values():
        for tensor in _tensors_of(module._parameters, module._buffers):
            if id(tensor) not in memo:
                memo[id(tensor)] = _on_meta(tensor)
    for module in modules.values():
        for tensor in _tensors_of(module.__dict__):
            if id(tensor) not in memo:
                memo[id(tensor)] = tensor.clone() if _is_number(tensor) else _on_meta(tensor)
    tensors = [each for each in memo.values() if each.is_meta]
    kinds: set[Any] = set(map(type, modules.values()))
    if not all(_is_plain(kind) or kind.__module__.startswith("torch.nn.modules.") for kind in kinds):
        return None if groups else _deep_copy(model, memo, tensors)
    for key, module in modules.items():
        kind: Any = type(module)
        if _is_plain(kind):
            memo[key] = kind.__new__(kind)
    for module in modules.values():
        if not _is_plain(type(module)):  # type: ignore[arg-type]
            copy.deepcopy(module, memo)
    for group in groups:
        standing, *others = group.left_out()
        parts = inner(standing)
        if not all(_stands_for(parts, layer, memo) for layer in others):
            return None
    for key, module in modules.items():
        if _is_plain(type(module)):  # type: ignore[arg-type]
            _give_state(module, memo[key], memo)
    pairs = [(module, memo[key]) for key, module in modules.items()]
    names = Names()
    holding = {id(memo[id(group.left_out()[0])]) for group in groups}
    for _, twin in reversed(pairs):  # what is below comes first
        if any(id(child) in holding for child in twin._modules.values()):
            holding.add(id(twin))
            names.watch(twin)
    return _unmarked(Copied(memo[id(model)], pairs, {id(each): memo[id(each)] for each in every}, tensors, names))


def _walk(module: nn.Module, left_out: Any, found: dict[int, nn.Module]) -> None:
    """Add a module and all below it, in the order of `modules()`."""
    if id(module) in found or id(module) in left_out:
        return
    found[id(module)] = module
    for child in module._modules.values():
        if child is not None:
            _walk(child, left_out, found)


def _tensors_of(*holders: Mapping[str, Any]) -> list[Tensor]:
    return [
        each
        for holder in holders
        for each in holder.values()
        if type(each) not in _ATOMS and type(each) not in CONTAINERS and isinstance(each, Tensor)
    ]


_FEW = 64


def _is_number(tensor: Tensor) -> bool:
    """Whether an attribute is a few numbers that are not trained, such as the strides that some biases follow from."""
    is_plain = type(tensor) is Tensor and tensor.is_cpu and tensor.layout is torch.strided
    return is_plain and not tensor.requires_grad and tensor.numel() <= _FEW


def _deep_copy(model: nn.Module, memo: dict[int, Any], tensors: list[Tensor]) -> Copied:
    """The copy as the model's classes want it."""
    twin: nn.Module = copy.deepcopy(model, memo)
    pairs = list(zip(model.modules(), twin.modules(), strict=True))
    return _unmarked(Copied(twin, pairs, {id(own): other for own, other in pairs}, tensors, Names()))


def _unmarked(copied: Copied) -> Copied:
    for _, twin in copied.pairs:
        twin.__dict__.pop(_HF_MARK, None)
    return copied


_WAYS = (
    *("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__getnewargs__"),
    *("__getnewargs_ex__", "__new__"),
)


@lru_cache(maxsize=4096)
def _is_plain(kind: Any) -> bool:
    """Whether `copy.deepcopy` makes an object of a class of nothing but a copy of its attributes."""
    return (
        all(getattr(kind, way, None) is getattr(nn.Module, way, None) for way in _WAYS)
        and not any(base.__dict__.get("__slots__") for base in kind.__mro__)
        and kind not in copyreg.dispatch_table
    )


def _give_state(module: Any, twin: nn.Module, memo: dict[int, Any]) -> None:
    state = module.__getstate__() if "__getstate__" in nn.Module.__dict__ else module.__dict__
    of_twin = twin.__dict__
    for key, value in state.items():
        kind = type(value)
        if kind in _ATOMS:
            of_twin[key] = value
            continue
        found = memo.get(id(value))
        if found is None:
            if kind in CONTAINERS and not value:
                found = memo[id(value)] = kind()  # most are for hooks, and deepcopy takes long
            elif kind is dict and key in ("_parameters", "_modules", "_buffers"):
                found = {name: None if each is None else copy.deepcopy(each, memo) for name, each in value.items()}
                memo[id(value)] = found
            else:
                found = copy.deepcopy(value, memo)
        of_twin[key] = found


def _stands_for(standing: Sequence[nn.Module], layer: nn.Module, memo: dict[int, Any]) -> bool:
    """Let the twin of one layer stand for another layer, if both are alike. `standing`: all modules of the first."""
    own: dict[int, Any] = {}
    for mine, its in zip(inner(layer), standing, strict=True):
        if not _are_alike(mine, its):
            return False
        tensors = zip(mine._parameters.values(), its._parameters.values(), strict=True)
        buffers = zip(mine._buffers.values(), its._buffers.values(), strict=True)
        for each, other in ((mine, its), *tensors, *buffers):
            if each is other:
                continue
            key, twin = id(each), memo[id(other)]
            if key in memo or own.setdefault(key, twin) is not twin:
                return False  # it is shared with something else
    memo.update(own)
    return True


def _are_alike(one: Any, other: Any) -> bool:
    """Whether two modules are alike in everything but their children and numbers that count layers."""
    mine, its = one.__dict__, other.__dict__
    if type(one) is not type(other) or mine.keys() != its.keys():
        return False
    for key, value in mine.items():
        another = its[key]
        if value is another:
            continue
        of = type(value)
        if of is not type(another):
            return False
        if of in CONTAINERS and not value and not another:
            continue
        if key == "_modules":
            if value.keys() != another.keys():
                return False
        elif key == "_parameters" or key == "_buffers":
            if not _are_alike_tensors(value, another):
                return False
        elif of is int or of is float:  # repeats.py has looked at those of others' classes
            if value != another and is_of_torch(one):
                return False
        elif not _are_equal(value, another):
            return False
    return True


def _are_alike_tensors(some: dict[str, Tensor | None], others: dict[str, Tensor | None]) -> bool:
    if some.keys() != others.keys():
        return False
    for one, other in zip(some.values(), others.values(), strict=True):
        if one is None or other is None:
            if one is not other:
                return False
            continue
        if type(one) is not type(other) or one.shape != other.shape or one.dtype is not other.dtype:
            return False
        if one.requires_grad != other.requires_grad or one.layout is not other.layout:
            return False
        mine, its = one.__dict__, other.__dict__
        if mine.keys() != its.keys() or not all(_are_equal(value, its[key]) for key, value in mine.items()):
            return False
    return True


def _are_equal(one: Any, other: Any) -> bool:
    """Whether two values are one object, or equal for good: plain values, and tuples and sets of them."""
    if one is other:
        return True
    kind = type(one)
    if kind is not type(other):
        return False
    if kind is tuple:
        return len(one) == len(other) and all(map(_are_equal, one, other))
    if kind is set:
        return bool(one == other) and all(type(each) is str for each in one)
    return kind in _ATOMS and bool(one == other)


def _on_meta(tensor: Tensor) -> Tensor:
    empty = torch.empty(global_shape(tensor), dtype=tensor.dtype, device="meta")
    twin = typed_like(tensor, empty) if type(tensor) is nn.Parameter else empty
    attributes = tensor.__dict__
    if attributes:
        twin.__dict__.update({key: value for key, value in attributes.items() if key != _HF_MARK})
    return twin
