"""What a constructor does to parameters, as plain data."""

from __future__ import annotations

from types import FunctionType
from typing import Any, NamedTuple, TypeAlias

from torch import nn


class Told(NamedTuple):
    """The constant that a constructor sets a parameter to. None: the value is a pattern, or follows from what is gone.

    made: whether the parameter was made so, and nothing has set it since.
    """

    value: float | None
    made: bool = False


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


class Script(NamedTuple):
    """What the constructors of a class do.

    swept: paths of modules below which they may have set anything, before they set what `told` has.
    told: None: set by a statement that was not understood.
    The constructors set `before`, then call `runs`, then set `told`. unread: those of `swept` that are not swept by
    runs alone.
    """

    swept: tuple[Path, ...]
    told: dict[Path, Told | None]
    runs: tuple[Run, ...] = ()
    before: dict[Path, Told | None] = {}  # noqa: RUF012 (nobody changes it)
    unread: tuple[Path, ...] = ()


NOTHING = Script((), {})
ANYTHING = Script(((),), {}, unread=((),))


def below(module: Any, step: str | int) -> nn.Module | None:
    """The module that an attribute or an index of a container gives."""
    if isinstance(step, str):
        return module._modules.get(step)  # type: ignore[no-any-return]
    if not isinstance(module, (nn.Sequential, nn.ModuleList)) or not -len(module) <= step < len(module):
        return None
    return module[step]
