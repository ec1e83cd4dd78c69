"""Rules: which parameters get which scheme. In a list of rules, the first one that matches a parameter decides."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from fnmatch import translate
from functools import lru_cache
from typing import Any, Final, NamedTuple

import torch
from torch import nn

from fastinit.distributed.held import global_shape, local_tensor
from fastinit.errors import ParameterError
from fastinit.rules.biases import is_bias
from fastinit.run.names import named_modules
from fastinit.schemes.base import Scheme, as_scheme, check_choice
from fastinit.schemes.fans import FAN_NAMES, FanAxes, FanConvention, Fans
from fastinit.schemes.named import Own


class _Keep(Enum):
    KEEP = "KEEP"

    def __repr__(self) -> str:
        return "KEEP"


KEEP: Final = _Keep.KEEP
"""Stands in place of a scheme: the parameter keeps its values."""


_WILDCARD = re.compile(r"[*?\[]")

# What rules call the roles of parameters.
ROLES: Final = ("map", "table", "scale", "bias", "published", "author", "frozen", "loaded", "integer")


# Tells a parameter's role. It is called only if a rule asks.
AskRole = Callable[[], str]


@dataclass(frozen=True)
class Where:
    """Selects the parameters that have all the given properties.

    Args:
        name: a glob, or several, that must match the whole canonical name ("*.attn.*.weight").
        regex: a regular expression that is searched for in the canonical name.
        type: types of the module that holds the parameter, or their names ("Linear",
            "torch.nn.modules.linear.Linear"). A subclass counts, too. A rule takes the module's biases only if the
            `Where` has a role, a shape or dims, or "bias" in its name or regex, or if the scheme is KEEP or "own".
        shape: a size for every dimension; None or -1 stands for any size.
        dims: the number of dimensions.
        requires_grad: whether the parameter is trained.
        role: what the parameter is, or several: "map" (a linear map), "table" (an embedding), "scale" (of a
            normalisation), "bias" (and a normalisation's shift), "published", "author", "integer", "frozen", "loaded".
        frozen: whether the parameter is not trained; the opposite of requires_grad.
        loaded: whether transformers has marked the parameter as loaded (`_is_hf_initialized`).

    Raises:
        TypeError, ValueError: an argument has the wrong type, the regular expression is invalid, or no argument is
            given.
    """

    name: str | tuple[str, ...] | None = None
    regex: str | None = None
    type: str | type[nn.Module] | tuple[str | type[nn.Module], ...] | None = None
    shape: tuple[int | None, ...] | None = None
    dims: int | None = None
    requires_grad: bool | None = None
    role: str | tuple[str, ...] | None = None
    frozen: bool | None = None
    loaded: bool | None = None

    def __post_init__(self) -> None:
        if all(getattr(self, field.name) is None for field in fields(self)):
            raise ValueError(f"select: expected one of {', '.join(each.name for each in fields(self))}, got none")
        for several in ("name", "type", "role"):
            if isinstance(getattr(self, several), list):
                object.__setattr__(self, several, tuple(getattr(self, several)))
        globs = () if self.name is None else self.name if isinstance(self.name, tuple) else (self.name,)
        if not all(isinstance(each, str) for each in globs) or self.name == ():
            raise TypeError(f"name: expected a glob or several, got {self.name!r}")
        if not isinstance(self.regex, (str, type(None))):
            raise TypeError(f"regex: expected a string, got {self.regex!r}")
        for field, kind in (("dims", int), ("requires_grad", bool), ("frozen", bool), ("loaded", bool)):
            given = getattr(self, field)
            if given is not None and type(given) is not kind:
                raise TypeError(f"{field}: expected {kind.__name__}, got {given!r}")
        if self.dims is not None and self.dims < 0:
            raise ValueError(f"dims: expected dims >= 0, got {self.dims}")
        if self.role is not None:
            if self.role == ():
                raise TypeError("role: expected a role or several, got none")
            for role in self._roles:
                check_choice("role", role, ROLES)
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
        # The attributes below follow from the fields. Equality and repr leave them out, because they are no fields.
        object.__setattr__(self, "_exact", exact)
        object.__setattr__(self, "_wild", re.compile("|".join(wild)) if wild else None)
        object.__setattr__(self, "_regex", regex)

    def _has_name(self, name: str) -> bool:
        derived = self.__dict__
        if name in derived["_exact"]:
            return True
        return derived["_wild"] is not None and derived["_wild"].match(name) is not None

    @property
    def _roles(self) -> tuple[str, ...]:
        return self.role if isinstance(self.role, tuple) else () if self.role is None else (self.role,)

    def matches(
        self,
        name: str,
        module: nn.Module,
        parameter: torch.Tensor,
        own_name: str | None = None,
        role: AskRole | None = None,
    ) -> bool:
        regex = self.__dict__["_regex"]
        return (
            (self.name is None or self._has_name(name))
            and (regex is None or regex.search(name) is not None)
            and (self.type is None or _is_of_type(module, self.type))
            and (self.dims is None or len(global_shape(parameter)) == self.dims)
            and (self.requires_grad is None or parameter.requires_grad == self.requires_grad)
            and (self.frozen is None or parameter.requires_grad != self.frozen)
            and (self.loaded is None or is_loaded(parameter) == self.loaded)
            and (self.shape is None or _has_shape(parameter, self.shape))
            and (self.role is None or self._has_role(_own_name(name, own_name), module, parameter, role))
        )

    def _has_role(self, own_name: str, module: nn.Module, parameter: torch.Tensor, ask: AskRole | None) -> bool:
        # A frozen bias is frozen, and a bias, too.
        roles = self._roles
        if ("frozen" in roles and not parameter.requires_grad) or ("loaded" in roles and is_loaded(parameter)):
            return True
        if "bias" in roles and is_bias(own_name, module):
            return True
        return ask is not None and ask() in roles

    def __str__(self) -> str:
        if isinstance(self.name, str) and all(getattr(self, field.name) is None for field in fields(self)[1:]):
            return repr(self.name)
        given = ((field.name, getattr(self, field.name)) for field in fields(self))
        return ", ".join(f"{key} {_shown(key, value)}" for key, value in given if value is not None)


def _shown(key: str, value: Any) -> str:
    """A property of a Where in words. Several values are alternatives. A type is shown without its module."""
    if key in ("name", "type", "role") and isinstance(value, tuple):
        if len(value) > 3:
            return f"{_shown(key, value[0])} and {len(value) - 1} more"
        return " | ".join(_shown(key, each) for each in value)
    if key == "type":
        return value.rpartition(".")[2] if isinstance(value, str) else str(value.__name__)
    return repr(value)


_FLAGS = {"a": re.ASCII, "i": re.IGNORECASE, "m": re.MULTILINE, "s": re.DOTALL, "x": re.VERBOSE}


def flagged(expression: re.Pattern[str]) -> str:
    """The source of a regular expression, with flags such as (?i) written into it."""
    flags = "".join(letter for letter, flag in _FLAGS.items() if expression.flags & flag)
    return (f"(?{flags})" if flags else "") + expression.pattern


def exact_glob(name: str) -> str:
    """The glob that matches this name alone."""
    return _WILDCARD.sub(r"[\g<0>]", name)


def is_loaded(parameter: torch.Tensor) -> bool:
    """Whether transformers has marked a parameter as loaded, and it has memory that may hold what was loaded."""
    return bool(parameter.__dict__.get("_is_hf_initialized", False)) and not local_tensor(parameter).is_meta


def _own_name(name: str, given: str | None) -> str:
    """The name of a parameter in its module: the given one, or the last part of its whole name."""
    return name.rpartition(".")[2] if given is None else given


def _has_shape(parameter: torch.Tensor, shape: tuple[int | None, ...]) -> bool:
    own = global_shape(parameter)
    return len(own) == len(shape) and all(
        wanted is None or size == wanted for size, wanted in zip(own, shape, strict=True)
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
    """The short and the full names of a type and of all its base classes."""
    short = {base.__name__ for base in module_type.__mro__}
    return frozenset(short | {f"{base.__module__}.{base.__qualname__}" for base in module_type.__mro__})


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
            return not (self.__dict__["_spares_biases"] and is_bias(_own_name(name, own_name), module))
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


class Names(NamedTuple):
    """The names of a parameter.

    name: the canonical name in the whole model, which `names=` of `plan` gives. in_model: the canonical name in the
    planned model. full: the name that `named_parameters()` gives.
    """

    name: str
    in_model: str
    full: str


# Wrappers add one of these words to names. canonical_name drops them.
_WRAPPER_WORDS = ("module", "_orig_mod", "parametrizations")


class RuleFinder:
    """Finds the first rule that matches a parameter."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        positions = range(len(self.rules))
        self._all = _FirstMatch(self.rules, positions)
        # A pattern like "*.weight" must not match "module.weight" where it does not match "weight", or a wrapper would
        # change which rule decides. So only patterns that contain a wrapper's word are compared with the full name.
        spelled = [at for at in positions if any(map(_spells_wrapper, self.rules[at].name_patterns))]
        self._spelled = _FirstMatch(self.rules, spelled)
        self._in_model = _FirstMatch(
            self.rules, [at for at in positions if self.rules[at].in_model and self.rules[at].name_patterns]
        )

    def find(
        self,
        names: tuple[str, str, str],
        module: nn.Module,
        parameter: torch.Tensor,
        role: AskRole | None = None,
    ) -> int | None:
        """The position of the first rule that matches, or None. `names` are `Names`; functions of rules get `name`.

        `role` tells the parameter's role, one of ROLES, however it is frozen or loaded. Without it, only biases, frozen
        and loaded parameters are known.

        Raises:
            ParameterError: a rule's function raised an error, or returned neither True nor False.
        """
        name, in_model, full = names
        own_name = in_model.rpartition(".")[2]
        position = self._all.find(name, module, parameter, own_name, role)
        if name == in_model == full:
            return position
        found = [position]
        if full != in_model:
            found.append(self._spelled.find(full, module, parameter, own_name, role))
        # "layers.0" of the model may be "layers.24" of the whole, and the whole has a "layers.0", too. Rules made from
        # the whole find the name in the whole. So the name in the model is tried only if they find nothing.
        if name != in_model and self._in_model.find(name, module, parameter, own_name, role) is None:
            found.append(self._in_model.find(in_model, module, parameter, own_name, role))
        return min((each for each in found if each is not None), default=None)

    def finds_any(self, model: nn.Module) -> bool:
        """Whether a rule matches any parameter of a model."""
        for each in named_modules(model):
            for own_name, parameter in each.module._parameters.items():
                name, full_name = each.names_of(own_name)
                if parameter is not None and self.find((name, name, full_name), each.module, parameter) is not None:
                    return True
        return False


def _spells_wrapper(pattern: str) -> bool:
    return any(word in pattern for word in _WRAPPER_WORDS)


class _FirstMatch:
    """Finds the first rule, among those at some positions, that matches. Consecutive globs are one expression."""

    def __init__(self, rules: Sequence[Rule], positions: Sequence[int]) -> None:
        self._rules = rules
        self._steps: list[tuple[re.Pattern[str] | None, int]] = []  # an expression over globs, or a rule's position
        globs: list[str] = []
        for at in positions:
            glob = rules[at].glob
            if glob is not None:
                globs.append(f"(?P<r{at}>{translate(glob)})")
                continue
            self._end_run(globs)
            self._steps.append((None, at))
        self._end_run(globs)

    def _end_run(self, globs: list[str]) -> None:
        if globs:
            self._steps.append((re.compile("|".join(globs)), -1))
            globs.clear()

    def find(
        self, name: str, module: nn.Module, parameter: torch.Tensor, own_name: str, role: AskRole | None
    ) -> int | None:
        for expression, position in self._steps:
            if expression is None:
                if self._rules[position].matches(name, module, parameter, own_name, role):
                    return position
            elif (match := expression.match(name)) is not None:
                return int((match.lastgroup or "r0")[1:])
        return None
