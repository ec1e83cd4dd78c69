"""Where: the properties by which a rule chooses parameters."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from fnmatch import translate
from functools import lru_cache
from typing import Any, Final

import torch
from torch import nn

from fastinit.distributed.held import global_shape, local_tensor
from fastinit.rules.biases import is_bias
from fastinit.schemes.base import check_choice

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
            and (self.role is None or self._has_role(name_in_module(name, own_name), module, parameter, role))
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


def name_in_module(name: str, given: str | None) -> str:
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
