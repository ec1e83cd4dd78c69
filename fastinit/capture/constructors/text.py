"""The text of a constructor: its statements, and what can be said of them without reading further."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import lru_cache
from types import FunctionType
from typing import Any, NamedTuple, TypeAlias, cast

from torch import nn

from fastinit.capture.constructors.scripts import Path

Plain: TypeAlias = bool | int | float | str
PLAIN = (bool, int, float, str)  # types of values that are looked at


class Constructor(NamedTuple):
    """A constructor's statements, the names around it, and which of its arguments are kept, as which attributes. Or
    those of code that it calls. defaults: plain ones of arguments. leaves: whether it may return before its end.
    """

    body: list[ast.stmt]
    names: dict[str, Any]
    kept: dict[str, str]
    arguments: tuple[str, ...]
    defaults: dict[str, Plain]
    leaves: bool


@lru_cache(maxsize=4096)
def constructors_of(kind: type) -> tuple[Constructor, ...] | None:
    """Those that others than torch wrote, of the most derived class first; () if they set nothing, None if one of them
    cannot be read."""
    found = []
    for each in kind.__mro__:
        own = each.__dict__.get("__init__")
        # Of a protocol, typing gives a constructor to a class of somebody else.
        if own is None or any(_is_silent(str(getattr(of, "__module__", ""))) for of in (each, own)):
            continue
        read = code_of(inspect.unwrap(own), True)
        if read is None:
            return None
        found.append(read)
    return tuple(found) if any(_tells(kind, read) for read in found) else ()


def _is_silent(module: str) -> bool:
    """Whether constructors of a module of Python set no parameter that others have to be told of."""
    root = module.split(".")[0]
    return root == "torch" or root in sys.stdlib_module_names


def _tells(kind: type, code: Constructor) -> bool:
    """Whether a constructor may make or set parameters, itself or by functions and methods that it calls."""
    nodes = [node for statement in code.body for node in ast.walk(statement)]
    if any(called(node) == "Parameter" or sets_values(node) for node in nodes):
        return True
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    names = {called(each) for each in calls if path_of(getattr(each.func, "value", each.func), SELF) == ()}
    methods = [method for name in names - SETS_NO_VALUES if (method := method_of(kind, name)) is not None]
    functions = (of_others(named(code.names, each.func)) for each in calls)
    return any(makes(each, kind) for each in methods) or any(makes(each) for each in functions if each is not None)


DEEP = 4  # methods that call one another are followed as far as this


@lru_cache(maxsize=4096)
def code_of(function: Any, is_method: bool) -> Constructor | None:
    """The code of a function or method; None if it has no text."""
    definition = _definition(function)
    if definition is None:
        return None
    given = definition.args
    arguments = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    if is_method and (not arguments or "self" in arguments[1:]):
        return None
    for node in ast.walk(definition) if is_method else ():
        if isinstance(node, ast.Name) and node.id == arguments[0]:
            node.id = "self"  # whatever its author calls it
    kept = {
        statement.value.id: target.attr
        for statement in ast.walk(definition)
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Name)
        for target in statement.targets
        if isinstance(target, ast.Attribute) and path_of(target.value, SELF) == () and statement.value.id in arguments
    }
    names = tuple(arguments[1:] if is_method else arguments)
    leaves = any(map(returns, definition.body))
    return Constructor(definition.body, function.__globals__, kept, names, _defaults(function), leaves)


def _defaults(function: FunctionType) -> dict[str, Plain]:
    code = function.__code__
    given = code.co_varnames[: code.co_argcount]
    found: dict[str, Any] = dict(zip(reversed(given), reversed(function.__defaults__ or ()), strict=False))
    found |= function.__kwdefaults__ or {}
    return {name: each for name, each in found.items() if type(each) in PLAIN}


class Expression(NamedTuple):
    """A function that consists of one expression of its arguments. names: the other names in it."""

    arguments: tuple[str, ...]
    expression: ast.expr
    names: tuple[str, ...]

    def of(self, given: Sequence[ast.expr]) -> ast.expr:
        """The expression for arguments that are given."""
        return instead(self.expression, dict(zip(self.arguments, given, strict=True)))


def instead(expression: ast.expr, given: Mapping[str, ast.expr]) -> ast.expr:
    """An expression with others where names were."""
    return cast(ast.expr, _Instead(given).visit(deepcopy(expression)))


class _Instead(ast.NodeTransformer):
    def __init__(self, given: Mapping[str, ast.expr]) -> None:
        self._given = given

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self._given.get(node.id, node)


@lru_cache(maxsize=4096)
def expression_of(function: FunctionType) -> Expression | None:
    """What a function returns, if it does nothing else; None if it does, or if names are bound within."""
    code = code_of(function, False)
    if code is None:
        return None
    body = [each for each in code.body if not (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))]
    if len(body) != 1 or not isinstance(body[0], ast.Return) or body[0].value is None:
        return None
    nodes = list(ast.walk(body[0].value))
    if any(isinstance(each, (ast.Lambda, ast.comprehension, ast.NamedExpr)) for each in nodes):
        return None
    names = dict.fromkeys(each.id for each in nodes if isinstance(each, ast.Name) and each.id not in code.arguments)
    return Expression(code.arguments, body[0].value, tuple(names))


def _definition(function: Any) -> ast.FunctionDef | None:
    if not isinstance(function, FunctionType):
        return None
    try:
        text = inspect.getsource(function)
        # Of a method, lines of a string may be indented less than its first one.
        tree = ast.parse(f"if True:\n{text}" if text[:1].isspace() else text)
    except (OSError, TypeError, SyntaxError):
        return None
    found = tree.body[0] if tree.body else None
    found = found.body[0] if isinstance(found, ast.If) else found
    return found if isinstance(found, ast.FunctionDef) else None


@lru_cache(maxsize=2**16)
def returns(statement: ast.AST) -> bool:
    """Whether a statement may leave the function that it is in. A function within is another one."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
        return False
    return isinstance(statement, ast.Return) or any(map(returns, ast.iter_child_nodes(statement)))


# Functions and methods whose names say that they set values: init.zeros_, fill_, reset_parameters, zero_module.
_SETS = re.compile(r"[^_]_$|(^|_)(init|reset|zero)(_|$|ial)|^apply$")
SETS_NO_VALUES = {"requires_grad_", "post_init", "zero_grad"}


def called(node: ast.AST) -> str:
    """The last name of what is called."""
    if not isinstance(node, ast.Call):
        return ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def sets_values(node: ast.AST) -> bool:
    """Whether an expression or an assignment may set the values of parameters."""
    if isinstance(node, (ast.Assign, ast.AugAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return any(is_of_elements(each) or getattr(each, "attr", "") == "data" for each in targets)
    name = called(node)
    return _SETS.search(name) is not None and name not in SETS_NO_VALUES


def is_of_elements(node: ast.expr) -> bool:
    """Whether something may be an element of a tensor: what has a string for its key is none."""
    key = node.slice if isinstance(node, ast.Subscript) else None
    return key is not None and not (isinstance(key, ast.Constant) and isinstance(key.value, str))


@lru_cache(maxsize=2**16)
def may_set(statement: ast.AST) -> bool:
    return any(map(sets_values, ast.walk(statement)))


def pattern_of(name: ast.expr) -> str:
    """A regular expression for a name that is put together: `f"weight{i}"`. "": nothing of it is known."""
    if isinstance(name, ast.JoinedStr):
        parts: list[Any] = [each.value if isinstance(each, ast.Constant) else None for each in name.values]
    elif isinstance(name, ast.BinOp) and isinstance(name.op, ast.Add):
        parts = [each.value if isinstance(each, ast.Constant) else None for each in (name.left, name.right)]
    elif isinstance(name, ast.BinOp) and isinstance(name.op, ast.Mod) and isinstance(name.left, ast.Constant):
        parts = re.split("(%[0-9]*[sdi])", str(name.left.value))
        parts = [None if each.startswith("%") else each for each in parts]
    else:
        return ""
    found = "".join(".+" if each is None else re.escape(str(each)) for each in parts)
    return found if any(parts) else ""


@lru_cache(maxsize=2**14)
def text_of(node: ast.expr) -> str:
    return ast.unparse(node)


SELF: Mapping[str, Path] = {"self": ()}


def path_of(node: ast.expr, names: Mapping[str, Path]) -> Path | None:
    """The path of `self.head[-1].weight.data`; None if an expression is no such thing.

    `names` has what names stand for, and `self.heads[name]`, and `getattr(self, name)`.
    """
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        above = path_of(node.value, names)
        return above if above is None or node.attr == "data" else (*above, node.attr)
    if isinstance(node, ast.Call) and not node.args and not node.keywords and called(node) == "detach":
        return path_of(node.func.value, names) if isinstance(node.func, ast.Attribute) else None  # the same memory
    if isinstance(node, ast.Call) and called(node) == "getattr" and len(node.args) >= 2:
        above, name = path_of(node.args[0], names), node.args[1]
        if above is not None and isinstance(name, ast.Constant):
            return (*above, str(name.value))
        return names.get(f"getattr({text_of(node.args[0])}, {text_of(name)})")
    if isinstance(node, ast.Subscript) and (above := path_of(node.value, names)) is not None:
        try:
            index = ast.literal_eval(node.slice)
        except ValueError:
            return names.get(text_of(node))
        return (*above, index) if above and type(index) in (int, str) else None
    return None


def begins(path: Path, begin: Path) -> bool:
    return path[: len(begin)] == begin


def is_unplaced(path: Path) -> bool:
    """Whether a path begins at an object that is no part of the module yet."""
    return bool(path) and str(path[0]).startswith("=")


# Names of functions that write to tensors, or that exist only to set values. `init_process_group` and `wandb.init` do
# not match.
_WRITES = re.compile(r"[^_]_$|^apply$|^reset_parameters$|(init|reset|zero)\w*(weight|bias|param)")


def is_for_values(function: FunctionType) -> bool:
    """Whether a function writes to tensors, as its text tells. Only such a function is worth running again."""
    code = code_of(function, False)
    nodes = (node for statement in (code.body if code else ()) for node in ast.walk(statement))
    return any(sets_values(node) and (_WRITES.search(called(node)) or not called(node)) for node in nodes)


def of_others(code: Any) -> FunctionType | None:
    """A function or method that others than torch wrote."""
    return code if isinstance(code, FunctionType) and not code.__module__.startswith(("torch.", "fastinit.")) else None


def method_of(kind: Any, name: str) -> FunctionType | None:
    """A method of a class that others than torch wrote; None if it is no such thing."""
    return of_others(attribute_of(kind, name))


def attribute_of(kind: Any, name: str) -> Any:
    """What a class holds under a name: of a property, the property."""
    return next((each.__dict__[name] for each in kind.__mro__ if name in each.__dict__), None)


def takes(function: FunctionType, count: int) -> bool:
    try:
        inspect.signature(function).bind(*range(count))
    except (TypeError, ValueError):
        return False
    return True


_DRAWS = re.compile(
    "rand|normal|uniform|xavier|kaiming|orthogonal|glorot|lecun|bernoulli|exponential_|cauchy|multinomial|poisson|"
    "(^|_)r?sample(_|$)|choice"
)
EMPTY = frozenset({"empty", "empty_like", "new_empty", "empty_strided"})


@lru_cache(maxsize=2**16)
def draws(node: ast.AST) -> bool:
    """Whether a call may give random numbers, as far as names tell."""
    return any(_DRAWS.search(called(each)) or getattr(each, "attr", "") == "random" for each in ast.walk(node))


def makes(function: FunctionType, kind: type | None = None) -> bool:
    """Whether a function makes parameters, or sets those of modules that it makes, as far as its text tells, and that
    of what it calls. kind: the class of the module, of a method."""
    return _makes(function, kind, 0)


@lru_cache(maxsize=2**14)
def _makes(function: FunctionType, kind: type | None, depth: int) -> bool:
    code = code_of(function, False)
    nodes = [node for statement in (code.body if code else ()) for node in ast.walk(statement)]
    if any(called(node) == "Parameter" or sets_values(node) for node in nodes):
        return True
    if code is None or depth == DEEP:
        return False
    for node in nodes:
        if isinstance(node, ast.Call):
            of_self = isinstance(node.func, ast.Attribute) and path_of(node.func.value, SELF) == ()
            inner = method_of(kind, called(node)) if of_self and kind else of_others(named(code.names, node.func))
            if inner is not None and _makes(inner, kind if of_self else None, depth + 1):
                return True
    return False


def function_draws(function: FunctionType) -> bool:
    """Whether a function may give random numbers, or memory for them, as far as its text tells."""
    code = code_of(function, False)
    nodes = [node for statement in (code.body if code else ()) for node in ast.walk(statement)]
    return any(_DRAWS.search(called(node)) or called(node) in EMPTY for node in nodes)


def named(names: Mapping[str, Any], node: ast.expr) -> Any:
    """What a global name, or a name in a module of Python, stands for."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute) and inspect.ismodule(of := named(names, node.value)):
        return getattr(of, node.attr, None)
    return None


def is_new_tensor(node: ast.AST, names: Mapping[str, Any]) -> bool:
    """Whether a function of torch gives a tensor, or a method of that: `torch.empty(3).fill_(0.1)`."""
    while isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and named(names, node.func) is None:
        node = node.func.value
    found = named(names, node.func) if isinstance(node, ast.Call) else None
    if isinstance(found, type) and issubclass(found, nn.Module):
        return False
    return str(getattr(found, "__module__", "")).startswith("torch")


def pairs_of(statement: ast.stmt) -> list[tuple[ast.expr, ast.expr]] | None:
    """The assignments of modules and containers in `self.q, self.k = nn.Linear(3, 3), nn.Linear(3, 3)`; None if it is
    another statement."""
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
        return None
    target, value = statement.targets[0], statement.value
    if not isinstance(target, ast.Tuple) or not isinstance(value, ast.Tuple) or len(target.elts) != len(value.elts):
        return None
    # Of parameters that are made in pairs nothing is told: they are kept, and named.
    is_new = all(isinstance(each, ast.Call) and called(each) != "Parameter" for each in value.elts)
    return list(zip(target.elts, value.elts, strict=True)) if is_new else None


def argument(call: ast.Call, at: int, name: str) -> ast.expr | None:
    if at < len(call.args):
        return call.args[at]
    return next((each.value for each in call.keywords if each.arg == name), None)
