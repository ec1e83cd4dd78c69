"""What has been read so far: what parameters are set to, and what local names stand for."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from types import FunctionType
from typing import NamedTuple

from torch import nn

from fastinit.capture.constructors.contents import Content, mixed
from fastinit.capture.constructors.scripts import UNKNOWN, Path, Sweep, Told, ToldOf, joined
from fastinit.capture.constructors.text import SELF, begins, called, draws, function_draws, is_unplaced


class _Copies(NamedTuple):
    told: ToldOf
    drawn: set[Path]
    names: dict[str, Path]
    loose: dict[str, Path]
    contents: dict[str, Content]


class Facts:
    """What the reader of a constructor knows."""

    def __init__(self) -> None:
        self._told: ToldOf = {}
        self._drawn: set[Path] = set()  # parameters that are made of draws, or of memory
        self._sweeps: list[Sweep] = []
        self._names = dict(SELF)  # what local names stand for
        self._loose: dict[str, Path] = {}  # local names for something of what is below a path
        self.contents: dict[str, Content] = {}  # what tensors hold that local names stand for
        self._unplaced = 0

    def path(self, node: ast.expr) -> Path | None:
        raise NotImplementedError

    def at(self, path: Path) -> nn.Module | None:
        raise NotImplementedError

    def function(self, call: ast.Call) -> FunctionType | None:
        raise NotImplementedError

    def _copies(self) -> _Copies:
        return _Copies(dict(self._told), set(self._drawn), dict(self._names), dict(self._loose), dict(self.contents))

    def _take(self, given: _Copies) -> None:
        self._told, self._drawn, self._names, self._loose, self.contents = given

    def _join(self, one: _Copies) -> None:
        """Two ways meet, of which one was gone."""
        self._drawn |= one.drawn
        self._told = {path: joined(path, one.told, self._told, self._drawn) for path in {**one.told, **self._told}}
        self._names = {name: path for name, path in self._names.items() if one.names.get(name) == path}
        self._loose = {**one.loose, **self._loose}
        both = {**one.contents, **self.contents}
        self.contents = {name: mixed(one.contents.get(name), self.contents.get(name)) for name in both}

    def _new_path(self) -> Path:
        self._unplaced += 1
        return (f"={self._unplaced}",)

    def _set(self, path: Path, told: Told | None) -> None:
        self._forget(path, rebound=False)
        self._told[path] = told

    def _forget(self, path: Path | None, *, rebound: bool = True) -> None:
        """Forget what has been told of what is at a path, or below it. `rebound`: something else is there now."""
        if path is not None:
            self._told = {each: told for each, told in self._told.items() if not begins(each, path)}
            if path and rebound:
                self._names = {name: each for name, each in self._names.items() if not begins(each, path)}

    def _swept(self, sweeps: Sequence[Sweep]) -> None:
        for sweep in sweeps:
            self._sweeps.append(sweep)
            for path, told in self._told.items():
                if (begins(path, sweep.path) or begins(sweep.path, path)) and sweep.is_for(
                    self.at(path[:-1]), path[-1]
                ):
                    self._told[path] = sweep.leaves(told)

    def _place(self, old: Path, path: Path) -> None:
        """A new module gets its place."""

        def moved(each: Path) -> Path:
            return path + each[len(old) :] if begins(each, old) else each

        self._told = {moved(each): told for each, told in self._told.items()}
        self._names = {name: moved(each) for name, each in self._names.items()}
        self._drawn = set(map(moved, self._drawn))
        self._sweeps = [each._replace(path=moved(each.path)) for each in self._sweeps]

    def _place_parts(self, node: ast.expr, path: Path) -> None:
        """New modules get their places in a container: `nn.Sequential(linear, nn.ReLU())`."""
        if not isinstance(node, ast.Call) or called(node) not in ("Sequential", "ModuleList"):
            return
        parts = node.args
        if called(node) == "ModuleList":
            parts = parts[0].elts if len(parts) == 1 and isinstance(parts[0], ast.List) else []
        for position, part in enumerate(parts):
            if isinstance(part, ast.Starred):
                return
            given = self.path(part)
            if given is not None and is_unplaced(given) and len(given) == 1:
                self._place(given, (*path, position))
            self._place_parts(part, (*path, position))

    def _fill(self, target: ast.expr | None, node: ast.AST) -> None:
        """A part of a tensor under a local name is written to."""
        while isinstance(target, (ast.Subscript, ast.Attribute)):
            target = target.value
        if isinstance(target, ast.Name) and self.path(target) is None:
            is_drawn = self._draws(node) or self.contents.get(target.id) == "drawn"
            self.contents[target.id] = "drawn" if is_drawn else UNKNOWN

    def _draws(self, node: ast.AST) -> bool:
        """Whether an expression may give random numbers, or a function that it calls."""
        functions = (self.function(each) for each in ast.walk(node) if isinstance(each, ast.Call))
        return draws(node) or any(function_draws(each) for each in functions if each is not None)

    def _is_all_of(self, node: ast.expr) -> bool:
        """Whether it is `bias.data[:]`."""
        if not isinstance(node, ast.Subscript) or self.path(node.value) is None:
            return False
        at = node.slice
        if isinstance(at, ast.Constant):
            return at.value is Ellipsis
        return isinstance(at, ast.Slice) and at.lower is at.upper is at.step is None

    def _whole(self, node: ast.expr) -> ast.expr:
        """What a slice is taken of."""
        while isinstance(node, ast.Subscript) and self.path(node) is None:
            node = node.value
        return node
