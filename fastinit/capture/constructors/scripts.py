"""What a constructor does to parameters, as plain data."""

from __future__ import annotations

from collections.abc import Container
from types import FunctionType
from typing import Any, NamedTuple, TypeAlias

from torch import nn


class Told(NamedTuple):
    """The constant that a constructor sets a parameter to. None: the value is a pattern, or follows from what is gone.

    made: whether the parameter was made so, and nothing has set it since. ran: whether code that can be run again came
    later: if it set the parameter, its tape tells, and `value` is None.
    """

    value: float | None
    made: bool = False
    ran: bool = False

    def run_over(self) -> Told:
        """What is known after code ran that can be run again."""
        return self._replace(value=None, ran=True)


# From a module to a parameter: names of attributes, and indices of containers.
Path: TypeAlias = tuple[str | int, ...]


class Run(NamedTuple):
    """Code that a constructor calls, and that can be run again.

    path: leads to the module on which the code is called. each: whether the code runs on that module and on all below
    it. code: a function, or the name of a method: of the module at the path, or of the constructor's if `each`.
    """

    path: Path
    each: bool
    code: str | FunctionType

    def __str__(self) -> str:
        return self.code if isinstance(self.code, str) else self.code.__name__

    def of(self, module: nn.Module) -> nn.Module | None:
        """The module at the path, from the one that was constructed."""
        found = module
        for step in self.path:
            child = below(found, step)
            if child is None:
                return None
            found = child
        return found

    def again(self, module: nn.Module) -> None:
        """Run it for the module that was constructed."""
        of: Any = self.of(module)
        if isinstance(self.code, str):
            code = getattr(module if self.each else of, self.code)
            of.apply(code) if self.each else code()
        else:
            of.apply(self.code) if self.each else self.code(of)


UNKNOWN = Told(None)
ToldOf: TypeAlias = dict[Path, Told | None]  # None: set to random numbers, or only perhaps


def joined(path: Path, one: ToldOf, other: ToldOf, drawn: Container[Path], unlike: Told | None) -> Told | None:
    """What is known of a parameter if one of two ways was gone. `drawn`: those that are made without values. `unlike`:
    if both ways give it a constant, but not the same. Of a whole model, as a loop over all modules sets it, it is
    better to say that one of them was set perhaps: what torch makes of a norm is nearly always meant."""
    ways = [told[path] for told in (one, other) if path in told]
    known = [told for told in ways if told is not None]
    if len(known) == 2:
        return known[0] if known[0] == known[1] else unlike
    # What is made in one way alone, and is there, was made in that way.
    return known[0] if len(ways) == 1 and known and known[0].made and path not in drawn else None


class Sweep(NamedTuple):
    """What a statement that is not followed may set.

    path: that of a parameter, or of a module: then all below it, too. name, kinds: only parameters of this name, only
    in modules of these classes. told: what it sets them to; None: it draws, as far as its text tells.
    """

    path: Path
    name: str | None = None
    kinds: tuple[type, ...] | None = None
    told: Told | None = UNKNOWN

    def is_for(self, module: nn.Module | None, name: str | int) -> bool:
        """Whether it may set a parameter of this name in a module below; None: in one that is not known."""
        if self.name is not None and self.name != name:
            return False
        return self.kinds is None or module is None or isinstance(module, self.kinds)

    def leaves(self, told: Told | None) -> Told | None:
        """What is known of a parameter that it may have set, and of which `told` was known."""
        if told is None or self.told is None:
            return None
        return told if told.value is not None and told.value == self.told.value else UNKNOWN


class Script(NamedTuple):
    """What the constructors of a class do.

    told: what they set last; None: to random numbers, or only perhaps.
    sweeps: what they may have set, before they set what `told` has.
    The constructors set `before`, then call `runs`, then set `told`.
    empty: what they make of memory that nobody has written to, and do not set themselves. drawn: what they draw.
    """

    told: dict[Path, Told | None]
    sweeps: tuple[Sweep, ...] = ()
    runs: tuple[Run, ...] = ()
    before: dict[Path, Told | None] = {}  # noqa: RUF012 (nobody changes it)
    empty: frozenset[Path] = frozenset()
    drawn: frozenset[Path] = frozenset()


NOTHING = Script({})
ANYTHING = Script({}, (Sweep(()),))


def below(module: Any, step: str | int) -> nn.Module | None:
    """The module that an attribute or an index of a container gives."""
    if isinstance(step, str):
        return module._modules.get(step)  # type: ignore[no-any-return]
    if not isinstance(module, (nn.Sequential, nn.ModuleList)) or not -len(module) <= step < len(module):
        return None
    at = step + len(module) if step < 0 else step
    if isinstance(module, nn.ModuleList):  # somebody may have given its modules names
        return module._modules.get(str(at))
    return list(module._modules.values())[at]
