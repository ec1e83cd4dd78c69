"""What containers of modules and parameters are made of, and which place in them each part has.

A list that loops append to has a length that no text tells. The container that is there tells it: if `n` parts are
made once, and a loop makes `k` in each round, a length of `n + 3k` says that there were three rounds.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from fastinit.capture.constructors.scripts import Path
from fastinit.capture.constructors.text import begins, called

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


NAMES = frozenset(each.__name__ for each in CONTAINERS)


class Part(NamedTuple):
    """A part of a container.

    path: that of what it is. loop: which loop makes it, in each of its rounds; None: it is made once. perhaps: whether
    it is there is not known, or not where, or not how often.
    """

    path: Path
    loop: int | None = None
    perhaps: bool = False

    @property
    def is_placed(self) -> bool:
        return self.loop is None and not self.perhaps


class Parts(NamedTuple):
    """All parts of a container, in their order. loop: the innermost loop that the container was made in.

    is_all: whether these are all. If not, more is known of none of them. is_keyed: whether it is a dictionary.
    """

    of: tuple[Part, ...] = ()
    loop: int | None = None
    is_all: bool = True
    is_keyed: bool = False

    @property
    def are_placed(self) -> bool:
        return self.is_all and all(each.is_placed for each in self.of)

    def and_one(self, path: Path, loop: int | None) -> Parts:
        return self._replace(of=(*self.of, Part(path, None if loop == self.loop else loop)))

    def moved(self, old: Path, path: Path) -> Parts:
        """The parts when what was at one path is at another."""
        return self._replace(of=tuple(each._replace(path=moved(each.path, old, path)) for each in self.of))

    def looped(self, before: Parts, loop: int) -> Parts:
        """The parts after a loop, of which each round adds what one has added. `before`: those before the loop."""
        count = len(before.of)
        if self.of[:count] != before.of:
            return self._replace(is_all=False)
        added = (each if each.loop == loop else each._replace(perhaps=True) for each in self.of[count:])
        return self._replace(of=(*self.of[:count], *added))


def moved(each: Path, old: Path, path: Path) -> Path:
    """A path when what was at one is at another."""
    return path + each[len(old) :] if begins(each, old) else each


def joined_parts(one: Parts, other: Parts) -> Parts:
    """The parts if one of two ways was gone."""
    alike = 0
    while alike < min(len(one.of), len(other.of)) and one.of[alike] == other.of[alike]:
        alike += 1
    perhaps = (each._replace(perhaps=True) for each in (*one.of[alike:], *other.of[alike:]))
    return one._replace(of=(*one.of[:alike], *perhaps), is_all=one.is_all and other.is_all)


def places_of(given: Parts, count: int) -> list[list[int]] | None:
    """For each part, its places in a container of so many; None if they are not known."""
    parts = given.of
    loops = {each.loop for each in parts if each.loop is not None}
    if not given.is_all or any(each.perhaps for each in parts) or len(loops) > 1:
        return None
    in_loop = [at for at, each in enumerate(parts) if each.loop is not None]
    rounds, rest = divmod(count - (len(parts) - len(in_loop)), len(in_loop) or 1)
    if rounds < 0 or rest or (not in_loop and rounds) or in_loop != list(range(*_ends(in_loop))):
        return None
    found: list[list[int]] = []
    for at in range(len(parts)):
        if at in in_loop:
            found.append([at + turn * len(in_loop) for turn in range(rounds)])
        else:
            found.append([at if not in_loop or at < in_loop[0] else at + (rounds - 1) * len(in_loop)])
    return found


def _ends(places: Sequence[int]) -> tuple[int, int]:
    return (places[0], places[-1] + 1) if places else (0, 0)


def parts_given(call: ast.Call) -> ast.expr | None:
    """What a new container is made of, as a list, or as a dictionary; None if it is empty, or no container."""
    name = called(call)
    if name == "Sequential" and not (len(call.args) == 1 and called(call.args[0]) == "OrderedDict"):
        return ast.List(call.args, ast.Load()) if call.args else None
    if name in NAMES and len(call.args) == 1:
        given = call.args[0]
        if isinstance(given, ast.Call) and called(given) in ("OrderedDict", "dict", "list", "tuple"):
            return given.args[0] if len(given.args) == 1 and not given.keywords else None
        return given
    return None
