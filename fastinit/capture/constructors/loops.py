"""The rounds of a loop in a constructor, where it is over modules that are known."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any, Protocol

from torch import nn

from fastinit.capture.constructors.parts import Parts
from fastinit.capture.constructors.questions import Below
from fastinit.capture.constructors.scripts import Path
from fastinit.capture.constructors.text import called


class Seen(Protocol):
    """What the reader of a constructor sees of its module."""

    def path(self, node: ast.expr) -> Path | None: ...
    def at(self, path: Path) -> nn.Module | None: ...
    def parts_at(self, path: Path) -> Parts | None: ...
    def all_below(self, path: Path) -> tuple[Below, ...] | None: ...


def rounds_of(loop: ast.For, seen: Seen) -> list[tuple[ast.expr, Any]] | None:
    """What the target of a loop over some modules stands for in each round; None if that is not known."""
    if loop.orelse or any(isinstance(each, (ast.Break, ast.Continue)) for each in _inside(loop)):
        return None
    if (path := _all_parameters(loop, seen)) is not None:
        return [(loop.target, path)]
    items = _items(loop.iter, seen)
    return None if items is None else [(loop.target, item) for item in items]


def body_of(loop: ast.For) -> list[ast.stmt]:
    """What a loop does in a round. What comes after `if ...: continue` is done otherwise."""
    return _without_continue(loop.body)


def _without_continue(body: list[ast.stmt]) -> list[ast.stmt]:
    for at, each in enumerate(body):
        if isinstance(each, ast.If) and isinstance(each.body[-1], ast.Continue):
            done: list[ast.stmt] = each.body[:-1] or [ast.Pass()]
            return [*body[:at], ast.If(each.test, done, _without_continue([*each.orelse, *body[at + 1 :]]))]
    return body


def _inside(loop: ast.For) -> Iterator[ast.AST]:
    return (node for statement in body_of(loop) for node in ast.walk(statement))


def _all_parameters(loop: ast.For, seen: Seen) -> Path | None:
    """The path of a module if the same is done to each of its parameters. A parameter's name stands for them all."""
    of = loop.iter
    if not isinstance(of, ast.Call) or called(of) != "parameters" or of.args or of.keywords or len(loop.body) > 1:
        return None
    is_one = isinstance(loop.body[0], ast.Expr) and isinstance(loop.target, ast.Name)
    return (seen.path(of.func.value) or None) if is_one and isinstance(of.func, ast.Attribute) else None


_LISTED = frozenset({"modules", "named_modules", "children", "named_children", "parameters", "named_parameters"})


def is_over_all_below(loop: ast.For) -> bool:
    """Whether it is a loop over what a module lists of itself, such as `self.modules()`."""
    return any(called(each) in _LISTED for each in ast.walk(loop.iter))


def _listed(call: ast.Call, seen: Seen) -> list[Any] | None:
    """What `self.named_modules()` gives, or another of these methods."""
    path = seen.path(call.func.value) if isinstance(call.func, ast.Attribute) else None
    if path is None or call.args or call.keywords or seen.at(path) is None:
        return None
    modules = seen.all_below(path)
    if modules is None:
        return None
    what = called(call).removeprefix("named_")
    if what == "parameters":
        items = [item for each in modules for item in _parameters_of(each)]
    else:
        is_child = what == "children"
        items = [[each.name, each.path] for each in modules if not is_child or (each.name and "." not in each.name)]
    return items if called(call) != what else [path for _, path in items]


def _parameters_of(module: Below) -> list[list[Any]]:
    """Names and paths of the parameters that a module holds itself."""
    is_list = issubclass(module.kind, nn.ParameterList)
    return [
        [f"{module.name}.{name}" if module.name else name, (*module.path, position if is_list else name)]
        for position, (name, dimensions) in enumerate(module.parameters)
        if dimensions is not None
    ]


def _items(node: ast.expr, seen: Seen) -> list[Any] | None:
    """Paths that are looped over, or lists of paths and names."""
    if isinstance(node, ast.Call) and called(node) in _LISTED:
        return _listed(node, seen)
    if isinstance(node, (ast.Tuple, ast.List)):
        paths = [seen.path(each) for each in node.elts]
        return None if None in paths else paths
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("enumerate", "zip"):
        within = [_items(each, seen) for each in node.args]
        if not within or None in within or node.keywords:
            return None
        if node.func.id == "enumerate":
            return [[None, each] for each in within[0] or ()] if len(within) == 1 else None
        return [list(each) for each in zip(*within, strict=False)]
    path = seen.path(node)
    parts = None if path is None else seen.parts_at(path)
    if parts is not None and parts.are_placed:
        return [each.path for each in parts.of]
    module = None if path is None else seen.at(path)
    if path is None or not isinstance(module, (nn.Sequential, nn.ModuleList)):
        return None
    return [(*path, at) for at in range(len(module))]
