"""The rounds of a loop in a constructor, where it is over modules that are known."""

from __future__ import annotations

import ast
from typing import Any, Protocol

from torch import nn

from fastinit.capture.constructors.scripts import Path


class Seen(Protocol):
    """What the reader of a constructor sees of its module."""

    def path(self, node: ast.expr) -> Path | None: ...
    def at(self, path: Path) -> nn.Module | None: ...


def rounds_of(loop: ast.For, seen: Seen) -> list[tuple[ast.expr, Any]] | None:
    """What the target of a loop over some modules stands for in each round; None if that is not known."""
    if loop.orelse or any(isinstance(each, (ast.Break, ast.Continue)) for each in ast.walk(loop)):
        return None
    items = _items(loop.iter, seen)
    return None if items is None else [(loop.target, item) for item in items]


def _items(node: ast.expr, seen: Seen) -> list[Any] | None:
    """Paths, or tuples of them, that are looped over."""
    if isinstance(node, (ast.Tuple, ast.List)):
        paths = [seen.path(each) for each in node.elts]
        return None if None in paths else paths
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("enumerate", "zip"):
        within = [_items(each, seen) for each in node.args]
        if not within or None in within or node.keywords:
            return None
        if node.func.id == "enumerate":
            return [(None, each) for each in within[0] or ()] if len(within) == 1 else None
        return list(zip(*within, strict=False))
    path = seen.path(node)
    module = None if path is None else seen.at(path)
    if path is None or not isinstance(module, (nn.Sequential, nn.ModuleList)):
        return None
    return [(*path, at) for at in range(len(module))]
