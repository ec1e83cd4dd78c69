"""What has been read so far: what parameters are set to, and what local names stand for."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from types import FunctionType
from typing import NamedTuple

from torch import nn

from fastinit.capture.constructors.contents import Content, mixed
from fastinit.capture.constructors.parts import Parts, joined_parts, moved
from fastinit.capture.constructors.questions import Asking
from fastinit.capture.constructors.scripts import UNKNOWN, Path, Sweep, Told, ToldOf, joined
from fastinit.capture.constructors.text import SELF, Plain, begins, draws, function_draws, is_unplaced


class _Copies(NamedTuple):
    told: ToldOf
    drawn: dict[Path, Content]
    names: dict[str, Path]
    loose: dict[str, Path]
    contents: dict[str, Content]
    plain: dict[str, Plain]
    parts: dict[Path, Parts]
    last: int


class Facts(Asking):
    """What the reader of a constructor knows."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self._told: ToldOf = {}
        self._drawn: dict[Path, Content] = {}  # parameters that are made of draws, or of empty memory
        self._sweeps: list[Sweep] = []
        self._names = dict(SELF)  # what local names stand for
        self._loose: dict[str, Path] = {}  # local names for something of what is below a path
        self.contents: dict[str, Content] = {}  # what tensors hold that local names stand for
        self._plain: dict[str, Plain] = {}  # the numbers and strings that local names stand for
        self._parts: dict[Path, Parts] = {}  # what containers are made of
        self._before: dict[Path, Told | None] = {}  # what was told before code ran that can be run again
        self._unplaced = 0
        self._is_over_all = False  # whether what is read is a round of a loop over all that is below a module

    def path(self, node: ast.expr) -> Path | None:
        raise NotImplementedError

    def function(self, call: ast.Call) -> FunctionType | None:
        raise NotImplementedError

    def plain(self, name: str) -> Plain | None:
        """The number or the string that a local name stands for."""
        return self._plain.get(name)

    def _copies(self) -> _Copies:
        return _Copies(
            dict(self._told),
            dict(self._drawn),
            dict(self._names),
            dict(self._loose),
            dict(self.contents),
            dict(self._plain),
            dict(self._parts),
            self._unplaced,
        )

    def _take(self, given: _Copies) -> None:
        self._told, self._drawn, self._names, self._loose, self.contents, self._plain, self._parts, _ = given

    def _join(self, one: _Copies, before: _Copies) -> None:
        """Two ways meet, of which one was gone. What was made in one of them is there if that way was gone."""
        self._drawn = {path: mixed(one.drawn.get(path), self._drawn.get(path)) for path in {**one.drawn, **self._drawn}}
        unlike = None if self._is_over_all else UNKNOWN
        self._told = {
            path: told if _is_made_after(path, before) else joined(path, one.told, self._told, self._drawn, unlike)
            for path, told in {**one.told, **self._told}.items()
        }
        in_both = one.parts.keys() & self._parts.keys()
        self._parts = {
            path: joined_parts(one.parts[path], parts) if path in in_both else parts
            for path, parts in {**one.parts, **self._parts}.items()
        }
        self._names = {name: path for name, path in self._names.items() if one.names.get(name) == path}
        self._plain = {name: each for name, each in self._plain.items() if one.plain.get(name) == each}
        self._loose = {**one.loose, **self._loose}
        both = {**one.contents, **self.contents}
        self.contents = {name: mixed(one.contents.get(name), self.contents.get(name)) for name in both}

    def _new_path(self) -> Path:
        self._unplaced += 1
        return (f"={self._unplaced}",)

    def _set(self, path: Path, told: Told | None) -> None:
        of = self.at(path[:-1])
        if of is None or of._parameters.get(str(path[-1])) is None:  # below a parameter there is nothing
            self._forget(path, rebound=False)
        self._told[path] = told

    def _forget(self, path: Path | None, *, rebound: bool = True) -> None:
        """Forget what has been told of what is at a path, or below it. `rebound`: something else is there now."""
        if path is not None:
            self._told = {each: told for each, told in self._told.items() if not begins(each, path)}
            if path and rebound:
                self._parts = {each: parts for each, parts in self._parts.items() if not begins(each, path)}
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
        if old == path:
            return
        self._told = {moved(each, old, path): told for each, told in self._told.items()}
        self._before = {moved(each, old, path): told for each, told in self._before.items()}
        self._names = {name: moved(each, old, path) for name, each in self._names.items()}
        self._drawn = {moved(each, old, path): content for each, content in self._drawn.items()}
        self._sweeps = [each._replace(path=moved(each.path, old, path)) for each in self._sweeps]
        self._parts = {moved(each, old, path): parts.moved(old, path) for each, parts in self._parts.items()}

    def _unname(self, name: str) -> None:
        """A local name stands for something else from here on."""
        for held in (self._names, self._loose, self.contents, self._plain):
            held.pop(name, None)
        items = [each for each in self._names if each[-1] in "])" and re.search(rf"\b{name}\b", each)]
        for each in items:
            del self._names[each]

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


def _is_made_after(path: Path, before: _Copies) -> bool:
    return is_unplaced(path) and int(str(path[0])[1:]) > before.last
