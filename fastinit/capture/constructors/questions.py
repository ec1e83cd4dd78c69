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
    in the module there. "below": all modules and parameters that are. "dimensions": how many a
    parameter has.
    """

    about: Literal["value", "module", "none", "names", "below", "dimensions"]
    path: Path

    def answer(self, module: nn.Module) -> Any:
        found: Any
        if self.about == "value":
            found = value_at(module, self.path)
            kind = type(found)
            return (kind, found) if kind in PLAIN else kind
        if self.about == "none":
            return is_none_in(module_at(module, self.path[:-1]), self.path[-1])
        if self.about == "names":
            return names_in(module_at(module, self.path))
        if self.about == "dimensions":
            return dimensions_in(module_at(module, self.path[:-1]), self.path[-1])
        if self.about == "below":
            return all_below(module, self.path)
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


def is_none_in(of: nn.Module | None, name: str | int) -> bool | None:
    """Whether a module holds None under a name, as a map without a bias does; None: it holds nothing there."""
    for held in () if of is None else (of._parameters, of._modules, of._buffers, of.__dict__):
        if name in held:
            return held[name] is None  # type: ignore[index]
    return None


def names_in(of: nn.Module | None) -> tuple[str, ...]:
    """The names of a module's own parameters and modules."""
    return () if of is None else (*of._parameters, *of._modules)


def dimensions_in(of: nn.Module | None, name: str | int) -> int | None:
    """How many dimensions a module's parameter has; None: there is none."""
    found = None if of is None else of._parameters.get(str(name))
    return None if found is None else found.dim()


class Below(NamedTuple):
    """A module below another: its name there, as `named_modules()` gives it, its path and class, and what it holds.

    parameters: the dimensions of each, by names; None: it is registered as None. absent: modules registered as None.
    """

    name: str
    path: Path
    kind: type[nn.Module]
    parameters: tuple[tuple[str, int | None], ...]
    absent: tuple[str, ...]


MOST_BELOW = 4096


def all_below(module: nn.Module, path: Path) -> tuple[Below, ...] | None:
    """The modules below a path, the one there among them, in the order of torch; None: they are too many."""
    found: list[Below] = []
    known: set[int] = set()

    def add(of: nn.Module, name: str, at: Path) -> None:
        if id(of) in known or len(found) > MOST_BELOW:
            return
        known.add(id(of))
        parameters = [(own_name, None if each is None else each.dim()) for own_name, each in of._parameters.items()]
        absent = [own_name for own_name, child in of._modules.items() if child is None] if of._modules else ()
        found.append(Below(name, at, type(of), tuple(parameters), tuple(absent)))
        for position, (own_name, child) in enumerate(of._modules.items()):
            is_listed = isinstance(of, nn.Sequential) or (isinstance(of, nn.ModuleList) and own_name == str(position))
            if child is not None:
                add(child, f"{name}.{own_name}" if name else own_name, (*at, position if is_listed else own_name))

    of = module_at(module, path)
    if of is not None:
        add(of, "", path)
    return tuple(found) if len(found) <= MOST_BELOW else None


class Asking:
    """Asks a module, and notes what was asked."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.asked: dict[Question, Hashable] = {}
        self.is_decided = True  # whether modules of the class that answer alike have the same script
        self._below_known: list[Path] = []  # where everything below has been asked for
        self._modules_at: dict[Path, nn.Module | None] = {}  # the modules at paths

    def at(self, path: Path) -> nn.Module | None:
        """The module at the path."""
        if not self._is_below_known(path):
            self._ask(Question("module", path))
        return self._module_at(path)

    def names_in(self, path: Path) -> tuple[str, ...]:
        """The names of the parameters and modules in the module at a path."""
        self._ask(Question("names", path))
        return names_in(self._module_at(path))

    def all_below(self, path: Path) -> tuple[Below, ...] | None:
        """The modules below a path, the one there among them; None: they are too many."""
        found = all_below(self._module, path)
        self._ask(Question("below", path), found)
        if found is not None:
            self._below_known.append(path)
        return found

    def look(self, path: Path) -> Any:
        """An attribute of the module, or of what that is."""
        self._ask(Question("value", path))
        value = value_at(self._module, path)
        if isinstance(value, (int, float)) and type(value) not in PLAIN:
            self.is_decided = False  # its type is all that is compared
        return value

    def is_none(self, path: Path) -> bool | None:
        """Whether None stands at a path, such as the bias of a map without one; None: nothing stands there."""
        of, name = self._module_at(path[:-1]), path[-1]
        is_known = self._is_below_known(path[:-1]) and (of is None or name in of._parameters or name in of._modules)
        if not is_known:
            self._ask(Question("none", path))
        return is_none_in(of, name)

    def dimensions(self, path: Path) -> int | None:
        """How many dimensions the parameter at a path has; None: there is none."""
        if not self._is_below_known(path[:-1]):
            self._ask(Question("dimensions", path))
        return dimensions_in(self._module_at(path[:-1]), path[-1])

    def note_object(self) -> None:
        """Note that arithmetic uses an object of which only the type is compared."""
        self.is_decided = False

    def _module_at(self, path: Path) -> nn.Module | None:
        if path not in self._modules_at:
            self._modules_at[path] = module_at(self._module, path)
        return self._modules_at[path]

    def _is_below_known(self, path: Path) -> bool:
        return any(path[: len(each)] == each for each in self._below_known)

    def _ask(self, question: Question, answer: Any = None) -> None:
        if question not in self.asked:
            self.asked[question] = question.answer(self._module) if answer is None else answer


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
