"""What tensors hold that a constructor computes: one number, something that is no draw, or a draw."""

from __future__ import annotations

import ast
import inspect
import math
import operator
import re
from types import FunctionType
from typing import Any, Literal, Protocol, TypeAlias

from torch import nn

from fastinit.capture.constructors.scripts import UNKNOWN, Path, Told
from fastinit.capture.constructors.text import EMPTY, argument, called, draws, function_draws
from fastinit.capture.constructors.values import OPERATORS, Values

Content: TypeAlias = Told | Literal["drawn", "empty"]  # "empty": memory that nobody has written to


class Seen(Protocol):
    """What the reader of a constructor knows where an expression stands."""

    contents: dict[str, Content]  # of tensors that local names stand for

    def values(self) -> Values: ...
    def path(self, node: ast.expr) -> Path | None: ...
    def object(self, node: ast.expr) -> Any: ...
    def function(self, call: ast.Call) -> FunctionType | None: ...
    def content_at(self, path: Path) -> Content: ...


def content_of(node: ast.expr, seen: Seen) -> Content:
    """What a tensor holds."""
    number = seen.values().value(node)
    if type(number) in (int, float):
        return Told(float(number)) if math.isfinite(number) else UNKNOWN
    if isinstance(node, ast.Name) and node.id in seen.contents:
        return seen.contents[node.id]
    if (path := seen.path(node)) is not None:
        return seen.content_at(path)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return _computed(operator.neg, content_of(node.operand, seen))
    if isinstance(node, ast.BinOp) and not _repeats(node):
        does = OPERATORS.get(type(node.op))
        return _computed(does, content_of(node.left, seen), content_of(node.right, seen))
    if isinstance(node, (ast.List, ast.Tuple)):
        return _together([content_of(each, seen) for each in node.elts])
    if isinstance(node, ast.IfExp):
        test = seen.values().truth(node.test)
        if test is not None:
            return content_of(node.body if test else node.orelse, seen)
        ways = [each for each in (node.body, node.orelse) if getattr(each, "value", each) is not None]
        return _together([content_of(each, seen) for each in ways])  # of one that is None, nothing is made
    if isinstance(node, ast.Subscript):
        return content_of(node.value, seen)
    return _of_call(node, seen) if isinstance(node, ast.Call) else _of_parts(node, seen)


def _repeats(node: ast.BinOp) -> bool:
    """Whether it is `[0.5] * 3`, which is no product."""
    return any(isinstance(each, (ast.List, ast.ListComp, ast.Tuple)) for each in (node.left, node.right))


def _of_call(call: ast.Call, seen: Seen) -> Content:
    name = called(call)
    if name in _CONSTANT:
        return Told(_CONSTANT[name])
    if name in EMPTY or _is_new_module(call, seen):
        return "empty" if name in EMPTY else "drawn"
    if name in ("full", "full_like", "new_full"):
        given = argument(call, 1, "fill_value")
        return UNKNOWN if given is None else content_of(given, seen)
    is_method = isinstance(call.func, ast.Attribute) and not inspect.ismodule(seen.object(call.func.value))
    of: Any = call.func.value if is_method else argument(call, 0, "data")  # type: ignore[attr-defined]
    if name in ("Tensor", "FloatTensor") and not _has_values(call):
        return "empty"
    if (constant := seen.values().constant(call, is_method)) is not None:
        return constant
    if of is None or seen.function(call) is not None:
        return _of_parts(call, seen)
    if _ALIKE.fullmatch(name):
        return content_of(of, seen)
    if _FUNCTIONS.fullmatch(name):
        return _computed(getattr(math, name, None), content_of(of, seen))
    if (does := _ARITHMETIC.get(name.removesuffix("_"))) is not None and not call.keywords:
        given = argument(call, 0 if is_method else 1, "other")
        return (
            _of_parts(call, seen) if given is None else _computed(does, content_of(of, seen), content_of(given, seen))
        )
    return _of_parts(call, seen)


def _has_values(call: ast.Call) -> bool:
    """Whether torch.Tensor is given values; it has none if it is given sizes."""
    if len(call.args) != 1:
        return False
    of = call.args[0]
    return isinstance(of, (ast.List, ast.ListComp)) or (isinstance(of, ast.Call) and called(of) not in _SIZES)


def _is_new_module(node: ast.Call, seen: Seen) -> bool:
    found = seen.object(node.func)
    return isinstance(found, type) and issubclass(found, nn.Module)


def _of_parts(node: ast.expr, seen: Seen) -> Content:
    """What an expression gives that is not understood: what it is made of tells whether it is a draw."""
    if draws(node):
        return "drawn"
    found: list[Content] = []
    for each in ast.walk(node):
        if isinstance(each, ast.Name) and each.id in seen.contents:
            found.append(seen.contents[each.id])
        elif isinstance(each, ast.Call):
            function = seen.function(each)
            is_drawn = _is_new_module(each, seen) or (function is not None and function_draws(function))
            found.append("drawn" if is_drawn else "empty" if called(each) in EMPTY else UNKNOWN)
        elif isinstance(each, ast.Attribute) and (path := seen.path(each)) is not None:
            found.append(seen.content_at(path))
    return "drawn" if "drawn" in found else "empty" if "empty" in found else UNKNOWN


_CONSTANT = {"zeros": 0.0, "zeros_like": 0.0, "new_zeros": 0.0, "ones": 1.0, "ones_like": 1.0, "new_ones": 1.0}
# What gives the elements of a tensor in another shape, dtype or place.
_ALIKE = re.compile(
    "(as_)?tensor|(Float)?Tensor|clone|detach|repeat|expand|(un)?squeeze|view|reshape|flatten|to|float|double|half|"
    "contiguous|t|transpose|permute|type|requires_grad_|cpu|cuda|stack|cat|concat|broadcast_to|flip"
)
_FUNCTIONS = re.compile("log|exp|sqrt|sin|cos|tanh|log1p|expm1|outer")
_ARITHMETIC = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "pow": operator.pow,
}
_SIZES = frozenset({"int", "len", "max", "min", "round", "sum", "Size"})


def _together(given: list[Content]) -> Content:
    """What a tensor holds that is put together of others, or is one of them."""
    if "drawn" in given or "empty" in given or not given:
        return "drawn" if "drawn" in given else "empty"
    return given[0] if len(set(given)) == 1 else UNKNOWN


def _computed(function: Any, *given: Content) -> Content:
    """What a function gives for tensors, element by element."""
    told = [each for each in given if isinstance(each, Told)]
    if len(told) < len(given):
        return "drawn" if "drawn" in given else "empty"
    try:
        value = function(*(each.value for each in told))
        return Told(float(value)) if math.isfinite(value) else UNKNOWN
    except (TypeError, ValueError, ArithmeticError):
        return UNKNOWN


def mixed(one: Content | None, other: Content | None) -> Content:
    """What a tensor holds if one of two ways was gone. None: there is no such tensor."""
    return _together([each for each in (one, other) if each is not None])
