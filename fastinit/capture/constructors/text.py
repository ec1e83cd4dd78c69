"""The text of a constructor: its statements, and what can be said of them without reading further."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Mapping
from functools import lru_cache
from types import FunctionType
from typing import Any, NamedTuple

from fastinit.capture.constructors.scripts import Path

PLAIN = (bool, int, float, str)  # types of values that are looked at


class Constructor(NamedTuple):
    """A constructor's statements, the names around it, and which of its arguments are kept, as which attributes."""

    body: list[ast.stmt]
    names: dict[str, Any]
    kept: dict[str, str]
    arguments: tuple[str, ...]


@lru_cache(maxsize=4096)
def constructors_of(kind: type) -> tuple[Constructor, ...] | None:
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
    nodes = (node for each in found for statement in each.body for node in ast.walk(statement))
    sets = any(called(node) == "Parameter" or sets_values(node) for node in nodes)
    return tuple(found) if sets else ()


def _read(function: Any) -> Constructor | None:
    function = inspect.unwrap(function)
    if not isinstance(function, FunctionType):
        return None
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None
    definition = tree.body[0] if tree.body else None
    if not isinstance(definition, ast.FunctionDef) or any(map(_returns, definition.body)):
        return None  # what follows a return is perhaps not done
    given = definition.args
    arguments = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    if not arguments or "self" in arguments[1:]:
        return None
    for node in ast.walk(definition):
        if isinstance(node, ast.Name) and node.id == arguments[0]:
            node.id = "self"  # whatever its author calls it
    kept = {
        statement.value.id: target.attr
        for statement in ast.walk(definition)
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Name)
        for target in statement.targets
        if isinstance(target, ast.Attribute) and path_of(target.value, SELF) == () and statement.value.id in arguments
    }
    return Constructor(definition.body, function.__globals__, kept, tuple(arguments[1:]))


def _returns(statement: ast.AST) -> bool:
    """Whether a statement may leave the function that it is in. A function within is another one."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
        return False
    return isinstance(statement, ast.Return) or any(map(_returns, ast.iter_child_nodes(statement)))


# Functions and methods whose names say that they set values: init.zeros_, fill_, reset_parameters, zero_module.
_SETS = re.compile(r"[^_]_$|(^|_)(init|reset|zero)(_|$|ial)|^apply$")
_SETS_NO_VALUES = {"requires_grad_", "post_init", "zero_grad"}


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
    return _SETS.search(name) is not None and name not in _SETS_NO_VALUES


def is_of_elements(node: ast.expr) -> bool:
    """Whether something may be an element of a tensor: what has a string for its key is none."""
    key = node.slice if isinstance(node, ast.Subscript) else None
    return key is not None and not (isinstance(key, ast.Constant) and isinstance(key.value, str))


@lru_cache(maxsize=2**16)
def may_set(statement: ast.AST) -> bool:
    return any(map(sets_values, ast.walk(statement)))


SELF: Mapping[str, Path] = {"self": ()}


def path_of(node: ast.expr, names: Mapping[str, Path]) -> Path | None:
    """The path of `self.head[-1].weight.data`; None if an expression is no such thing.

    `names` has what names stand for.
    """
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        above = path_of(node.value, names)
        return above if above is None or node.attr == "data" else (*above, node.attr)
    if isinstance(node, ast.Subscript) and (above := path_of(node.value, names)):
        try:
            index = ast.literal_eval(node.slice)
        except ValueError:
            return None
        return (*above, index) if type(index) is int else None
    return None


def begins(path: Path, begin: Path) -> bool:
    return path[: len(begin)] == begin


def is_unplaced(path: Path) -> bool:
    """Whether a path begins at an object that is no part of the module yet."""
    return bool(path) and str(path[0]).startswith("=")


# Names of functions that write to tensors, or that exist only to set values. `init_process_group` and `wandb.init` do
# not match.
_WRITES = re.compile(r"[^_]_$|^apply$|^reset_parameters$|(init|reset|zero)\w*(weight|bias|param)")


@lru_cache(maxsize=4096)
def _body(function: FunctionType) -> tuple[ast.stmt, ...] | None:
    """The statements of a function; None if it has no text."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None
    return tuple(getattr(tree.body[0], "body", ()))


def function_sets(function: FunctionType) -> bool | None:
    """Whether a function may set values, as far as its text tells; None if it has none."""
    body = _body(function)
    return None if body is None else any(map(may_set, body))


def is_for_values(function: FunctionType) -> bool:
    """Whether a function writes to tensors, as its text tells. Only such a function is worth running again."""
    nodes = (node for statement in _body(function) or () for node in ast.walk(statement))
    return any(sets_values(node) and (_WRITES.search(called(node)) or not called(node)) for node in nodes)


def of_others(code: Any) -> FunctionType | None:
    """A function or method that others than torch wrote."""
    return code if isinstance(code, FunctionType) and not code.__module__.startswith(("torch.", "fastinit.")) else None


def takes(function: FunctionType, count: int) -> bool:
    try:
        inspect.signature(function).bind(*range(count))
    except (TypeError, ValueError):
        return False
    return True


def draws(node: ast.AST) -> bool:
    """Whether a call may give random numbers, as far as names tell."""
    return any(re.search("rand|normal|uniform|xavier|kaiming", called(each)) for each in ast.walk(node))


def named(names: Mapping[str, Any], node: ast.expr) -> Any:
    """What a global name, or a name in a module of Python, stands for."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute) and inspect.ismodule(of := named(names, node.value)):
        return getattr(of, node.attr, None)
    return None


def argument(call: ast.Call, at: int, name: str) -> ast.expr | None:
    if at < len(call.args):
        return call.args[at]
    return next((each.value for each in call.keywords if each.arg == name), None)
