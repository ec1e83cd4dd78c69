"""The values of expressions in a constructor, as far as they can be known. Nothing but arithmetic is executed."""

from __future__ import annotations

import ast
import builtins
import math
import operator
from typing import Any, Protocol

from torch import nn

from fastinit.capture.constructors.scripts import UNKNOWN, Path, Told
from fastinit.capture.constructors.text import PLAIN, Constructor, argument, called, expression_of, named, of_others

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


class Seen(Protocol):
    """What the reader of a constructor sees of its module."""

    def path(self, node: ast.expr) -> Path | None: ...
    def at(self, path: Path) -> nn.Module | None: ...
    def look(self, path: Path) -> Any: ...
    def note_object(self) -> None: ...
    def is_none(self, path: Path) -> bool | None: ...


class Numbers:
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
            each = [self.truth(value) for value in node.values]
            decisive = isinstance(node.op, ast.Or)
            return decisive if decisive in each else None if None in each else not decisive
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
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            return self._is_instance(*node.args) if len(node.args) == 2 else None
        if isinstance(node, ast.Call) and (given := self._given(node)) is not None:
            return self.truth(given)
        found = self.value(node)
        return bool(found) if type(found) in PLAIN else None

    def _is_instance(self, node: ast.expr, kind: ast.expr) -> bool | None:
        path = self._seen.path(node)
        module = self._seen.at(path) if path else None
        kinds = [named(self._names, each) for each in (kind.elts if isinstance(kind, ast.Tuple) else [kind])]
        if module is None or not all(isinstance(each, type) for each in kinds):
            return None
        return isinstance(module, tuple(kinds))

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
            found = self._names.get(node.id)
            return found if type(found) in PLAIN else None
        if isinstance(node, ast.Attribute):
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
        if isinstance(node, ast.Call) and (expression := self._given(node)) is not None:
            return self.value(expression)
        return None

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


def _is_mathematics(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("math", "np", "numpy")
