"""What the reader of a constructor asks of its module. The answers decide the script, so equal ones have one script."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Literal, NamedTuple

from torch import nn

from fastinit.capture.constructors.scripts import Path, Script, below
from fastinit.capture.constructors.text import PLAIN


class Question(NamedTuple):
    """A question about a module, whose answer can be compared.

    "value": the plain value of an attribute, of an attribute of that, and so on. "module": the class of the module at a
    path, and the length of a container. "none": whether None stands there. "names": those of the parameters and modules
    in the module there.
    """

    about: Literal["value", "module", "none", "names"]
    path: Path

    def answer(self, module: nn.Module) -> Any:
        found: Any
        if self.about == "value":
            found = value_at(module, self.path)
            kind = type(found)
            return (kind, found) if kind in PLAIN else kind
        if self.about == "none":
            return is_none_at(module, self.path)
        if self.about == "names":
            return names_at(module, self.path)
        found = module_at(module, self.path)
        return type(found), len(found) if isinstance(found, (nn.Sequential, nn.ModuleList)) else None


def value_at(module: nn.Module, path: Path) -> Any:
    """An attribute of a module, or of what that attribute is; None if there is none."""
    name, *rest = map(str, path)
    found = module.__dict__.get(name)
    for step in rest:
        try:
            found = getattr(found, step)
        except Exception:  # whatever the attributes of others raise
            found = None
    return found


def module_at(module: nn.Module, path: Path) -> nn.Module | None:
    """The module at a path."""
    found: nn.Module | None = module
    for step in path:
        found = below(found, step)
        if found is None:
            return None
    return found


def is_none_at(module: nn.Module, path: Path) -> bool | None:
    """Whether None stands at a path, such as the bias of a map without one, or another attribute; None: nothing stands
    there."""
    of = module_at(module, path[:-1])
    name: Any = path[-1]
    for held in () if of is None else (of._parameters, of._modules, of._buffers, of.__dict__):
        if name in held:
            return held[name] is None
    return None


def names_at(module: nn.Module, path: Path) -> tuple[str, ...]:
    """The names of the parameters and modules in the module at a path."""
    of = module_at(module, path)
    return () if of is None else (*of._parameters, *of._modules)


class Asking:
    """Asks a module, and notes what was asked."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.asked: dict[Question, Hashable] = {}
        self.is_decided = True  # whether modules of the class that answer alike have the same script

    def at(self, path: Path) -> nn.Module | None:
        """The module at the path."""
        self._ask(Question("module", path))
        return module_at(self._module, path)

    def names_in(self, path: Path) -> tuple[str, ...]:
        """The names of the parameters and modules in the module at a path."""
        self._ask(Question("names", path))
        return names_at(self._module, path)

    def look(self, path: Path) -> Any:
        """An attribute of the module, or of what that is."""
        self._ask(Question("value", path))
        value = value_at(self._module, path)
        if isinstance(value, (int, float)) and type(value) not in PLAIN:
            self.is_decided = False  # its type is all that is compared
        return value

    def is_none(self, path: Path) -> bool | None:
        """Whether None stands at a path, such as the bias of a map without one; None: nothing stands there."""
        self._ask(Question("none", path))
        return is_none_at(self._module, path)

    def note_object(self) -> None:
        """Note that arithmetic uses an object of which only the type is compared."""
        self.is_decided = False

    def _ask(self, question: Question) -> None:
        if question not in self.asked:
            self.asked[question] = question.answer(self._module)


class _Fork(NamedTuple):
    """The next question, and where each answer to it leads."""

    question: Question
    ways: dict[Any, Any]  # of scripts and forks


class Scripts:
    """The scripts that were read: for each class, a tree of the questions that its constructors ask."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._of_class: dict[Any, _Fork | Script] = {}

    def find(self, module: nn.Module) -> Script | None:
        kind: Any = type(module)
        found = self._of_class.get(kind)
        while type(found) is _Fork:
            found = found.ways.get(found.question.answer(module))
        return found  # type: ignore[return-value]

    def keep(self, module: nn.Module, asked: Mapping[Question, Hashable], script: Script) -> None:
        """Keep the script of a module that has given these answers, in this order."""
        if self._count >= self._most:
            self._of_class, self._count = {}, 0
        ways: dict[Any, Any] = self._of_class
        way: Any = type(module)
        for question, answer in asked.items():
            fork = ways.get(way)
            if type(fork) is not _Fork or fork.question != question:
                fork = ways[way] = _Fork(question, {})
            ways, way = fork.ways, answer
        ways[way] = script
        self._count += 1
