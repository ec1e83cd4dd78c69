"""Rules: which parameters get which scheme. In a list of rules, the first one that matches a parameter decides."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import torch
from torch import nn

from fastinit.errors import ParameterError
from fastinit.rules.biases import is_bias
from fastinit.rules.where import AskRole, Where, flagged, name_in_module
from fastinit.schemes.base import Scheme, as_scheme, check_choice
from fastinit.schemes.fans import FAN_NAMES, FanAxes, FanConvention, Fans
from fastinit.schemes.named import Own


class _Keep(Enum):
    KEEP = "KEEP"

    def __repr__(self) -> str:
        return "KEEP"


KEEP: Final = _Keep.KEEP
"""Stands in place of a scheme: the parameter keeps its values."""


# A glob or a compiled regular expression for the canonical name, one or several module types, a Where, or a predicate.
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

    Patterns are compared with canonical names. A pattern that contains a wrapper's part of a name ("module.*") is also
    compared with the name that `named_parameters()` gives.

    select: a glob on the whole name ("*.attn.*.weight"), a compiled regular expression (searched for), a module type or
        a tuple of them, a `Where`, or a function of (canonical name, module, parameter) that returns a bool. A type
        takes the weights of its modules and leaves their biases to their role, so that (nn.LayerNorm, "ones") does not
        shift. With KEEP and "own", which speak of a module's own values, it takes the biases, too.
        `Where(type="Linear", role="bias")` takes them alone.
    scheme: a scheme, the name of one, or KEEP. With a split, it may also be a tuple of schemes, one per block.
    fan: the convention for fans: "torch", "module", "jax", "keras", "weight" (the fans of the weight beside a bias),
        `Fans(in, out)` or `FanAxes`. None: the plan's convention.
    split: the number of equal maps fused along one dimension of the parameter, or the size of each. Each is initialised
        as a map of its own.
    split_dim: the dimension of the split. None: the output dimension of the fans.
    zero_row: a row (along dimension 0) that is zero under any scheme. None: the padding row of an embedding. A weight
        tied to an embedding elsewhere needs it, such as the head in another pipeline stage.
    in_model: whether the rule was made from a model, like the rules of `mup` and `fixup`. Its names may then be the
        names in the planned model, even if `names=` of `plan` gives the parameters other names in the whole. They are
        tried if no rule of this kind matches the name in the whole.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it, what was expected and what came.
    """

    select: Selector
    scheme: Scheme | str | _Keep | tuple[Scheme | str, ...]
    fan: FanConvention | None = None
    split: int | tuple[int, ...] | None = None
    split_dim: int | None = None
    zero_row: int | None = None
    in_model: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.select, list):
            object.__setattr__(self, "select", tuple(self.select))
        self._check_select()
        if isinstance(self.scheme, (tuple, list)):
            if self.split is None:
                raise ValueError("split: expected one, for a scheme a block was given")
            object.__setattr__(self, "scheme", tuple(map(as_scheme, self.scheme)))
        elif self.scheme is not KEEP:
            object.__setattr__(self, "scheme", as_scheme(self.scheme, self._line))
        where: Any = self.__dict__["_where"]
        of_whole_modules = self.scheme is KEEP or isinstance(self.scheme, Own)
        spares = isinstance(where, Where) and not of_whole_modules and _speaks_of_weights(where)
        object.__setattr__(self, "_spares_biases", spares)
        self._check_fan()
        self._check_split()
        if self.zero_row is not None:
            if type(self.zero_row) is not int:
                raise TypeError(f"zero_row: expected an int, got {self.zero_row!r}")
            if self.scheme is KEEP:
                raise ValueError(f"zero_row: contradicts KEEP, got {self.zero_row!r}")
        if not isinstance(self.in_model, bool):
            raise TypeError(f"in_model: expected True or False, got {self.in_model!r}")

    def _line(self, scheme: str) -> str:
        """The rule as its user may write it, for errors. Where no scheme was given, the values may be meant to stay."""
        return f"({_written(self.select)}, {'fastinit.KEEP' if self.scheme is None else scheme})"

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

    def matches(
        self,
        name: str,
        module: nn.Module,
        parameter: torch.Tensor,
        own_name: str | None = None,
        role: AskRole | None = None,
    ) -> bool:
        where: Any = self.__dict__["_where"]
        if isinstance(where, Where):
            if not where.matches(name, module, parameter, own_name, role):
                return False
            return not (self.__dict__["_spares_biases"] and is_bias(name_in_module(name, own_name), module))
        if isinstance(where, re.Pattern):
            return where.search(name) is not None
        try:
            found = where(name, module, parameter)
        except Exception as error:
            raise ParameterError(name, f"{self}: its function raised {type(error).__name__}: {error}") from error
        if not _is_truth(found):
            raise ParameterError(name, f"{self}: expected its function to return True or False, got {found!r}")
        return bool(found)

    @property
    def glob(self) -> str | None:
        """The glob for the name, if the rule selects by nothing else; else None."""
        return self.select if isinstance(self.select, str) else None

    @property
    def name_patterns(self) -> tuple[str, ...]:
        """The globs and regular expressions that the name of a parameter is compared with."""
        where: Any = self.__dict__["_where"]
        if isinstance(where, re.Pattern):
            return (where.pattern,)
        if not isinstance(where, Where):
            return ()
        globs = where.name if isinstance(where.name, tuple) else () if where.name is None else (where.name,)
        return globs if where.regex is None else (*globs, where.regex)

    def __str__(self) -> str:
        where: Any = self.__dict__["_where"]
        if isinstance(where, re.Pattern):
            where = Where(regex=flagged(where))  # a recipe file gives it back in this form
        return f"rule {where if isinstance(where, Where) else getattr(where, '__name__', where)}"


def _speaks_of_weights(where: Where) -> bool:
    """Whether a type stands alone for the weights of its modules: nothing else tells which parameters are meant."""
    if where.type is None or where.role is not None or where.shape is not None or where.dims is not None:
        return False
    patterns = where.name if isinstance(where.name, tuple) else (where.name,)
    return not any("bias" in pattern for pattern in (*patterns, where.regex) if pattern is not None)


def _written(select: Any) -> str:
    """A selector as its user wrote it."""
    if isinstance(select, tuple):
        return f"({', '.join(map(_written, select))})"
    if isinstance(select, str):
        return f'"{select}"'
    return select.__name__ if isinstance(select, type) else repr(select)


def _is_truth(found: object) -> bool:
    """Whether a function returned a truth value: Python's or NumPy's bool, or a bool tensor with memory."""
    if isinstance(found, torch.Tensor):
        return found.dtype == torch.bool and found.numel() == 1 and not found.is_meta
    return isinstance(found, bool) or (type(found).__module__ == "numpy" and type(found).__name__ in ("bool", "bool_"))


def as_fan(given: Any, key: str = "fan") -> FanConvention:
    """A convention for fans: a name, `Fans`, `FanAxes`, or a pair of numbers for `Fans`. Errors call it `key`, if any.

    Raises:
        TypeError, ValueError: the argument is none of these.
    """
    if isinstance(given, FanAxes):
        for name, axes in given._asdict().items():
            if not all(type(axis) is int for axis in (axes if isinstance(axes, tuple) else (axes,))):
                raise TypeError(f"{key}{'.' if key else ''}{name}: expected an axis or several, got {axes!r}")
        return given
    if isinstance(given, str):
        check_choice(key, given, FAN_NAMES)
        return given  # type: ignore[return-value]
    if isinstance(given, (tuple, list)) and len(given) == 2 and all(type(each) is int for each in given):
        if min(given) < 1:
            raise ValueError(f"{key}: expected fan_in >= 1 and fan_out >= 1, got {given!r}")
        return Fans(*given)
    raise TypeError(f"{key}: expected one of {', '.join(FAN_NAMES)}, Fans(fan_in, fan_out) or FanAxes, got {given!r}")


def as_rules(given: Sequence[Rule | tuple[Selector, Any]] | None) -> tuple[Rule, ...]:
    """Rules from a list of Rule objects or (selector, scheme) pairs.

    Raises:
        TypeError, ValueError: the argument is no such list, or an element is no valid rule.
    """
    if given is None:
        return ()
    try:
        listed = None if isinstance(given, (str, Mapping)) else list(given)
    except TypeError:
        listed = None
    if listed is None:
        raise TypeError(f"rules: expected a list of Rule objects or (selector, scheme) pairs, got {given!r}")
    rules = []
    for each in listed:
        if isinstance(each, Rule):
            rules.append(each)
        elif isinstance(each, (tuple, list)) and len(each) == 2:
            rules.append(Rule(*each))
        else:
            raise TypeError(f"rules: expected Rule objects or (selector, scheme) pairs, got {each!r}")
    return tuple(rules)
