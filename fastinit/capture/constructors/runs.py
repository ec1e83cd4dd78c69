"""Which calls in a constructor can be run again for the module that is there."""

from __future__ import annotations

import ast
from types import FunctionType
from typing import Any, Protocol

from torch import nn

from fastinit.capture.constructors.scripts import Path, Run
from fastinit.capture.constructors.text import called, is_for_values, method_of, of_others, takes


class Seen(Protocol):
    """What the reader of a constructor sees of its module."""

    def path(self, node: ast.expr) -> Path | None: ...
    def at(self, path: Path) -> nn.Module | None: ...
    def object(self, node: ast.expr) -> Any: ...


def run_of(call: ast.Call, function: FunctionType | None, seen: Seen) -> Run | None:
    """What can be run again of a call of a function or method of others; None if it is another call."""
    name = called(call)
    path = seen.path(call.func.value) if isinstance(call.func, ast.Attribute) else None
    if path is not None and name == "apply":
        return _applied(call, path, seen)
    if function is None:
        return None
    if path is not None:
        can_run = not call.args and not call.keywords and takes(function, 1) and is_for_values(function)
        return Run(path, False, name) if can_run else None
    given = seen.path(call.args[0]) if len(call.args) == 1 and not call.keywords else None
    can_run = given is not None and isinstance(seen.at(given), nn.Module) and is_for_values(function)
    return Run(given or (), False, function) if can_run else None


def _applied(call: ast.Call, path: Path, seen: Seen) -> Run | None:
    """What `self.apply(self.init_weights)` runs again."""
    if len(call.args) != 1 or call.keywords or not isinstance(seen.at(path), nn.Module):
        return None
    given = call.args[0]
    if isinstance(given, ast.Attribute) and seen.path(given.value) == ():
        method = method_of(type(seen.at(())), given.attr)
        return Run(path, True, given.attr) if method and takes(method, 2) and is_for_values(method) else None
    function = of_others(seen.object(given))
    can_run = function is not None and takes(function, 1) and is_for_values(function)
    return Run(path, True, function) if function and can_run else None
