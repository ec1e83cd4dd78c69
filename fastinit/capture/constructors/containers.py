"""Follows lists, dictionaries and torch's containers while they are filled."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from fastinit.capture.constructors.facts import Facts
from fastinit.capture.constructors.parts import (
    CONTAINERS,
    Part,
    Parts,
    moved,
    parts_given,
    places_of,
)
from fastinit.capture.constructors.scripts import Path, Sweep, ToldOf
from fastinit.capture.constructors.text import argument, begins, called, is_unplaced, pattern_of, text_of


class Containers(Facts):
    """What the reader of a constructor knows, with what containers are made of."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self._loop: int | None = None  # the innermost one that is read
        self._loops = 0
        self._patterns: list[tuple[Path, str, Path]] = []  # modules, names in them, and what has such a name
        self._perhaps = 0  # how many conditions and loops around it are not decided

    def _give(self, path: Path, value: ast.expr) -> bool:
        raise NotImplementedError

    def _read(self, body: Sequence[ast.stmt]) -> None:
        raise NotImplementedError

    def _rebind(self, node: ast.AST, below: Path | None = None) -> None:
        raise NotImplementedError

    def parts_at(self, path: Path) -> Parts | None:
        """What a container is made of."""
        return self._parts.get(path)

    # ---- new containers ----

    def _is_new_container(self, node: ast.expr) -> bool:
        """Whether an expression gives a new list or dictionary, of more than numbers and strings."""
        if isinstance(node, ast.BinOp):
            return self._is_new_container(node.left) or self._is_new_container(node.right)
        held = (
            node.elts if isinstance(node, (ast.List, ast.Tuple)) else node.values if isinstance(node, ast.Dict) else ()
        )
        return isinstance(node, (ast.List, ast.Tuple, ast.ListComp, ast.Dict, ast.DictComp, ast.GeneratorExp)) and not (
            held and all(isinstance(each, ast.Constant) for each in held)
        )

    def _part_of(self, node: ast.expr) -> Path:
        """The path of what becomes a part: its own if it is new, or another."""
        path = self.path(node)
        if path is not None and is_unplaced(path) and len(path) == 1:
            return path
        new = self._new_path()
        if path is None:
            self._give(new, node)
        return new

    def _fill_new(self, path: Path, node: ast.expr) -> None:
        """A new container at a path has these parts."""
        given: Any = parts_given(node) if isinstance(node, ast.Call) else node
        is_keyed = "Dict" in (called(node) or type(node).__name__)
        parts = Parts(loop=self._loop) if given is None else self._parts_of(given)
        if parts is None:
            self._parts[path] = Parts(is_all=False)
            return
        parts = parts._replace(loop=self._loop, is_keyed=is_keyed)
        if given is None:
            self._parts[path] = parts
            return
        if not (isinstance(given, ast.Dict) or _is_of_pairs(given)):
            parts = self._placed(path, parts)
        else:
            for key, part in zip(_keys_of(given), parts.of, strict=True):
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    self._place(part.path, (*path, key.value))
                    parts = parts.moved(part.path, (*path, key.value))
                elif key is not None and len(path) == 1:
                    self._names[f"self.{path[0]}[{text_of(key)}]"] = part.path
        self._parts[path] = parts

    def _parts_of(self, node: ast.expr) -> Parts | None:
        """The parts of a list or a dictionary; None if they are not known."""
        if isinstance(node, (ast.ListComp, ast.GeneratorExp, ast.DictComp)):
            value = node.value if isinstance(node, ast.DictComp) else node.elt
            return self._comprehended(value, node.generators)
        if isinstance(node, ast.BinOp):
            if isinstance(node.op, ast.Add):
                return self._added(self._parts_of(node.left), self._parts_of(node.right))
            listed = next((each for each in (node.left, node.right) if isinstance(each, ast.List)), None)
            return None if listed is None else self._comprehended(listed, [])
        if isinstance(node, (ast.List, ast.Tuple)):
            parts: Parts | None = Parts(loop=self._loop)
            for each in node.elts:
                if isinstance(each, ast.Starred):
                    parts = self._added(parts, self._parts_of(each.value))
                else:
                    value = each.elts[1] if _is_of_pairs(node) and isinstance(each, ast.Tuple) else each
                    parts = self._added(parts, Parts((Part(self._part_of(value)),)))
            return parts
        if isinstance(node, ast.Dict):
            if None in node.keys:
                return None
            return Parts(tuple(Part(self._part_of(each)) for each in node.values), self._loop)
        path = self.path(node)
        return None if path is None else self._parts.get(path)

    def _added(self, one: Parts | None, other: Parts | None) -> Parts | None:
        if one is None or other is None:
            return None
        return one._replace(of=(*one.of, *other.of), is_all=one.is_all and other.is_all)

    def _comprehended(self, value: ast.expr, generators: Sequence[ast.comprehension]) -> Parts:
        """The parts that are made in rounds. Without generators: those of a list, times a number."""
        names, outer = dict(self._names), self._loop
        for each in generators:
            self._rebind(each.target)
        self._loop = self._new_loop()
        made = self._parts_of(value) if not generators else Parts((Part(self._part_of(value)),))
        is_simple = len(generators) < 2 and not any(each.ifs for each in generators)
        parts = (
            tuple(Part(each.path, self._loop, not is_simple or not each.is_placed) for each in made.of) if made else ()
        )
        self._names, self._loop = names, outer
        return Parts(parts, outer, made is not None)

    def _new_loop(self) -> int:
        self._loops += 1
        return self._loops

    def _placed(self, path: Path, parts: Parts) -> Parts:
        """The parts of a container, with their places in it if those are known."""
        if not parts.are_placed:
            return parts
        found = []
        for at, part in enumerate(parts.of):
            if is_unplaced(part.path):
                self._place(part.path, (*path, at))
                found.append(Part((*path, at)))
            else:
                found.append(part)
        return parts._replace(of=tuple(found))

    # ---- containers that get more parts ----

    def _fills(self, call: ast.Call) -> bool:
        """Follow a call that gives a container more parts, or a module another attribute; whether it is one."""
        name = called(call)
        if name == "setattr" and len(call.args) == 3:
            self._name(*call.args)
            return True
        if not isinstance(call.func, ast.Attribute) or (of := self.path(call.func.value)) is None:
            return False
        if name in _NAMING:
            key = argument(call, 0, "name")
            given = next(filter(None, (argument(call, 1, each) for each in _NAMING[name])), None)
            if of in self._parts and given is not None:
                self._add(of, given)
            elif key is not None and given is not None:
                self._name(call.func.value, key, given)
            return True
        parts = self._parts.get(of)
        if parts is None:
            return False
        if name == "append" and len(call.args) == 1:
            self._add(of, call.args[0])
        elif name in ("extend", "update") and len(call.args) == 1 and not call.keywords:
            self._extend(of, call.args[0])
        elif name in _CHANGES:
            self._parts[of] = parts._replace(is_all=False)
        else:
            return False
        return True

    def _name(self, module: ast.expr, name: ast.expr, value: ast.expr) -> None:
        """A module gets an attribute, under a name that may be put together."""
        of = self.path(module)
        if of is None:
            return
        text = name.value if isinstance(name, ast.Constant) else self._plain.get(text_of(name))
        if isinstance(text, str):
            self._give((*of, text), value)
            self._names[f"getattr({text_of(module)}, {text_of(name)})"] = (*of, text)
        elif pattern := pattern_of(name):
            path = self._part_of(value)
            self._names[f"getattr({text_of(module)}, {text_of(name)})"] = path
            self._patterns.append((of, pattern, path))

    def _add(self, path: Path, value: ast.expr) -> Path:
        """A container gets one more part. The path of that."""
        part = self._part_of(value)
        parts = self._parts[path].and_one(part, self._loop)
        self._parts[path] = parts = parts if parts.is_keyed else self._placed(path, parts)
        return parts.of[-1].path

    def _extend(self, path: Path, value: ast.expr) -> None:
        more = self._parts_of(value)
        parts = self._parts[path]
        if more is None or not more.is_all:
            self._parts[path] = parts._replace(is_all=False)
            return
        for each in more.of:
            if each.is_placed:
                parts = parts.and_one(each.path, self._loop)
            else:
                parts = parts._replace(of=(*parts.of, each._replace(perhaps=each.perhaps or self._loop != parts.loop)))
        self._parts[path] = self._placed(path, parts)

    def _extends(self, statement: ast.stmt) -> bool:
        """Follow `layers += [nn.Linear(3, 3)]`; whether it is such a statement."""
        if not isinstance(statement, ast.AugAssign) or not isinstance(statement.op, ast.Add):
            return False
        path = self.path(statement.target)
        if path is None or path not in self._parts:
            return False
        self._extend(path, statement.value)
        return True

    def _is_item(self, target: ast.expr) -> bool:
        """Whether it is an item of a container, under a key that is not known: `self.heads[name]`."""
        if (
            not isinstance(target, ast.Subscript)
            or isinstance(target.slice, ast.Slice)
            or self.path(target) is not None
        ):
            return False
        path = self.path(target.value)
        return path is not None and (path in self._parts or isinstance(self.at(path), CONTAINERS))

    def _key(self, path: Path) -> None:
        """An assignment to an item of a dictionary, under a key that is known."""
        parts = self._parts.get(path[:-1]) if path else None
        if parts is not None and parts.is_keyed and all(each.path != path for each in parts.of):
            self._parts[path[:-1]] = parts.and_one(path, self._loop)._replace(
                is_all=parts.is_all and parts.loop == self._loop
            )

    def _put(self, target: ast.Subscript, value: ast.expr) -> None:
        """An assignment to an item under a key that is not known."""
        path: Any = self.path(target.value)
        parts = self._parts.get(path)
        if parts is not None and parts.is_keyed:
            self._names[text_of(target)] = self._add(path, value)
            return
        self._swept([Sweep(path)])  # it replaces something that was there
        if parts is not None:
            self._parts[path] = parts._replace(is_all=False)

    def _lose(self, statement: ast.AST) -> None:
        """A statement that is not followed may change containers."""
        for each in ast.walk(statement):
            if isinstance(each, ast.Call) and isinstance(each.func, ast.Attribute) and called(each) in _CHANGES:
                path = self.path(each.func.value)
                if path is not None and path in self._parts:
                    self._parts[path] = self._parts[path]._replace(is_all=False)

    # ---- loops ----

    def _round(self, body: Sequence[ast.stmt], *, is_swept: bool) -> None:
        """Read the body of a loop whose rounds are not known.

        is_swept: what it may do to what is there already has been told.
        """
        before, sweeps, outer = self._copies(), list(self._sweeps), self._loop
        loop = self._loop = self._new_loop()
        self._perhaps += 1
        self._read(body)
        self._perhaps -= 1
        one = self._copies()
        self._loop = outer
        self._take(before)
        if is_swept:
            self._sweeps = [*sweeps, *(each for each in self._sweeps[len(sweeps) :] if is_unplaced(each.path))]
            new = {path: told for path, told in one.told.items() if is_unplaced(path)}
            one = one._replace(told={path: told for path, told in before.told.items() if not is_unplaced(path)} | new)
        self._join(one, before)
        for path, parts in one.parts.items():
            self._parts[path] = parts.looped(before.parts[path], loop) if path in before.parts else parts

    # ---- where parts are, when all has been read ----

    def _settle(self) -> None:
        """Give the parts of containers their places."""
        self._settle_names()
        waiting = [path for path in self._parts if not is_unplaced(path)]
        while waiting:
            path = waiting.pop()
            parts, container = self._parts[path], self.at(path)
            if not isinstance(container, CONTAINERS) or not any(map(self._is_to_place, parts.of)):
                continue
            names = self.names_in(path)
            steps = [*range(len(names))] if isinstance(container, (nn.Sequential, nn.ModuleList)) else names
            places = places_of(parts, len(steps)) or self._of_equal_parts(parts, len(steps))
            for part, its_places in zip(parts.of, places, strict=False):
                for place in its_places if is_unplaced(part.path) else ():
                    waiting += self._copy(part.path, (*path, steps[place]))

    def _settle_names(self) -> None:
        """Give what has names that are put together its places."""
        named: dict[Path, list[Path]] = {}
        for of, pattern, path in self._patterns:
            for name in self.names_in(of):
                if re.fullmatch(pattern, name):
                    named.setdefault((*of, name), []).append(path)
        for place, paths in named.items():
            if all(self._told_below(path) == self._told_below(paths[0]) for path in paths[1:]):
                self._copy(paths[0], place)

    def _is_to_place(self, part: Part) -> bool:
        """Whether anything is known of a part that has no place yet, or of what is below it."""
        if not is_unplaced(part.path):
            return False
        known = [*self._told, *self._parts, *(each.path for each in self._sweeps)]
        return any(begins(each, part.path) for each in known)

    def _of_equal_parts(self, parts: Parts, count: int) -> list[list[int]]:
        """The places of parts that are all the same: all places, of the first."""
        told = [self._told_below(part.path) for part in parts.of]
        is_known = parts.is_all and all(each == told[0] for each in told[1:])
        return [[*range(count)]] if is_known and told else []

    def _told_below(self, path: Path) -> ToldOf:
        return {each[len(path) :]: told for each, told in self._told.items() if begins(each, path)}

    def _copy(self, old: Path, path: Path) -> list[Path]:
        """Tell of one path what is told of another, if nothing has been told since. The containers found there."""
        for held in (self._told, self._before):
            held |= {moved(each, old, path): told for each, told in held.items() if begins(each, old)} | held
        self._sweeps += [
            each._replace(path=moved(each.path, old, path)) for each in self._sweeps if begins(each.path, old)
        ]
        found = {
            moved(each, old, path): parts.moved(old, path) for each, parts in self._parts.items() if begins(each, old)
        }
        self._parts |= found
        return [*found]


_NAMING = {"add_module": ["module"], "register_module": ["module"], "register_parameter": ["param", "parameter"]}
_CHANGES = frozenset(
    {"append", "extend", "insert", "pop", "popitem", "remove", "clear", "reverse", "sort", "update", "add_module"}
)


def _is_of_pairs(node: ast.expr) -> bool:
    """Whether it is `[("first", nn.Linear(3, 3)), …]`."""
    return (
        isinstance(node, ast.List)
        and bool(node.elts)
        and all(
            isinstance(each, ast.Tuple)
            and len(each.elts) == 2
            and isinstance(each.elts[0], (ast.Constant, ast.JoinedStr))
            for each in node.elts
        )
    )


def _keys_of(node: ast.Dict | ast.List) -> list[ast.expr | None]:
    return list(node.keys) if isinstance(node, ast.Dict) else [each.elts[0] for each in node.elts]  # type: ignore[attr-defined]
