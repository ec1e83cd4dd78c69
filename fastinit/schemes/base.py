"""What a scheme is, and the names of the registered ones: from a string to a scheme, and back to plain data."""

from __future__ import annotations

import difflib
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from fastinit.schemes.distributions import Distribution
from fastinit.schemes.fans import Fans, torch_fans


class Context:
    """What a scheme may look at: a parameter, or one of the blocks that are fused in it.

    `shape` is that of the whole parameter, however it is sharded, or the block's; `dtype` is the parameter's. The rest
    is found out when it is asked for, so that a scheme fails only for want of what it needs. Made by hand, as for a
    test of a scheme, it answers with the arguments; `fans` are torch's unless given.

    >>> Context((64, 3, 7, 7)).fans
    Fans(fan_in=147, fan_out=3136)
    """

    def __init__(
        self,
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        *,
        fans: Fans | None = None,
        module: nn.Module | None = None,
        own_name: str = "",
        layer: int | None = None,
        layers: int | None = None,
    ) -> None:
        self.shape: tuple[int, ...] = tuple(shape)
        self.dtype = dtype
        self._fans = fans
        self._module = module
        self._own_name = own_name
        self._layer = layer
        self._layers = layers

    @property
    def fans(self) -> Fans:
        """fan_in and fan_out, by the convention in force.

        Raises:
            ValueError: it has none for this shape.
        """
        return torch_fans(self.shape) if self._fans is None else self._fans

    @property
    def module(self) -> nn.Module | None:
        """The module that holds the parameter; None for a tensor that was given alone."""
        return self._module

    @property
    def own_name(self) -> str:
        """The parameter's name within its module, such as "weight"; "" for a tensor that was given alone."""
        return self._own_name

    @property
    def layer(self) -> int:
        """The parameter's layer in its stack, counted from zero.

        Raises:
            ValueError: it lies in no stack of layers.
        """
        if self._layer is None:
            raise ValueError("expected a parameter in a stack of layers, whose name has its number; got none")
        return self._layer

    @property
    def layers(self) -> int:
        """How many layers the parameter's stack has.

        Raises:
            ValueError: nothing tells.
        """
        if self._layers is None:
            raise ValueError("expected a parameter in a stack of layers, or layers=; got neither")
        return self._layers


@runtime_checkable
class Scheme(Protocol):
    """From what a parameter is to the distribution of its values: one method, usually of a small frozen dataclass.

    Equal contexts must give equal distributions: a plan asks once for all parameters for which the scheme got the same
    answers from their contexts.
    """

    def distribution(self, context: Context) -> Distribution: ...


def check_choice(name: str, given: object, choices: Sequence[str]) -> None:
    """Raise ValueError, with the nearest choice, unless `given` is one of them."""
    if given not in choices:
        nearest = difflib.get_close_matches(str(given), choices, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {given!r}{hint}")


_MAKERS: dict[str, Callable[..., Scheme]] = {}
_NAMES: dict[Scheme, str] = {}  # schemes that a name alone gives


def register_scheme(name: str, make: Callable[..., Scheme]) -> None:
    """Let `name` stand for the schemes that `make` returns, with arguments of its own.

    A frozen dataclass as `make` can be written to recipe files.

    Raises:
        TypeError: a name that is no string.
        ValueError: the name is taken.
    """
    if not isinstance(name, str):
        raise TypeError(f"name: expected a str, got {name!r}")
    if name in _MAKERS:
        raise ValueError(f"scheme {name!r} is registered already")
    _MAKERS[name] = make
    # A line on top of a class says more than the class with its numbers. But only ours, which every recipe can name.
    if not isinstance(make, type) and getattr(make, "__module__", "").startswith("fastinit."):
        made = _make_default(make)
        if made is not None:
            _NAMES.setdefault(made, name)


def _make_default(make: Callable[..., Scheme]) -> Scheme | None:
    try:
        made = make()
        hash(made)
    except TypeError:  # it has arguments without defaults, or a scheme that is not frozen
        return None
    return made


def scheme_names() -> tuple[str, ...]:
    """The registered names."""
    return tuple(_MAKERS)


def scheme(name: str, **arguments: Any) -> Scheme:
    """The registered scheme `name` with arguments of its own.

    Raises:
        ValueError: unknown name (the message has the nearest one), or arguments that do not fit the scheme.

    >>> scheme("kaiming_normal", mode="fan_out", nonlinearity="relu")
    VarianceScaling(scale=2.0000000000000004, mode='fan_out', shape='normal')
    """
    check_choice("scheme", name, scheme_names())
    try:
        return _MAKERS[name](**arguments)
    except TypeError as error:
        raise ValueError(f"scheme {name!r}: {error}") from error


def as_scheme(given: str | Scheme) -> Scheme:
    """A scheme as it is, or the registered one of that name with its defaults."""
    if isinstance(given, str):
        return scheme(given)
    # Asking a protocol takes microseconds: once for every type.
    if type(given) not in _SCHEME_TYPES:
        if isinstance(given, type) or not isinstance(given, Scheme):
            raise TypeError(f"scheme: expected a name or a scheme object, got {given!r}")
        _SCHEME_TYPES.add(type(given))
    return given


_SCHEME_TYPES: set[type] = set()


def describe(given: Scheme) -> str:
    """The scheme's registered name where a name alone gives it, else its class with the numbers that are no
    defaults."""
    name = _name_alone(given)
    if name is not None:
        return name
    registered = _class_name(given)
    if registered is None:
        return repr(given)
    if not _set_fields(given):
        return registered
    arguments = ", ".join(f"{key}={_described(value)}" for key, value in _set_fields(given).items())
    return f"{type(given).__name__}({arguments})"


def _described(value: object) -> str:
    return describe(value) if isinstance(value, Scheme) else repr(value)


def _name_alone(given: Scheme) -> str | None:
    """The name that stands for this very scheme, without arguments."""
    try:
        return _NAMES.get(given)
    except TypeError:  # no hash
        return None


def _class_name(given: Scheme) -> str | None:
    """The name of the scheme's class, if it is a registered dataclass."""
    if not is_dataclass(given):
        return None
    return next((name for name, make in _MAKERS.items() if make is type(given)), None)


def _set_fields(given: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from their defaults."""
    values = {}
    for field in fields(given):
        if not field.init:
            continue
        value = getattr(given, field.name)
        if field.default is MISSING or value != field.default:
            values[field.name] = value
    return values


def to_data(given: Scheme, key: str = "scheme") -> Any:
    """A scheme as JSON and TOML can hold it: a name, or a mapping {"name": ..., argument: value ...}.

    Raises:
        ValueError: a scheme that is no registered dataclass, or has an argument that is no plain data; `key` names the
            place in the recipe.
    """
    name = _name_alone(given)
    if name is not None:
        return name
    name = _class_name(given)
    if name is None:
        raise ValueError(f"{key}: {given!r} is no registered dataclass (register_scheme): no recipe can hold it")
    arguments = {argument: _plain(value, f"{key}.{argument}") for argument, value in _set_fields(given).items()}
    return {"name": name, **arguments} if arguments else name


def _plain(value: Any, key: str) -> Any:
    if isinstance(value, Scheme) and not isinstance(value, type):
        return to_data(value, key)
    if isinstance(value, (tuple, list)):
        return [_plain(each, f"{key}[{position}]") for position, each in enumerate(value)]
    if isinstance(value, float):  # NumPy's float64 is one, too
        return float(value) if math.isfinite(value) else str(float(value))  # JSON has no infinities
    if isinstance(value, (str, int)):
        return value
    raise ValueError(f"{key}: {value!r} is no number, string, scheme or sequence of them: no recipe can hold it")


def from_data(data: Any, key: str) -> Scheme:
    """The scheme that `to_data` made the data of; `key` names the place in the recipe for errors.

    Raises:
        ValueError: naming the key, what was expected there and what came.
    """
    if isinstance(data, str):
        arguments: dict[str, Any] = {}
        name: Any = data
    elif isinstance(data, Mapping):
        arguments = {argument: value for argument, value in data.items() if argument != "name"}
        name = data.get("name")
        if not isinstance(name, str):
            raise ValueError(f"{key}.name: expected the name of a scheme, got {name!r}")
    else:
        raise ValueError(f"{key}: expected the name of a scheme or a table with its name and arguments, got {data!r}")
    check_choice(key, name, scheme_names())
    _check_arguments(name, arguments, key)
    for argument, value in arguments.items():
        arguments[argument] = _from_plain(value, f"{key}.{argument}")
    try:
        return _MAKERS[name](**arguments)
    except (ValueError, TypeError, ArithmeticError) as error:
        named = re.match(r"(\w+)(\[\d+\])?[:,] ", str(error))  # "std: expected ...", "low, high: expected ..."
        separator = "." if named is not None and named[1] in arguments else ": "
        raise ValueError(f"{key}{separator}{error}") from error


def _check_arguments(name: str, arguments: Mapping[Any, Any], key: str) -> None:
    parameters = inspect.signature(_MAKERS[name]).parameters
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return
    for argument in arguments:
        check_choice(f"{key}: key", argument, ("name", *parameters))
    for argument, parameter in parameters.items():
        if parameter.default is parameter.empty and argument not in arguments:
            raise ValueError(f"{key}.{argument}: expected it for {name!r}, got none")


def _from_plain(value: Any, key: str) -> Any:
    if isinstance(value, Mapping) or (isinstance(value, str) and value in _MAKERS and key.endswith(".scheme")):
        return from_data(value, key)
    if isinstance(value, list):
        return tuple(_from_plain(each, f"{key}[{position}]") for position, each in enumerate(value))
    if value in ("inf", "-inf", "nan"):
        return float(value)
    return value
