"""Recipes: a scheme, rules and a fan convention under one name. They are objects, and can be written as JSON and TOML.

The other files of this room make recipes; `fastinit.plan` takes them in place of a scheme.
"""

from __future__ import annotations

import codecs
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from fastinit.rules.select import KEEP, Rule, Selector, as_fan, as_rules
from fastinit.rules.where import Where, flagged
from fastinit.schemes.base import Scheme, as_scheme, check_choice, from_data, to_data
from fastinit.schemes.fans import FanAxes, FanConvention

_RECIPE_KEYS = ("name", "source", "scheme", "fan", "rules")
_WHERE_KEYS = tuple(field.name for field in fields(Where))
_RULE_KEYS = (*_WHERE_KEYS, "scheme", "keep", "fan", "split", "split_dim", "zero_row", "in_model")


@dataclass(frozen=True)
class Recipe:
    """How to initialise a kind of model.

    `init_model_` and `plan` take a recipe in place of a scheme. Rules that are given beside it come first.

    Args:
        scheme: for the matrices: a scheme or the name of one.
        rules: `Rule` objects or (selector, scheme) pairs, which come before the defaults.
        fan: how to read fans where a rule does not say.
        name, source: what the recipe is, and where it was published.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    >>> Recipe("xavier_uniform", [("*.head.weight", "zeros")]).to_json(indent=None)
    '{"scheme": "xavier_uniform", "rules": [{"name": "*.head.weight", "scheme": "zeros"}]}'
    """

    scheme: Scheme | str
    rules: Sequence[Rule | tuple[Selector, Any]] = ()
    fan: FanConvention = "torch"
    name: str | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "scheme", as_scheme(self.scheme))
        object.__setattr__(self, "rules", as_rules(self.rules))
        object.__setattr__(self, "fan", as_fan(self.fan))
        for key in ("name", "source"):
            if not isinstance(getattr(self, key), (str, type(None))):
                raise TypeError(f"{key}: expected a string, got {getattr(self, key)!r}")

    def to_data(self) -> dict[str, Any]:
        """The recipe as plain data: what its JSON and TOML hold.

        Raises:
            ValueError: naming the rule that holds a function, or a scheme that is not registered.
        """
        data: dict[str, Any] = {}
        for key in ("name", "source"):
            if getattr(self, key) is not None:
                data[key] = getattr(self, key)
        data["scheme"] = to_data(as_scheme(self.scheme))
        if self.fan != "torch":
            data["fan"] = _fan_to_data(self.fan)
        rules = as_rules(self.rules)
        if rules:
            data["rules"] = [_rule_to_data(rule, f"rules[{at}]") for at, rule in enumerate(rules)]
        return data

    def to_json(self, indent: int | None = 1) -> str:
        """The recipe as JSON, which `load_recipe` reads."""
        return json.dumps(self.to_data(), indent=indent, ensure_ascii=False)

    def to_toml(self) -> str:
        """The recipe as TOML, which `load_recipe` reads."""
        data = self.to_data()
        rules = data.pop("rules", [])
        lines = [f"{key} = {_toml(value)}" for key, value in data.items()]
        for rule in rules:
            lines += ["", "[[rules]]", *(f"{key} = {_toml(value)}" for key, value in rule.items())]
        return "\n".join(lines) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the recipe to a .json or .toml file.

        Raises:
            TypeError: no path.
            ValueError: another suffix, or a recipe that cannot be written (to_data). The file is left as it was.
        """
        path = _as_path(path)
        text = self.to_json() + "\n" if path.suffix == ".json" else self.to_toml()
        path.write_bytes(text.encode())


def load_recipe(path: str | os.PathLike[str]) -> Recipe:
    """The recipe in a .json or .toml file, which is UTF-8 with or without a byte order mark.

    Raises:
        TypeError: no path.
        ValueError: another suffix or encoding, no valid JSON or TOML, an unknown key, a key that stands twice, or a
            value that does not fit; naming the file and the key.
        OSError: the file cannot be read.
    """
    path = _as_path(path)
    encoded = path.read_bytes()
    try:
        text = _decoded(encoded)
        return recipe_from_data(_parse_json(text) if path.suffix == ".json" else _parse_toml(text))
    except RecursionError as error:
        raise ValueError(f"{path}: the recipe is nested too deeply") from error
    except ValueError as error:  # those of json and tomllib, too, which tell the line
        raise ValueError(f"{path}: {error}") from error


def _as_path(given: str | os.PathLike[str]) -> Path:
    if not isinstance(given, (str, os.PathLike)):
        raise TypeError(f"path: expected a path to a .json or .toml file, got {given!r}")
    path = Path(given)
    check_choice("path", path.suffix, (".json", ".toml"))
    return path


def _decoded(encoded: bytes) -> str:
    """The text of a file.

    Raises:
        ValueError: it is empty, or in another encoding than UTF-8.
    """
    if encoded.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("expected text in UTF-8, got one that begins with the byte order mark of UTF-16 or UTF-32")
    try:
        text = encoded.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"expected text in UTF-8, got {error.reason} in line {_line(encoded, error.start)}") from error
    if "\0" in text:  # neither JSON nor TOML may hold one; UTF-16 without a mark is full of them
        line = _line(encoded, encoded.index(0))
        raise ValueError(f"expected text in UTF-8, got a zero byte in line {line}")
    if not text.strip():
        raise ValueError("expected a recipe, got an empty file")
    return text


def _line(encoded: bytes, at: int) -> int:
    return encoded.count(b"\n", 0, at) + 1


def recipe_from_data(data: Any) -> Recipe:
    """The recipe that `Recipe.to_data` turned into this data.

    Raises:
        ValueError: naming the key, what was expected there and what came.
    """
    data = _table(data, "recipe", _RECIPE_KEYS, prefix="")
    if "scheme" not in data:
        raise ValueError("scheme: expected the name of a scheme or a table with its name and arguments, got none")
    for key in ("name", "source"):
        if not isinstance(data.get(key, ""), str):
            raise ValueError(f"{key}: expected a string, got {data[key]!r}")
    rules = data.get("rules", [])
    if not isinstance(rules, list):
        raise ValueError(f"rules: expected an array of tables, got {rules!r}")
    return Recipe(
        from_data(data["scheme"], "scheme"),
        [_rule_from_data(rule, f"rules[{at}]") for at, rule in enumerate(rules)],
        _fan_from_data(data["fan"], "fan") if "fan" in data else "torch",
        data.get("name"),
        data.get("source"),
    )


def _table(data: Any, key: str, known: Sequence[str], prefix: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise ValueError(f"{key}: expected a table, got {data!r}")
    for each in data:
        check_choice(f"{prefix}key", each, known)
    return data


def _fan_to_data(fan: FanConvention) -> Any:
    if isinstance(fan, FanAxes):
        return {axis: list(value) if isinstance(value, tuple) else value for axis, value in fan._asdict().items()}
    return list(fan) if isinstance(fan, tuple) else fan


def _fan_from_data(data: Any, key: str) -> FanConvention:
    if isinstance(data, Mapping):
        axes = _table(data, key, FanAxes._fields, prefix=f"{key}: ")
        data = FanAxes(**{axis: tuple(each) if isinstance(each, list) else each for axis, each in axes.items()})
    try:
        return as_fan(data, key)
    except TypeError as error:
        raise ValueError(str(error)) from error


def _type_name(given: str | type[nn.Module]) -> str:
    return given if isinstance(given, str) else f"{given.__module__}.{given.__qualname__}"


def _rule_to_data(rule: Rule, key: str) -> dict[str, Any]:
    select = rule.select
    data: dict[str, Any] = {}
    if isinstance(select, str):
        data["name"] = select
    elif isinstance(select, re.Pattern):
        data["regex"] = flagged(select)
    elif isinstance(select, (type, tuple)):
        types = [_type_name(each) for each in (select if isinstance(select, tuple) else (select,))]
        data["type"] = types[0] if len(types) == 1 else types
    elif isinstance(select, Where):
        for each in _WHERE_KEYS:
            value = getattr(select, each)
            if each == "type" and value is not None:
                types = [_type_name(one) for one in (value if isinstance(value, tuple) else (value,))]
                value = types[0] if len(types) == 1 else types
            elif each in ("name", "role") and isinstance(value, tuple):
                value = list(value)
            elif each == "shape" and value is not None:
                value = [-1 if size is None else size for size in value]
            if value is not None:
                data[each] = value
    else:
        raise ValueError(f"{key}: a function cannot be written to a recipe: {select!r}")
    if rule.scheme is KEEP:
        data["keep"] = True
    elif isinstance(rule.scheme, tuple):
        data["scheme"] = [to_data(as_scheme(each), f"{key}.scheme[{at}]") for at, each in enumerate(rule.scheme)]
    else:
        data["scheme"] = to_data(as_scheme(rule.scheme), f"{key}.scheme")
    if rule.fan is not None:
        data["fan"] = _fan_to_data(rule.fan)
    if rule.split is not None:
        data["split"] = rule.split if isinstance(rule.split, int) else list(rule.split)
    if rule.split_dim is not None:
        data["split_dim"] = rule.split_dim
    if rule.zero_row is not None:
        data["zero_row"] = rule.zero_row
    if rule.in_model:
        data["in_model"] = True
    return data


def _rule_from_data(data: Any, key: str) -> Rule:
    data = _table(data, key, _RULE_KEYS, prefix=f"{key}: ")
    keep = data.get("keep", False)
    if not isinstance(keep, bool):
        raise ValueError(f"{key}.keep: expected true or false, got {keep!r}")
    if keep == ("scheme" in data):
        raise ValueError(f"{key}: expected either a scheme or keep = true, got {'both' if keep else 'neither'}")
    scheme: Any = KEEP
    if not keep and isinstance(data["scheme"], list):
        scheme = tuple(from_data(each, f"{key}.scheme[{at}]") for at, each in enumerate(data["scheme"]))
    elif not keep:
        scheme = from_data(data["scheme"], f"{key}.scheme")
    properties = {each: data[each] for each in _WHERE_KEYS if each in data}
    if not properties:
        raise ValueError(f"{key}: expected one of {', '.join(_WHERE_KEYS)} at least, got none")
    for each, value in properties.items():
        if value is None:
            raise ValueError(f"{key}.{each}: expected a value, got null")
        if each in ("name", "type", "shape", "role") and isinstance(value, list):
            properties[each] = tuple(value)
    fan = _fan_from_data(data["fan"], f"{key}.fan") if "fan" in data else None
    split = data.get("split")
    try:  # what is wrong now is an argument, whose name the error begins with
        return Rule(
            data["name"] if list(properties) == ["name"] and isinstance(data["name"], str) else Where(**properties),
            scheme,
            fan,
            tuple(split) if isinstance(split, list) else split,
            data.get("split_dim"),
            data.get("zero_row"),
            data.get("in_model", False),
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{key}.{error}") from error


def check_model(model: object) -> None:
    """Raise TypeError unless `model` is a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")


def check_flag(name: str, given: object) -> None:
    """Raise TypeError unless an argument is True or False."""
    if not isinstance(given, bool):
        raise TypeError(f"{name}: expected True or False, got {given!r}")


def of_model(rules: Sequence[Rule]) -> list[Rule]:
    """Rules that were made from a model, marked so: `names=` of `plan` does not hide its parameters from them."""
    return [replace(rule, in_model=True) for rule in rules]


def _toml(value: Any) -> str:
    """A value in TOML, on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON's escapes are TOML's
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return "{ " + ", ".join(f"{_toml_key(key)} = {_toml(each)}" for key, each in value.items()) + " }"


def _toml_key(key: str) -> str:
    return key if re.fullmatch("[A-Za-z0-9_-]+", key) else _toml(key)


def _finite(number: str) -> float:
    """The number of a literal. A literal beyond the largest float would be an infinity that nobody wrote."""
    value = float(number)
    if math.isinf(value) and "inf" not in number:
        raise ValueError(f"expected numbers within the range of float64, got {number}")
    return value


def _parse_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_table_of_pairs, parse_float=_finite, parse_constant=_refuse_constant)


def _table_of_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"key {key!r} stands twice in one table")
        table[key] = value
    return table


def _refuse_constant(constant: str) -> Any:
    raise ValueError(f'{constant} is no JSON; a recipe has the strings "nan", "inf" and "-inf"')


def _parse_toml(text: str) -> Any:
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib  # type: ignore[import-not-found,no-redef,unused-ignore]
    return tomllib.loads(text, parse_float=_finite)
