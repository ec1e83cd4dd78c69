"""The arguments that constructors pass to reset code. Run without them, it would do something else."""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

from torch import nn

from fastinit.capture.constructors.questions import value_at
from fastinit.capture.constructors.scripts import Path
from fastinit.capture.constructors.text import PLAIN, SELF, Constructor, called, constructors_of, path_of


class _Call(NamedTuple):
    call: ast.Call
    constructor: Constructor


@lru_cache(maxsize=4096)
def _calls(module_type: type, name: str) -> tuple[_Call, ...]:
    """The calls of a method by the most derived constructor that calls it, as far as constructors can be read."""
    for constructor in constructors_of(module_type) or ():
        nodes = (node for statement in constructor.body for node in ast.walk(statement) if called(node) == name)
        found = tuple(
            _Call(node, constructor)
            for node in nodes
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            if path_of(node.func.value, SELF) == ()
        )
        if found:
            return found
    return ()


def as_called(module: nn.Module, name: str, method: Callable[..., Any]) -> Callable[..., Any] | None:
    """A method with the arguments that its module's constructor has passed; None if they are gone.

    Literals are known, and attributes of the module that are plain values.
    """
    passed: list[tuple[list[Any], dict[str, Any]]] = []
    for call, constructor in _calls(type(module), name):  # type: ignore[arg-type]
        given = [*call.args, *(each.value for each in call.keywords)]
        values = [_value(module, constructor, node) for node in given]
        if any(value is None for value in values) or any(each.arg is None for each in call.keywords):
            return None
        plain = [value[0] for value in values if value is not None]
        named = {str(each.arg): value for each, value in zip(call.keywords, plain[len(call.args) :], strict=True)}
        passed.append((plain[: len(call.args)], named))
    if not passed:
        return method
    if any(each != passed[0] for each in passed):
        return None
    arguments, named = passed[0]
    return partial(method, *arguments, **named) if arguments or named else method


def is_for_each(module: nn.Module, name: str) -> bool:
    """Whether a method with one argument may take modules: its constructor passes it no plain value."""
    for call, constructor in _calls(type(module), name):  # type: ignore[arg-type]
        if call.keywords or len(call.args) != 1 or _value(module, constructor, call.args[0]) is not None:
            return False
        given = call.args[0]
        if isinstance(given, ast.Name) and given.id in constructor.arguments and given.id not in module._modules:
            return False
    return True


def _value(module: nn.Module, constructor: Constructor, node: ast.expr) -> tuple[Any] | None:
    """The plain value of an argument; None if it is gone."""
    try:
        return (ast.literal_eval(node),)
    except ValueError:
        pass
    path: Path | None = path_of(node, SELF)
    if isinstance(node, ast.Name) and node.id in constructor.kept:
        path = (constructor.kept[node.id],)
    value = value_at(module, path) if path else None
    return (value,) if type(value) in PLAIN else None
