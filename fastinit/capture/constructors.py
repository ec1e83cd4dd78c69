"""What the text of a class's constructor says of parameters that no code can be run for again.

A constructor's arguments are gone when a model is there, so it cannot be run again. Statements that set a constant can
be read: `nn.init.constant_(self.head.bias, -4.6)`, `self.lstm.bias_hh_l0.data[4:8].fill_(1)`. A statement is
understood, or makes unknown what it may have set; nothing but arithmetic is executed. What `nn.Parameter(torch.zeros(
size))` says is not counted: it may be a placeholder.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import math
import operator
import re
import textwrap
from collections.abc import Iterable, Sequence
from functools import lru_cache
from types import FunctionType
from typing import Any, NamedTuple, TypeAlias

from torch import nn


class Told(NamedTuple):
    """The constant that a constructor sets a parameter to; None: it is computed from what is gone, or a pattern."""

    value: float | None


# From a module to a parameter: names of attributes, and indices of containers.
Path: TypeAlias = tuple[str | int, ...]


class _Script(NamedTuple):
    """What the constructors of a class do.

    sweeps: whether they may have set anything below the module, before they set what `told` has.
    told: None: set by a statement that was not understood.
    """

    sweeps: bool
    told: dict[Path, Told | None]


_NOTHING = _Script(False, {})
_ANYTHING = _Script(True, {})


def told_of(modules: Sequence[nn.Module]) -> dict[tuple[int, str], Told]:
    """What constructors tell: by the id of a module and the name of the parameter in it.

    `modules` are those of a model, each before those below it. The constructor of a module runs after theirs.
    """
    found: dict[tuple[int, str], Told | None] = {}
    for module in reversed(modules):
        script = _script_of(module)
        if script is _NOTHING:
            continue
        if script.sweeps and found:
            below = set(map(id, module.modules()))
            found = {key: each for key, each in found.items() if key[0] not in below}
        for path, told in script.told.items():
            for key in _reached(module, path):
                found[key] = told
    return {key: told for key, told in found.items() if told is not None}


def _reached(module: Any, path: Path) -> Iterable[tuple[int, str]]:
    """The parameter at a path, or all of the module that is there; none if it leads elsewhere."""
    for step in path:
        if module._parameters.get(step) is not None:
            return [(id(module), str(step))]
        module = _below(module, step)
        if module is None:
            return []
    return [(id(each), name) for each in module.modules() for name in each._parameters]


def _below(module: Any, step: str | int) -> nn.Module | None:
    """The module that an attribute or an index of a container gives."""
    if isinstance(step, str):
        return module._modules.get(step)  # type: ignore[no-any-return]
    if not isinstance(module, (nn.Sequential, nn.ModuleList)) or not -len(module) <= step < len(module):
        return None
    return module[step]


_PLAIN = (bool, int, float, str)
_scripts: dict[tuple[Any, ...], _Script] = {}
_MOST_SCRIPTS = 4096


def _script_of(module: nn.Module) -> _Script:
    """What the constructors of a module's class, and of the classes that it is derived from, do."""
    kind: Any = type(module)
    constructors = _constructors(kind)
    if not constructors:
        return _ANYTHING if constructors is None else _NOTHING
    plain = [(name, type(each), each) for name, each in module.__dict__.items() if type(each) in _PLAIN]
    key = kind, tuple(plain)
    found = _scripts.get(key)
    if found is None:
        reader = _Reader(module, constructors)
        found = reader.script()
        if not reader.has_looked_further:
            if len(_scripts) >= _MOST_SCRIPTS:
                _scripts.clear()
            _scripts[key] = found
    return found


class _Constructor(NamedTuple):
    """A constructor's statements, the names around it, and which of its arguments are kept, as which attributes."""

    body: list[ast.stmt]
    names: dict[str, Any]
    kept: dict[str, str]


@lru_cache(maxsize=4096)
def _constructors(kind: type) -> tuple[_Constructor, ...] | None:
    """Those that others than torch wrote, of the most derived class first; () if they set nothing, None if one of them
    cannot be read."""
    found = []
    for each in kind.__mro__:
        own = each.__dict__.get("__init__")
        if own is None or each.__module__.split(".")[0] in ("torch", "builtins"):
            continue
        read = _read(own)
        if read is None:
            return None
        found.append(read)
    sets = any(_sets_values(node) for each in found for statement in each.body for node in ast.walk(statement))
    return tuple(found) if sets else ()


def _read(function: Any) -> _Constructor | None:
    function = inspect.unwrap(function)
    if not isinstance(function, FunctionType):
        return None
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None
    definition = tree.body[0] if tree.body else None
    if not isinstance(definition, ast.FunctionDef) or any(
        isinstance(each, ast.Return) for each in ast.walk(definition)
    ):
        return None  # what follows a return is perhaps not done
    given = definition.args
    arguments = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    if not arguments or arguments[0] != "self":
        return None
    kept = {
        statement.value.id: target.attr
        for statement in ast.walk(definition)
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Name)
        for target in statement.targets
        if isinstance(target, ast.Attribute) and _path(target.value) == () and statement.value.id in arguments
    }
    return _Constructor(definition.body, function.__globals__, kept)


# Functions and methods whose names say that they set values: init.zeros_, fill_, reset_parameters, zero_module.
_SETS = re.compile(r"[^_]_$|(^|_)(init|reset|zero)(_|$|ial)|^apply$")
_SETS_NO_VALUES = {"requires_grad_", "post_init", "zero_grad"}


def _called(node: ast.AST) -> str:
    """The last name of what is called."""
    if not isinstance(node, ast.Call):
        return ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _sets_values(node: ast.AST) -> bool:
    """Whether an expression or an assignment may set the values of parameters."""
    if isinstance(node, (ast.Assign, ast.AugAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return any(isinstance(each, ast.Subscript) or getattr(each, "attr", "") == "data" for each in targets)
    name = _called(node)
    return _SETS.search(name) is not None and name not in _SETS_NO_VALUES


@lru_cache(maxsize=2**16)
def _may_set(statement: ast.AST) -> bool:
    return any(map(_sets_values, ast.walk(statement)))


def _path(node: ast.expr) -> Path | None:
    """The path of `self.head[-1].weight.data`; None if an expression is no such thing."""
    if isinstance(node, ast.Name):
        return () if node.id == "self" else None
    if isinstance(node, ast.Attribute):
        above = _path(node.value)
        return above if above is None or node.attr == "data" else (*above, node.attr)
    if isinstance(node, ast.Subscript) and (above := _path(node.value)):
        try:
            index = ast.literal_eval(node.slice)
        except ValueError:
            return None
        return (*above, index) if type(index) is int else None
    return None


def _written(statement: ast.stmt) -> Path | None:
    """The path of what an assignment to elements, or to `.data`, writes to."""
    node: ast.expr
    if isinstance(statement, ast.AugAssign):
        node = statement.target
    elif isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        node = statement.targets[0]
    else:
        return None
    return _path(_whole(node))


def _whole(node: ast.expr) -> ast.expr:
    """What a slice is taken of."""
    while isinstance(node, ast.Subscript) and _path(node) is None:
        node = node.value
    return node


def _draws(node: ast.AST) -> bool:
    """Whether a call may give random numbers, as far as names tell."""
    return any(re.search("rand|normal|uniform|xavier|kaiming", _called(each)) for each in ast.walk(node))


class _Reader:
    """Reads the constructors of a module's class, from the first statement to the last."""

    def __init__(self, module: nn.Module, constructors: Sequence[_Constructor]) -> None:
        self._module = module
        self._constructors = constructors
        self._told: dict[Path, Told | None] = {}
        self._sweeps = False
        self.has_looked_further = False  # than at plain attributes of the module

    def script(self) -> _Script:
        self._read(0, self._constructors[0].body)
        return _Script(self._sweeps, self._told) if self._told or self._sweeps else _NOTHING

    def _read(self, at: int, body: Sequence[ast.stmt]) -> None:
        for statement in body:
            self._statement(at, statement)

    def _statement(self, at: int, statement: ast.stmt) -> None:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            if _called(statement.value) == "__init__":
                if at + 1 < len(self._constructors):
                    self._read(at + 1, self._constructors[at + 1].body)
            elif _sets_values(statement.value):
                self._call(statement.value, _Numbers(self, self._constructors[at]))
        elif isinstance(statement, ast.With):
            self._read(at, statement.body)
        elif isinstance(statement, ast.If):
            test = _Numbers(self, self._constructors[at]).truth(statement.test)
            if test is None:
                self._either(at, statement)
            else:
                self._read(at, statement.body if test else statement.orelse)
        elif _may_set(statement):
            if path := _written(statement):
                self._set(path, None if _draws(statement) else Told(None))
            else:
                self._sweep()
        elif isinstance(statement, ast.Assign):  # of another module under a name
            for target in statement.targets:
                self._forget(_path(target) or None)

    def _either(self, at: int, statement: ast.If) -> None:
        """Read both ways, of which one was gone. What both tell alike is told."""
        before, swept = dict(self._told), self._sweeps
        self._read(at, statement.body)
        one, self._told = self._told, dict(before)
        one_sweeps, self._sweeps = self._sweeps, swept
        self._read(at, statement.orelse)
        other = self._told
        self._sweeps |= one_sweeps
        self._told = {path: one.get(path) if one.get(path) == other.get(path) else None for path in {**one, **other}}

    def _sweep(self) -> None:
        """A statement that was not understood, such as a loop over modules, may have set anything."""
        self._sweeps = True
        self._told = {}

    def _set(self, path: Path, told: Told | None) -> None:
        self._forget(path)
        self._told[path] = told

    def _forget(self, path: Path | None) -> None:
        """Forget what has been told of what is at a path, or below it."""
        if path is not None:
            self._told = {each: told for each, told in self._told.items() if each[: len(path)] != path}

    def _call(self, call: ast.Call, numbers: _Numbers) -> None:
        """A statement that calls what sets values."""
        of = _whole(call.func.value) if isinstance(call.func, ast.Attribute) else None
        is_method = of is not None and _path(of) is not None
        given: Any = call.func.value if is_method else _argument(call, 0, "tensor")  # type: ignore[attr-defined]
        path = None if given is None else _path(_whole(given))
        if path:
            told = numbers.constant(call, is_method)
            self._set(path, Told(None) if told is not None and _path(given) is None else told)  # of some elements
        else:  # () is self
            self._sweep()

    def look(self, name: str) -> Any:
        """An attribute of the module."""
        value = self._module.__dict__.get(name)
        if type(value) not in _PLAIN:
            self.has_looked_further = True
        return value

    def is_none(self, path: Path) -> bool | None:
        """Whether None stands at a path, such as the bias of a map without one; None: nothing stands there."""
        self.has_looked_further = True
        module: Any = self._module
        for step in path[:-1]:
            module = _below(module, step)
            if module is None:
                return None
        for held in (module._parameters, module._modules, module._buffers):
            if path[-1] in held:
                return held[path[-1]] is None
        return None


def _argument(call: ast.Call, at: int, name: str) -> ast.expr | None:
    if at < len(call.args):
        return call.args[at]
    return next((each.value for each in call.keywords if each.arg == name), None)


_OPERATORS: dict[type[ast.operator], Any] = {
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


class _Numbers:
    """The values of expressions in a constructor, as far as they can be known."""

    def __init__(self, reader: _Reader, constructor: _Constructor) -> None:
        self._reader = reader
        self._kept = constructor.kept
        self._names = constructor.names

    def constant(self, call: ast.Call, is_method: bool) -> Told | None:
        """What a method of a tensor, or a function of torch.nn.init, sets it to, if that is a constant."""
        name = _called(call)
        if name == ("zero_" if is_method else "zeros_"):
            return Told(0.0)
        if name == "ones_" and not is_method:
            return Told(1.0)
        if name == ("fill_" if is_method else "constant_"):
            given = _argument(call, 0, "value") if is_method else _argument(call, 1, "val")
            value = None if given is None else self._value(given)
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
            right, path = node.comparators[0], _path(node.left)
            if isinstance(right, ast.Constant) and right.value is None and path:
                is_none = self._reader.is_none(path)
                return None if is_none is None else is_none == isinstance(node.ops[0], ast.Is)
            return None
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARISONS:
            left, right = self._value(node.left), self._value(node.comparators[0])
            known = type(left) in _PLAIN and type(right) in _PLAIN
            return bool(_COMPARISONS[type(node.ops[0])](left, right)) if known else None
        found = self._value(node)
        return bool(found) if type(found) in _PLAIN else None

    def _value(self, node: ast.expr) -> Any:
        """A plain value, or an object whose attributes are asked for; None if it is not known."""
        try:
            return self._evaluated(node)
        except Exception:  # whatever arithmetic and the attributes of others raise
            return None

    def _evaluated(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -self._value(node.operand)
        if isinstance(node, ast.BinOp):
            return _OPERATORS[type(node.op)](self._value(node.left), self._value(node.right))
        if isinstance(node, ast.Name):
            if node.id in self._kept:
                return self._reader.look(self._kept[node.id])
            found = self._names.get(node.id)
            return found if type(found) in _PLAIN else None
        if isinstance(node, ast.Attribute):
            if _path(node.value) == ():
                return self._reader.look(node.attr)
            if _is_mathematics(node.value):
                return getattr(math, node.attr)
            return getattr(self._value(node.value), node.attr)
        if isinstance(node, ast.Call) and not node.keywords:
            given = [self._value(each) for each in node.args]
            if all(type(each) in (int, float) for each in given):
                if isinstance(node.func, ast.Attribute) and _is_mathematics(node.func.value):
                    return getattr(math, node.func.attr)(*given)
                if isinstance(node.func, ast.Name) and node.func.id in ("float", "int", "min", "max", "abs"):
                    return getattr(builtins, node.func.id)(*given)
        return None


def _is_mathematics(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("math", "np", "numpy")
