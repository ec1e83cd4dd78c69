"""What the constructors of a model's modules say: their scripts, laid over the parameters that are there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from torch import nn

from fastinit.capture.constructors.questions import Scripts
from fastinit.capture.constructors.reader import Reader
from fastinit.capture.constructors.scripts import ANYTHING, NOTHING, Path, Run, Script, Told, below
from fastinit.capture.constructors.text import constructors_of

Parameter: TypeAlias = tuple[int, str]  # the id of a module, and the name in it


class Constructed(NamedTuple):
    """What constructors tell of parameters.

    told: what they are set to. empty: those made of memory that no constructor has written to. drawn: those that the
    constructor of their own module draws.
    """

    told: dict[Parameter, Told]
    empty: set[Parameter]
    drawn: set[Parameter]


def told_of(modules: Sequence[nn.Module]) -> Constructed:
    """What constructors tell. `modules` are those of a model, each before those below it.

    The constructor of a module runs after theirs.
    """
    found: dict[Parameter, Told | None] = {}
    empty: set[Parameter] = set()
    drawn: set[Parameter] = set()
    silent = _silent(modules)
    for module in reversed(modules):
        if type(module) in silent:
            continue
        script = _script_of(module)
        if script is NOTHING:
            continue
        empty.update(place for path in script.empty for place in _parameters_at(module, path))
        drawn.update((id(module), str(path[0])) for path in script.drawn if len(path) == 1)
        for sweep in script.sweeps if found or empty else ():
            for of, names in _reached(module, sweep.path):
                for place in ((id(of), name) for name in names if sweep.is_for(of, name)):
                    empty.discard(place)
                    if place in found:
                        found[place] = sweep.leaves(found[place])
        for run in script.runs if found or empty else ():
            for place in _parameters_at(module, run.path):
                empty.discard(place)
                if (told := found.get(place)) is not None:
                    found[place] = told.run_over()
        by_it = _told_by(module, script)
        found.update(by_it)
        empty.difference_update(by_it)
    return Constructed({place: told for place, told in found.items() if told is not None}, empty, drawn)


def runs_of(module: nn.Module) -> tuple[Run, ...]:
    """Code that the constructors of a module call for it, or for a module below it, and that can be run again."""
    return tuple(each for each in _script_of(module).runs if each.of(module) is not None)


def any_runs(modules: Sequence[nn.Module]) -> bool:
    """Whether there is such code for any of the modules."""
    silent = _silent(modules)
    return any(_script_of(module).runs and runs_of(module) for module in modules if type(module) not in silent)


def _silent(modules: Sequence[nn.Module]) -> set[Any]:
    """The classes of modules whose constructors tell nothing."""
    kinds: set[Any] = set(map(type, modules))
    return {kind for kind in kinds if constructors_of(kind) == ()}


def set_before(module: nn.Module) -> dict[Parameter, Told | None]:
    """The parameters that the constructors of one module set before code of it runs, or how they were made.

    By the id of a module and the name in it.
    """
    script = _script_of(module)
    made = {path: told for path, told in script.told.items() if told is not None and told.made and not told.ran}
    return _told_by(module, script._replace(told={**script.before, **made}))


def set_after(module: nn.Module) -> dict[Parameter, Told | None]:
    """The parameters that the constructors of one module set last, after any such code."""
    script = _script_of(module)
    later = {path: told for path, told in script.told.items() if told is None or not (told.made or told.ran)}
    return _told_by(module, script._replace(told=later))


def _told_by(module: nn.Module, script: Script) -> dict[Parameter, Told | None]:
    found = {key: told for path, told in script.told.items() for key in _parameters_at(module, path)}
    if any(told is not None and told.made for told in found.values()) and "Norm" in type(module).__name__:
        # Every normalisation makes its parameters as ones and zeros. Those with the usual value are left out.
        usual = {(id(module), name): 0.0 if _SHIFT.search(name) else 1.0 for name in module._parameters}
        return {key: told for key, told in found.items() if key not in usual or told != Told(usual[key], made=True)}
    return found


_SHIFT = re.compile("bias|beta|shift|b_2|loc")


def _parameters_at(module: nn.Module, path: Path) -> list[Parameter]:
    return [(id(of), name) for of, names in _reached(module, path) for name in names]


def _reached(module: Any, path: Path) -> list[tuple[nn.Module, Sequence[str]]]:
    """The parameter at a path, or all of the module there, by modules; none if it leads elsewhere."""
    for step in path:
        if module._parameters.get(str(step)) is not None:
            return [(module, (str(step),))]
        module = below(module, step)
        if module is None:
            return []
    found: dict[int, nn.Module] = {}
    _add(module, found)
    return [(each, names) for each in found.values() if (names := _own_names(each))]


def _own_names(module: nn.Module) -> list[str]:
    """The names of a module's own parameters, without those registered as None."""
    return [name for name, parameter in module._parameters.items() if parameter is not None]


def _add(module: nn.Module, found: dict[int, nn.Module]) -> None:
    """Add a module and all below it."""
    if id(module) not in found:
        found[id(module)] = module
        for child in module._modules.values():
            if child is not None:
                _add(child, found)


_scripts = Scripts(4096)


def _script_of(module: nn.Module) -> Script:
    """What the constructors of a module's class, and of the classes that it is derived from, do."""
    kind: Any = type(module)
    constructors = constructors_of(kind)
    if not constructors:
        return ANYTHING if constructors is None else NOTHING
    found = _scripts.find(module)
    if found is None:
        reader = Reader(module, constructors)
        found = reader.script()
        if reader.is_decided:
            _scripts.keep(module, reader.asked, found)
    return found
