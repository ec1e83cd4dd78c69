"""The Scheme protocol, and the registry of schemes: from a name to a scheme, and from a scheme to plain data."""

from __future__ import annotations

import difflib
import functools
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
    """A parameter, or one of the blocks fused in it, as a scheme sees it.

    `shape` is the shape of the whole parameter, even if the parameter is sharded, or the shape of the block. `dtype` is
    the parameter's. Every other property is computed when the scheme asks for it. A scheme therefore fails only if a
    property that it needs is unknown. A context made by hand, for a test of a scheme, returns its arguments; its `fans`
    are torch's if none are given.

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
        author: Distribution | None = None,
    ) -> None:
        self.shape: tuple[int, ...] = tuple(shape)
        self.dtype = dtype
        self._fans = fans
        self._module = module
        self._own_name = own_name
        self._layer = layer
        self._layers = layers
        self._author = author

    @property
    def fans(self) -> Fans:
        """fan_in and fan_out, by the convention in force.

        Raises:
            ValueError: the convention has no fans for this shape.
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
            ValueError: the parameter lies in no stack of layers.
        """
        if self._layer is None:
            raise ValueError("expected a parameter in a stack of layers, whose name has its number; got none")
        return self._layer

    @property
    def layers(self) -> int:
        """The number of layers in the parameter's stack.

        Raises:
            ValueError: the number of layers is unknown.
        """
        if self._layers is None:
            raise ValueError("expected a parameter in a stack of layers, or layers=; got neither")
        return self._layers

    @property
    def author(self) -> Distribution:
        """The distribution that the module's own code gives the parameter.

        Raises:
            ValueError: no code tells.
        """
        if self._author is None:
            raise ValueError("expected a parameter that its module's own code sets; got one of which no code tells")
        return self._author


@runtime_checkable
class Scheme(Protocol):
    """A map from a parameter to the distribution of its values. It has one method, and is usually a frozen dataclass.

    Equal contexts must give equal distributions. A plan calls a scheme once for all parameters whose contexts gave the
    scheme the same answers.
    """

    def distribution(self, context: Context) -> Distribution: ...


def check_choice(name: str, given: object, choices: Sequence[str]) -> None:
    """Raise ValueError, with the nearest choice first, unless `given` is one of them."""
    if given not in choices:
        lower = {each.lower(): each for each in choices}
        nearest = difflib.get_close_matches(str(given).lower(), lower, n=1)
        expected = f"expected one of {', '.join(choices)}"
        if nearest:
            raise ValueError(f"{name}: got {given!r}, did you mean {lower[nearest[0]]!r}? {expected}")
        raise ValueError(f"{name}: {expected}, got {given!r}")


_MAKERS: dict[str, Callable[..., Scheme]] = {}
_NAMES: dict[Scheme, str] = {}  # scheme -> its name, if the name needs no arguments


def register_scheme(name: str, make: Callable[..., Scheme]) -> None:
    """Register `name` for the schemes that `make` returns. The arguments of `make` become the scheme's.

    If `make` is a frozen dataclass, its schemes can be written to recipe files.

    Raises:
        TypeError: the name is not a string, or `make` cannot be called.
        ValueError: the name is taken.
    """
    if not isinstance(name, str):
        raise TypeError(f"name: expected a str, got {name!r}")
    if not callable(make):
        raise TypeError(f"make: expected a function or a class that makes the scheme {name!r}, got {make!r}")
    if name in _MAKERS:
        raise ValueError(f"scheme {name!r} is registered already")
    _MAKERS[name] = make
    # "xavier_uniform" says more than VarianceScaling(...) does. Only the package's own names are recorded, since every
    # reader of a recipe has them.
    if not isinstance(make, type) and _is_own(make):
        made = _make_default(make)
        if made is not None:
            _NAMES.setdefault(made, name)


def _is_own(make: object) -> bool:
    return str(getattr(make, "__module__", "")).startswith("fastinit.")


def _make_default(make: Callable[..., Scheme]) -> Scheme | None:
    try:
        made = make()
        hash(made)
    except TypeError:  # `make` has arguments without defaults, or its scheme is not frozen
        return None
    return made


def scheme_names() -> tuple[str, ...]:
    """The registered names."""
    return tuple(_MAKERS)


def scheme(name: str, **arguments: Any) -> Scheme:
    """The registered scheme `name`, made with these arguments.

    Raises:
        ValueError: the name is unknown (the message has the nearest one), the arguments do not fit the scheme, or what
            makes it fails.
        TypeError: what makes it gives no scheme.

    >>> scheme("kaiming_normal", mode="fan_out", nonlinearity="relu")
    VarianceScaling(scale=2.0000000000000004, mode='fan_out', shape='normal')
    """
    check_choice("scheme", name, scheme_names())
    make = _MAKERS[name]
    try:
        made = make(**arguments)
    except Exception as error:  # a user's function may raise anything
        if isinstance(error, ValueError) and _is_own(make):  # which says what was wrong with an argument
            raise
        told = str(error) if isinstance(error, (ValueError, TypeError)) else f"{type(error).__name__}: {error}"
        raise ValueError(f"scheme {name!r}: {told}") from error
    _check_made(name, made)
    return made


def _check_made(name: str, made: object) -> None:
    if isinstance(made, type) or not isinstance(made, Scheme):
        raise TypeError(f"scheme {name!r}: expected a scheme from what it was registered with, got {_in_words(made)}")


def as_scheme(given: str | Scheme, line: Callable[[str], str] = str) -> Scheme:
    """A scheme unchanged, or the registered scheme of that name with its defaults.

    `line` makes, from the code for a scheme, the line that errors tell the user to write.

    Raises:
        ValueError: the name is unknown; the message has the nearest one.
        TypeError: neither a name nor a scheme; the message has the line to write.
    """
    if isinstance(given, str):
        return scheme(given)
    # isinstance of a protocol takes microseconds, so each type is checked once.
    if type(given) not in _SCHEME_TYPES:
        if isinstance(given, type) or not isinstance(given, Scheme):
            raise TypeError(
                f"scheme: expected a name or a scheme object, got {_in_words(given)}; write {_instead_of(given, line)}"
            )
        _SCHEME_TYPES.add(type(given))
    return given


_SCHEME_TYPES: set[type] = set()


def _in_words(given: object) -> str:
    """What was given, on one short line."""
    if isinstance(given, type):
        return f"the class {given.__name__}"
    if _function_name(given) is not None:
        return f"the function {_function_name(given)}"
    if given is None or isinstance(given, (int, float, list, tuple, dict)):
        return repr(given) if len(repr(given)) < 100 else f"a {type(given).__name__}"
    return f"a {type(given).__name__}" if isinstance(given, (nn.Module, torch.Tensor)) else repr(given)


def _function_name(given: object) -> str | None:
    given = given.func if isinstance(given, functools.partial) else given
    return getattr(given, "__name__", None) if callable(given) and not isinstance(given, (type, nn.Module)) else None


def _instead_of(given: Any, line: Callable[[str], str]) -> str:
    """The line to write instead of one that has no scheme where one is expected."""
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        if given in (0, 1):
            return line('"ones"' if given else '"zeros"')
        alone = line(f"fastinit.Constant({given!r})")
        return f"{alone} for that value, or {line(f'fastinit.Normal(std={given!r})')} for that std"
    if isinstance(given, type) and hasattr(given, "distribution"):
        return line(_call(given))
    # xavier_uniform_, of torch.nn.init or of fastinit.functional, fills a tensor. Its scheme is "xavier_uniform".
    name = (_function_name(given) or "").rstrip("_")
    if name not in _MAKERS:
        return line('"xavier_uniform"')
    parameters = inspect.signature(_MAKERS[name]).parameters
    arguments = {each.name: each.empty for each in parameters.values() if each.default is each.empty}
    if isinstance(given, functools.partial):
        arguments |= {key: value for key, value in given.keywords.items() if key in parameters}
    return line(f'fastinit.scheme("{name}", {_listed(arguments)})' if arguments else f'"{name}"')


def _call(kind: Any) -> str:
    """The call of a scheme's class, with all its arguments."""
    package = "fastinit." if kind.__module__.startswith("fastinit.") else ""
    arguments = {key: each.default for key, each in inspect.signature(kind).parameters.items()}
    return f"{package}{kind.__name__}({_listed(arguments)})"


def _listed(arguments: Mapping[str, Any]) -> str:
    """Arguments of a call; "..." stands for those without a default."""
    empty = inspect.Parameter.empty
    return ", ".join(f"{key}={'...' if value is empty else repr(value)}" for key, value in arguments.items())


def as_written(given: object) -> str:
    """The code for a scheme, for lines that errors show: what the user gave, if it is one."""
    if isinstance(given, str):
        return f'"{given}"'
    if isinstance(given, type) or not isinstance(given, Scheme):
        return '"xavier_uniform"'
    name = _name_alone(given)
    package = "fastinit." if type(given).__module__.startswith("fastinit.") else ""
    return f"{package}{given!r}" if name is None else f'"{name}"'


def describe(given: Scheme) -> str:
    """The scheme's registered name if the name needs no arguments, else its class and the arguments that are not
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
    """The name that gives exactly this scheme, without arguments."""
    try:
        return _NAMES.get(given)
    except TypeError:  # the scheme has no hash
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
        ValueError: the scheme is not a registered dataclass, or one of its arguments is not plain data. `key` names
            the place in the recipe.
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
    if isinstance(value, float):  # NumPy's float64 is a float, too
        return float(value) if math.isfinite(value) else str(float(value))  # JSON has no infinities
    if isinstance(value, (str, int)):
        return value
    raise ValueError(f"{key}: {value!r} is no number, string, scheme or sequence of them: no recipe can hold it")


def from_data(data: Any, key: str) -> Scheme:
    """The scheme that `to_data` turned into this data. `key` names the place in the recipe for errors.

    Raises:
        ValueError: the data is no scheme; the message has the key, what was expected there and what came.
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
        made = _MAKERS[name](**arguments)
        _check_made(name, made)
        return made
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
