"""The values of expressions in a constructor, and whether conditions hold, as far as they can be known.

Nothing but arithmetic and methods of strings is executed.
"""

from __future__ import annotations

import ast
import builtins
import math
import operator
from typing import Any, Protocol

from torch import nn

from fastinit.capture.constructors.scripts import UNKNOWN, Path, Told
from fastinit.capture.constructors.text import (
    PLAIN,
    Constructor,
    Plain,
    argument,
    called,
    expression_of,
    instead,
    named,
    of_others,
)

OPERATORS: dict[type[ast.operator], Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


_COMPARISONS: dict[type[ast.cmpop], Any] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


_OF_TEXT = frozenset({"startswith", "endswith", "lower", "upper", "find", "count"})


class Seen(Protocol):
    """What the reader of a constructor sees of its module."""

    def path(self, node: ast.expr) -> Path | None: ...
    def at(self, path: Path) -> nn.Module | None: ...
    def look(self, path: Path) -> Any: ...
    def note_object(self) -> None: ...
    def is_none(self, path: Path) -> bool | None: ...
    def plain(self, name: str) -> Plain | None: ...
    def dimensions(self, path: Path) -> int | None: ...


class Values:
    """The values of expressions in a constructor, as far as they can be known."""

    def __init__(self, seen: Seen, constructor: Constructor) -> None:
        self._seen = seen
        self._kept = constructor.kept
        self._names = constructor.names

    def constant(self, call: ast.Call, is_method: bool) -> Told | None:
        """What a method of a tensor, or a function of torch.nn.init, sets it to, if that is a constant."""
        name = called(call)
        if name == ("zero_" if is_method else "zeros_"):
            return Told(0.0)
        if name == "ones_" and not is_method:
            return Told(1.0)
        if name in ("eye_", "dirac_") and not is_method:
            return UNKNOWN
        if name == ("fill_" if is_method else "constant_"):
            given = argument(call, 0, "value") if is_method else argument(call, 1, "val")
            value = None if given is None else self.value(given)
            return Told(float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None)
        return None

    def truth(self, node: ast.expr) -> bool | None:
        """Whether a condition holds; None if that is not known."""
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            of = self.truth(node.operand)
            return None if of is None else not of
        if isinstance(node, ast.BoolOp):
            decisive = isinstance(node.op, ast.Or)
            found: bool | None = not decisive
            for each in map(self.truth, node.values):
                if each is decisive:
                    return decisive
                found = None if each is None else found
            return found
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], (ast.Is, ast.IsNot)):
            right, path = node.comparators[0], self._seen.path(node.left) or self._attribute(node.left)
            if isinstance(right, ast.Constant) and right.value is None and path:
                is_none = self._seen.is_none(path)
                return None if is_none is None else is_none == isinstance(node.ops[0], ast.Is)
            return None
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARISONS:
            left, right = self.value(node.left), self.value(node.comparators[0])
            known = type(left) in PLAIN and type(right) in PLAIN
            return bool(_COMPARISONS[type(node.ops[0])](left, right)) if known else None
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], (ast.In, ast.NotIn)):
            left, right = self.value(node.left), self.value(node.comparators[0])
            if not isinstance(left, str) or not isinstance(right, (str, tuple)):
                return None
            return (left in right) == isinstance(node.ops[0], ast.In)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            if node.func.id == "isinstance" and len(node.args) == 2:
                return self._is_instance(*node.args)
            if node.func.id == "hasattr" and len(node.args) == 2:
                return self._has(*node.args)
            if node.func.id in ("any", "all") and len(node.args) == 1:
                return self._of_several(node.args[0], is_any=node.func.id == "any")
        if isinstance(node, ast.Call) and (given := self._given(node)) is not None:
            return self.truth(given)
        found = self.value(node)
        return bool(found) if type(found) in PLAIN else None

    def _is_instance(self, node: ast.expr, kind: ast.expr) -> bool | None:
        path = self._seen.path(node)
        module = None if path is None else self._seen.at(path)
        kinds = [named(self._names, each) for each in (kind.elts if isinstance(kind, ast.Tuple) else [kind])]
        if module is None or not all(isinstance(each, type) for each in kinds):
            return None
        return isinstance(module, tuple(kinds))

    def _has(self, node: ast.expr, name: ast.expr) -> bool | None:
        path, own_name = self._seen.path(node), self.value(name)
        module = None if path is None else self._seen.at(path)
        if path is None or module is None or not isinstance(own_name, str):
            return None
        if self._seen.is_none((*path, own_name)) is not None:
            return True
        return None if hasattr(type(module), own_name) else False

    def _of_several(self, node: ast.expr, *, is_any: bool) -> bool | None:
        """Whether a condition holds for any or all of some constants: `any(each in name for each in ("a", "b"))`."""
        if not isinstance(node, ast.GeneratorExp) or len(node.generators) > 1 or node.generators[0].ifs:
            return None
        target, of = node.generators[0].target, self.value(node.generators[0].iter)
        if not isinstance(target, ast.Name) or not isinstance(of, tuple):
            return None
        each = [self.truth(instead(node.elt, {target.id: ast.Constant(value)})) for value in of]
        return is_any if is_any in each else None if None in each else not is_any

    def _given(self, call: ast.Call) -> ast.expr | None:
        """The expression that a call gives: `self.head is not None`, of `exists(self.head)`."""
        function = of_others(named(self._names, call.func))
        found = None if function is None or call.keywords else expression_of(function)
        if function is None or found is None or len(found.arguments) != len(call.args):
            return None
        if not all(self._means(name, function.__globals__.get(name)) for name in found.names):
            return None
        return found.of(call.args)

    def _means(self, name: str, what: Any) -> bool:
        """Whether a name stands for this here, too."""
        is_local = name in self._kept or self._seen.path(ast.Name(name, ast.Load())) is not None
        return not is_local and self._names.get(name) is what

    def value(self, node: ast.expr) -> Any:
        """A plain value, or an object whose attributes are asked for; None if it is not known."""
        try:
            return self._evaluated(node)
        except Exception:  # whatever arithmetic and the attributes of others raise
            return None

    def _evaluated(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant):
            return node.value
        if (of := _whose_dimensions(node)) is not None and (parameter := self._seen.path(of)):
            return self._seen.dimensions(parameter)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -self._operand(node.operand)
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](self._operand(node.left), self._operand(node.right))
        if isinstance(node, ast.IfExp):
            test = self.truth(node.test)
            return None if test is None else self.value(node.body if test else node.orelse)
        if (path := self._attribute(node)) is not None:
            return self._seen.look(path)
        if isinstance(node, ast.Name):
            if (plain := self._seen.plain(node.id)) is not None:
                return plain
            found = self._names.get(node.id)
            return found if type(found) in PLAIN else None
        if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
            values = tuple(self.value(each) for each in node.elts)
            return values if all(isinstance(each, str) for each in values) else None
        if isinstance(node, ast.Attribute):
            if node.attr == "__name__" and (module := self._of_class(node.value)) is not None:
                return type(module).__name__
            if _is_mathematics(node.value):
                return getattr(math, node.attr)
            return getattr(self.value(node.value), node.attr)
        if isinstance(node, ast.Call) and not node.keywords:
            given = [self.value(each) for each in node.args]
            if all(type(each) in (bool, int, float) for each in given):
                if isinstance(node.func, ast.Attribute) and _is_mathematics(node.func.value):
                    return getattr(math, node.func.attr)(*given)
                if isinstance(node.func, ast.Name) and node.func.id in ("float", "int", "min", "max", "abs"):
                    return getattr(builtins, node.func.id)(*given)
            if isinstance(node.func, ast.Attribute) and node.func.attr in _OF_TEXT:
                of = self.value(node.func.value)
                if isinstance(of, str) and all(isinstance(each, (str, int, tuple)) for each in given):
                    return getattr(of, node.func.attr)(*given)
        if isinstance(node, ast.Call) and (expression := self._given(node)) is not None:
            return self.value(expression)
        return None

    def _of_class(self, node: ast.expr) -> nn.Module | None:
        """The module whose class an expression gives: `type(module)`, or `module.__class__`."""
        of: ast.expr | None = None
        if isinstance(node, ast.Attribute) and node.attr == "__class__":
            of = node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "type":
            of = node.args[0] if len(node.args) == 1 else None
        path = None if of is None else self._seen.path(of)
        return None if path is None else self._seen.at(path)

    def _operand(self, node: ast.expr) -> Any:
        found = self.value(node)
        if found is not None and type(found) not in PLAIN:
            self._seen.note_object()
        return found

    def _attribute(self, node: ast.expr) -> Path | None:
        """The names of an attribute of the module, and of what it is an attribute of; None if it is none."""
        if isinstance(node, ast.Name):
            return (self._kept[node.id],) if node.id in self._kept else None
        if not isinstance(node, ast.Attribute):
            return None
        if self._seen.path(node.value) == ():
            return (node.attr,)
        above = None if _is_mathematics(node.value) else self._attribute(node.value)
        return None if above is None else (*above, node.attr)


def _whose_dimensions(node: ast.expr) -> ast.expr | None:
    """The tensor whose dimensions are counted: by `tensor.dim()`, `tensor.ndim` or `len(tensor.shape)`."""
    if isinstance(node, ast.Attribute) and node.attr == "ndim":
        return node.value
    if not isinstance(node, ast.Call):
        return None
    if isinstance(node.func, ast.Attribute) and node.func.attr in ("dim", "ndimension") and not node.args:
        return node.func.value
    of = node.args[0] if called(node) == "len" and len(node.args) == 1 else None
    shape = of.func if isinstance(of, ast.Call) and called(of) == "size" and not of.args else of
    return shape.value if isinstance(shape, ast.Attribute) and shape.attr in ("shape", "size") else None


def _is_mathematics(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("math", "np", "numpy")
