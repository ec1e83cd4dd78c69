"""Rules: which parameters get which scheme. An ordered list, of which the first that matches wins."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from fnmatch import translate
from functools import lru_cache
from typing import Any, Final

import torch
from torch import nn

from fastinit.schemes.base import Scheme, as_scheme, check_choice
from fastinit.schemes.fans import FAN_NAMES, FanAxes, FanConvention, Fans


class _Keep(Enum):
    KEEP = "KEEP"

    def __repr__(self) -> str:
        return "KEEP"


KEEP: Final = _Keep.KEEP
"""In place of a scheme: the parameter keeps its values."""


_WILDCARD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Where:
    """Selects the parameters that have all of the properties given.

    name: a glob on the whole canonical name ("*.attn.*.weight"); regex: an expression that is searched for in it.
    type: module types, or their names ("Linear", "torch.nn.modules.linear.Linear"); a subclass counts, too.
    shape: a size for every dimension, None for any. dims: how many dimensions. requires_grad: whether it is trained.

    Raises:
        TypeError, ValueError: an argument of another kind, a wrong expression, or none given.
    """

    name: str | tuple[str, ...] | None = None
    regex: str | None = None
    type: str | type[nn.Module] | tuple[str | type[nn.Module], ...] | None = None
    shape: tuple[int | None, ...] | None = None
    dims: int | None = None
    requires_grad: bool | None = None

    def __post_init__(self) -> None:
        if all(getattr(self, field.name) is None for field in fields(self)):
            raise ValueError("select: expected a name, regex, type, shape, dims or requires_grad, got none")
        for several in ("name", "type"):
            if isinstance(getattr(self, several), list):
                object.__setattr__(self, several, tuple(getattr(self, several)))
        globs = () if self.name is None else self.name if isinstance(self.name, tuple) else (self.name,)
        if not all(isinstance(each, str) for each in globs) or self.name == ():
            raise TypeError(f"name: expected a glob or several, got {self.name!r}")
        if not isinstance(self.regex, (str, type(None))):
            raise TypeError(f"regex: expected a string, got {self.regex!r}")
        for field, kind in (("dims", int), ("requires_grad", bool)):
            given = getattr(self, field)
            if given is not None and type(given) is not kind:
                raise TypeError(f"{field}: expected {kind.__name__}, got {given!r}")
        if self.dims is not None and self.dims < 0:
            raise ValueError(f"dims: expected dims >= 0, got {self.dims}")
        if self.type == ():
            raise TypeError("type: expected module types or their names, got none")
        for each in self.type if isinstance(self.type, tuple) else (self.type,):
            if not (each is None or isinstance(each, str) or (isinstance(each, type) and issubclass(each, nn.Module))):
                raise TypeError(f"type: expected module types or their names, got {each!r}")
        if self.shape is not None:
            listed = isinstance(self.shape, (tuple, list))
            sizes = tuple(None if size == -1 else size for size in self.shape) if listed else ()
            if not listed or not all(size is None or (type(size) is int and size >= 0) for size in sizes):
                raise TypeError(f"shape: expected sizes, None or -1 for any, got {self.shape!r}")
            object.__setattr__(self, "shape", sizes)
        try:
            regex = None if self.regex is None else re.compile(self.regex)
        except re.error as error:
            raise ValueError(f"regex: {self.regex!r} is no regular expression: {error}") from error
        exact = frozenset(each for each in globs if not _WILDCARD.search(each))
        wild = [translate(each) for each in globs if each not in exact]
        # Derived from the fields, and no fields themselves: equality and repr leave them out.
        object.__setattr__(self, "_exact", exact)
        object.__setattr__(self, "_wild", re.compile("|".join(wild)) if wild else None)
        object.__setattr__(self, "_regex", regex)

    def _has_name(self, name: str) -> bool:
        derived = self.__dict__
        if name in derived["_exact"]:
            return True
        return derived["_wild"] is not None and derived["_wild"].match(name) is not None

    def matches(self, name: str, module: nn.Module, parameter: torch.Tensor) -> bool:
        regex = self.__dict__["_regex"]
        return (
            (self.name is None or self._has_name(name))
            and (regex is None or regex.search(name) is not None)
            and (self.type is None or _is_of_type(module, self.type))
            and (self.dims is None or parameter.dim() == self.dims)
            and (self.requires_grad is None or parameter.requires_grad == self.requires_grad)
            and (self.shape is None or _has_shape(parameter, self.shape))
        )

    def __str__(self) -> str:
        if isinstance(self.name, str) and all(getattr(self, field.name) is None for field in fields(self)[1:]):
            return repr(self.name)
        given = ((field.name, getattr(self, field.name)) for field in fields(self))
        return ", ".join(f"{key} {_shown(key, value)}" for key, value in given if value is not None)


def _shown(key: str, value: Any) -> str:
    """A property of a Where: several names or types as alternatives, of types the last part of the name."""
    if key in ("name", "type") and isinstance(value, tuple):
        if len(value) > 3:
            return f"{_shown(key, value[0])} and {len(value) - 1} more"
        return " | ".join(_shown(key, each) for each in value)
    if key == "type":
        return value.rpartition(".")[2] if isinstance(value, str) else str(value.__name__)
    return repr(value)


_FLAGS = {"a": re.ASCII, "i": re.IGNORECASE, "m": re.MULTILINE, "s": re.DOTALL, "x": re.VERBOSE}


def flagged(expression: re.Pattern[str]) -> str:
    """The source of an expression, its flags within it: (?i) and the like."""
    flags = "".join(letter for letter, flag in _FLAGS.items() if expression.flags & flag)
    return (f"(?{flags})" if flags else "") + expression.pattern


def _has_shape(parameter: torch.Tensor, shape: tuple[int | None, ...]) -> bool:
    return parameter.dim() == len(shape) and all(
        wanted is None or size == wanted for size, wanted in zip(parameter.shape, shape, strict=True)
    )


def _is_of_type(module: nn.Module, wanted: Any) -> bool:
    if isinstance(wanted, str):
        module_type: Any = type(module)  # mypy takes the types of modules for unhashable
        return wanted in _type_names(module_type)
    if isinstance(wanted, tuple):
        return any(_is_of_type(module, each) for each in wanted)
    return isinstance(module, wanted)


@lru_cache(maxsize=4096)
def _type_names(module_type: type) -> frozenset[str]:
    """The short and the full names of a type and of all that it inherits from."""
    short = {base.__name__ for base in module_type.__mro__}
    return frozenset(short | {f"{base.__module__}.{base.__qualname__}" for base in module_type.__mro__})


# A glob or a compiled expression on the canonical name, a module type, several, a Where, or any predicate.
Selector = (
    str
    | re.Pattern[str]
    | type[nn.Module]
    | tuple[type[nn.Module], ...]
    | Where
    | Callable[[str, nn.Module, nn.Parameter], bool]
)


@dataclass(frozen=True)
class Rule:
    """Parameters that `select` matches get `scheme`, or keep their values.

    select: a glob on the whole canonical name ("*.attn.*.weight"), a compiled regular expression (searched for), a
        module type or a tuple of them, a `Where`, or a function of (canonical name, module, parameter).
    scheme: a scheme, the name of one, or KEEP; with a split, also a tuple of them, one a block.
    fan: how to read fans: "torch", "module", "jax", "keras", "weight" (of the weight beside a bias), `Fans(in, out)` or
        `FanAxes`. None: as the plan does.
    split: the parameter is several maps fused along one dimension: how many equal ones, or the size of each. Each is
        initialised as a map of its own.
    split_dim: that dimension; None: the one that the fans take for the outputs.
    zero_row: a row (along dimension 0) that is zero under any scheme. None: the padding row of an embedding. For a
        weight that is tied to an embedding elsewhere, as that of a head in another pipeline stage.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """

    select: Selector
    scheme: Scheme | str | _Keep | tuple[Scheme | str, ...]
    fan: FanConvention | None = None
    split: int | tuple[int, ...] | None = None
    split_dim: int | None = None
    zero_row: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.scheme, (tuple, list)):
            if self.split is None:
                raise ValueError("split: expected one, for a scheme a block was given")
            object.__setattr__(self, "scheme", tuple(map(as_scheme, self.scheme)))
        elif self.scheme is not KEEP:
            object.__setattr__(self, "scheme", as_scheme(self.scheme))
        self._check_select()
        self._check_fan()
        self._check_split()
        if self.zero_row is not None:
            if type(self.zero_row) is not int:
                raise TypeError(f"zero_row: expected an int, got {self.zero_row!r}")
            if self.scheme is KEEP:
                raise ValueError(f"zero_row: contradicts KEEP, got {self.zero_row!r}")

    def _check_select(self) -> None:
        select = self.select
        types = select if isinstance(select, tuple) else (select,)
        if isinstance(select, str):
            where: Any = Where(name=select)
        elif isinstance(select, re.Pattern):
            where = select
        elif all(isinstance(each, type) and issubclass(each, nn.Module) for each in types) and types:
            where = Where(type=select)  # type: ignore[arg-type]
        elif isinstance(select, Where) or (callable(select) and not isinstance(select, type)):
            where = select
        else:
            raise TypeError(
                "select: expected a glob, a compiled regular expression, module types, a Where or a function, "
                f"got {select!r}"
            )
        object.__setattr__(self, "_where", where)

    def _check_fan(self) -> None:
        if self.fan is not None:
            if self.scheme is KEEP:
                raise ValueError(f"fan: contradicts KEEP, got {self.fan!r}")
            object.__setattr__(self, "fan", as_fan(self.fan))

    def _check_split(self) -> None:
        split = self.split
        if split is None:
            if self.split_dim is not None:
                raise ValueError(f"split_dim: expected a split with it, got {self.split_dim!r} alone")
            return
        if self.scheme is KEEP:
            raise ValueError(f"split: contradicts KEEP, got {split!r}")
        sizes = tuple(split) if isinstance(split, (tuple, list)) else (split,)
        if not sizes or any(type(size) is not int or size < 1 for size in sizes):
            raise ValueError(f"split: expected a number of blocks or their sizes, got {split!r}")
        if self.split_dim is not None and type(self.split_dim) is not int:
            raise TypeError(f"split_dim: expected an int, got {self.split_dim!r}")
        if not isinstance(split, int):
            object.__setattr__(self, "split", sizes)
        blocks = split if isinstance(split, int) else len(sizes)
        if isinstance(self.scheme, tuple) and len(self.scheme) != blocks:
            raise ValueError(f"scheme: expected {blocks}, one a block of split={split!r}, got {len(self.scheme)}")

    def matches(self, name: str, module: nn.Module, parameter: torch.Tensor) -> bool:
        where: Any = self.__dict__["_where"]
        if isinstance(where, Where):
            return where.matches(name, module, parameter)
        if isinstance(where, re.Pattern):
            return where.search(name) is not None
        return bool(where(name, module, parameter))

    @property
    def glob(self) -> str | None:
        """The glob on the name if it is all that selects, else None."""
        return self.select if isinstance(self.select, str) else None

    def __str__(self) -> str:
        where: Any = self.__dict__["_where"]
        if isinstance(where, re.Pattern):
            where = Where(regex=flagged(where))  # as it comes back from a recipe
        return f"rule {where if isinstance(where, Where) else getattr(where, '__name__', where)}"


def as_fan(given: Any) -> FanConvention:
    """A convention for fans: a name, `Fans`, `FanAxes`, or a pair of numbers for `Fans`.

    Raises:
        TypeError, ValueError: what came is none.
    """
    if isinstance(given, FanAxes):
        for name, axes in given._asdict().items():
            if not all(type(axis) is int for axis in (axes if isinstance(axes, tuple) else (axes,))):
                raise TypeError(f"{name}: expected an axis or several, got {axes!r}")
        return given
    if isinstance(given, str):
        check_choice("fan", given, FAN_NAMES)
        return given  # type: ignore[return-value]
    if isinstance(given, (tuple, list)) and len(given) == 2 and all(type(each) is int for each in given):
        if min(given) < 1:
            raise ValueError(f"fan: expected fan_in >= 1 and fan_out >= 1, got {given!r}")
        return Fans(*given)
    raise TypeError(f"fan: expected one of {', '.join(FAN_NAMES)}, Fans(fan_in, fan_out) or FanAxes, got {given!r}")


def as_rules(given: Sequence[Rule | tuple[Selector, Any]] | None) -> tuple[Rule, ...]:
    """Rules from a list of Rule objects or (selector, scheme) pairs."""
    rules = []
    for each in given or ():
        if isinstance(each, Rule):
            rules.append(each)
        elif isinstance(each, tuple) and len(each) == 2:
            rules.append(Rule(*each))
        else:
            raise TypeError(f"rules: expected Rule objects or (selector, scheme) pairs, got {each!r}")
    return tuple(rules)


class RuleFinder:
    """Finds the first rule that matches a parameter. Runs of globs are one expression, so that they cost one search."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        self._steps: list[tuple[re.Pattern[str] | None, int]] = []  # an expression over globs, or a rule's position
        position = 0
        while position < len(rules):
            end = position
            while end < len(rules) and rules[end].glob is not None:
                end += 1
            if end > position:
                globs = (f"(?P<r{at}>{translate(rules[at].glob or '')})" for at in range(position, end))
                self._steps.append((re.compile("|".join(globs)), -1))
                position = end
            else:
                self._steps.append((None, position))
                position += 1

    def find(self, names: tuple[str, ...], module: nn.Module, parameter: torch.Tensor) -> int | None:
        name = names[0]
        """The position of the first rule that matches, or None."""
        for expression, position in self._steps:
            if expression is None:
                if self.rules[position].matches(name, module, parameter):
                    return position
            elif (match := expression.match(name)) is not None:
                return int((match.lastgroup or "r0")[1:])
        return None
