"""Recipes: to data, JSON and TOML and back, and what is said of those that are wrong."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fastinit
from fastinit import KEEP, FanAxes, Fans, Recipe, Rule, Scheme, Where, load_recipe
from fastinit.recipes.files import recipe_from_data
from fastinit.schemes import distributions
from fastinit.schemes.base import from_data, to_data

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef]

SCHEMES: dict[str, list[dict[str, Any]]] = {
    "uniform": [{}, {"low": -0.5, "high": 1e-300}, {"low": -3, "high": 4}],
    "normal": [{}, {"std": 0.02}, {"mean": -1.0, "std": 1e22}, {"std": np.float64(0.1)}],
    "trunc_normal": [
        {},
        {"std": 0.5, "bounds": (-math.inf, 1.0)},
        {"bounds": (-math.inf, math.inf), "unit": "sigma"},
        {"bounds": (-3.0, 2.5), "unit": "sigma", "std_is": "after"},
    ],
    "constant": [{"value": 3.0}, {"value": -math.inf}, {"value": math.inf}, {"value": 1e-5}],
    "zeros": [{}],
    "ones": [{}],
    "xavier_uniform": [{}, {"gain": 0.7}],
    "xavier_normal": [{}, {"gain": 2.0}],
    "kaiming_uniform": [{}, {"a": 5.0**0.5}, {"mode": "fan_out", "nonlinearity": "tanh"}],
    "kaiming_normal": [{}, {"a": 0.2, "mode": "fan_out", "nonlinearity": "leaky_relu"}],
    "glorot_uniform": [{}, {"gain": 2.0}],
    "glorot_normal": [{}],
    "he_uniform": [{}, {"nonlinearity": "relu"}],
    "he_normal": [{}],
    "lecun_uniform": [{}],
    "lecun_normal": [{}],
    "variance_scaling": [{}, {"scale": 0.1, "mode": "fan_geo_avg", "shape": "truncated_normal"}],
    "scaled": [
        {"scheme": "normal", "factor": 0.1},
        {"scheme": fastinit.Scaled(fastinit.TruncNormal(bounds=(-math.inf, 2.0)), 2.0), "factor": 0.5},
    ],
    "depth_scaled": [
        {"scheme": "xavier_uniform"},
        {"scheme": fastinit.Normal(std=0.02), "by": "layer", "branches": 1.0, "exponent": 1.0, "coefficient": 0.5},
        {"scheme": fastinit.DepthScaled("orthogonal"), "layers": 48},  # type: ignore[arg-type]
    ],
    "own": [{}],
    "eye": [{}],
    "dirac": [{}, {"groups": 4}],
    "orthogonal": [{"column_axis": -1}, {}, {"gain": 2.0**0.5}],
    "delta_orthogonal": [{}, {"gain": 0.1}],
    "svd": [{}, {"values": "power", "power": 0.5}, {"values": (2.0, 1.0, 0.5), "gain": 3.0}],
    "identity_plus_orthogonal": [{}, {"identity": 0.5, "gain": 0.01}],
    "sparse": [{"sparsity": 0.1}, {"sparsity": 1, "std": 0.5}],
    "zer_o": [{}],
    "log_range": [{}],
    "time_step": [{}, {"low": 1e-4, "high": 0.5, "floor": 1e-5}],
    "chrono": [{"t_max": 784}],
    "forget_bias": [{}, {"value": 2.0}],
    "log_of_uniform": [{}, {"low": 0.5, "high": 2.0}],
    "ramp": [{"first": 1.15, "last": 1.05}],
    "rwkv7_mix": [{}, {"power": 0.2, "exponent": 4.0}],
    "rwkv7_ramp": [{}, {"base": -5.5, "zigzag": 2.5, "decay": 6.0, "linear": 0.1, "head_size": 32}],
    "rwkv7_scale": [{}, {"exponent": 1.0}],
}
_CASES = [(name, arguments) for name, each in SCHEMES.items() for arguments in each]


def _read_toml(recipe: Recipe) -> Any:
    return tomllib.loads(recipe.to_toml())


def _read_json(recipe: Recipe) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(recipe.to_json(), parse_constant=refuse)


READERS = pytest.mark.parametrize("read", [Recipe.to_data, _read_json, _read_toml], ids=["data", "json", "toml"])


def test_all_schemes_are_tried() -> None:
    own = [name for name in fastinit.scheme_names() if not name.startswith("test_")]  # registered by tests
    assert sorted(own) == sorted(SCHEMES)


@READERS
@pytest.mark.parametrize(("name", "arguments"), _CASES, ids=str)
def test_schemes_round_trip(name: str, arguments: dict[str, Any], read: Callable[[Recipe], Any]) -> None:
    scheme = fastinit.scheme(name, **arguments)
    assert from_data(to_data(scheme), "scheme") == scheme
    recipe = Recipe(scheme, [("a", scheme), Rule("b", (scheme, "zeros"), split=2)])
    again = recipe_from_data(read(recipe))
    assert again == recipe
    assert type(again.scheme) is type(scheme) and repr(again.scheme) == repr(scheme).replace("np.float64(0.1)", "0.1")


def test_numbers_that_are_none_round_trip() -> None:
    scheme = from_data(to_data(fastinit.Constant(math.nan)), "scheme")
    assert isinstance(scheme, fastinit.Constant) and math.isnan(scheme.value)
    assert _read_json(Recipe(fastinit.Constant(math.nan))) == {"scheme": {"name": "constant", "value": "nan"}}


def test_data_are_short() -> None:
    recipe = Recipe(
        fastinit.scheme("xavier_uniform"),
        [("a", fastinit.Normal(std=0.02)), ("b", KEEP), ("c", fastinit.Normal()), ("d", fastinit.scheme("zeros"))],
    )
    assert recipe.to_data() == {
        "scheme": "xavier_uniform",
        "rules": [
            {"name": "a", "scheme": {"name": "normal", "std": 0.02}},
            {"name": "b", "keep": True},
            {"name": "c", "scheme": "normal"},
            {"name": "d", "scheme": "zeros"},
        ],
    }
    assert recipe.to_toml() == (
        'scheme = "xavier_uniform"\n'
        '\n[[rules]]\nname = "a"\nscheme = { name = "normal", std = 0.02 }\n'
        '\n[[rules]]\nname = "b"\nkeep = true\n'
        '\n[[rules]]\nname = "c"\nscheme = "normal"\n'
        '\n[[rules]]\nname = "d"\nscheme = "zeros"\n'
    )


def _preset(name: str) -> Recipe:
    model = nn.Module()
    model.config = type("Config", (), {"d_kv": 8, "d_model": 4})()
    model.head = nn.Linear(4, 10)
    model.layer1 = nn.Sequential(nn.Module())
    model.layer1[0].bn2 = nn.BatchNorm2d(3)
    model.embed_tokens = nn.Embedding(10, 4)
    return fastinit.preset(name, model)


@READERS
@pytest.mark.parametrize("name", fastinit.preset_names())
def test_presets_round_trip(name: str, read: Callable[[Recipe], Any]) -> None:
    recipe = _preset(name)
    again = recipe_from_data(read(recipe))
    assert (again.name, again.source, again.scheme) == (recipe.name, recipe.source, recipe.scheme)
    assert recipe_from_data(read(again)) == again
    assert list(map(str, again.rules)) == list(map(str, recipe.rules))
    for one, other in zip(again.rules, recipe.rules, strict=True):
        assert isinstance(one, Rule) and isinstance(other, Rule)
        assert (one.scheme, one.fan, one.split, one.split_dim) == (
            other.scheme, other.fan, other.split, other.split_dim,
        )  # fmt: skip


EQUAL_RULES = [
    Rule("*.weight", "normal"),
    Rule('back\\slash "quoted" \t\n\x00\x7fé[[rules]] # =', "zeros"),
    Rule("*", KEEP),
    Rule(Where(name=("a.*", "b")), "zeros"),
    Rule(Where(name=("a.*",)), "zeros"),
    Rule(Where(regex=r"(^|\.)w\d+$"), "zeros"),
    Rule(Where(type="Linear"), "zeros"),
    Rule(Where(type=("Linear", "torch.nn.modules.conv.Conv2d")), "zeros"),
    Rule(Where(shape=()), "zeros"),
    Rule(Where(shape=(3, None, 0)), "zeros"),
    Rule(Where(dims=0), "zeros"),
    Rule(Where(requires_grad=False), "zeros"),
    Rule(Where("a", "b", "Linear", (None,), 1, True, "bias", False, True), KEEP),
    Rule(Where(role="bias"), "zeros"),
    Rule(Where(role=("map", "table"), frozen=True), "zeros"),
    Rule(Where(frozen=False), "zeros"),
    Rule(Where(loaded=True), "zeros"),
    Rule("a", "xavier_uniform", fan="module"),
    Rule("a", "xavier_uniform", fan="torch"),
    Rule("a", "xavier_uniform", fan=Fans(3, 4)),
    Rule("a", "xavier_uniform", fan=FanAxes()),
    Rule("a", "xavier_uniform", fan=FanAxes((0, 1), 2, -1)),
    Rule("a", "xavier_uniform", split=3),
    Rule("a", "xavier_uniform", split=(3, 4), split_dim=0),
    Rule("a", "xavier_uniform", in_model=True),
    Rule("a", ("zeros", fastinit.Normal(std=0.5), fastinit.Scaled("eye", 2.0)), "keras", (3, 4, 5), -1),  # type: ignore[arg-type]
]


@READERS
@pytest.mark.parametrize("rule", EQUAL_RULES, ids=str)
def test_rules_round_trip(rule: Rule, read: Callable[[Recipe], Any]) -> None:
    recipe = Recipe("normal", [rule], name='a "name"', source="é\\")
    again = recipe_from_data(read(recipe))
    assert again == recipe
    assert str(again.rules[0]) == str(rule)


@READERS
@pytest.mark.parametrize("fan", ["torch", "module", "jax", "keras", Fans(2, 3), FanAxes(0, (1, 2), 3)], ids=str)
def test_the_fan_convention_round_trips(fan: Any, read: Callable[[Recipe], Any]) -> None:
    assert recipe_from_data(read(Recipe("normal", fan=fan))).fan == fan


class _Named(nn.Linear):
    """A type that a recipe names."""


@READERS
@pytest.mark.parametrize(
    "select",
    [
        re.compile("weight$"),
        re.compile("WEIGHT", re.IGNORECASE),
        re.compile("a.b", re.DOTALL),
        re.compile("^b$", re.MULTILINE),
        re.compile("w e i ght  # a comment", re.VERBOSE),
        re.compile(r"^\w$", re.ASCII),
        re.compile("(?i)(?s)A.B"),
        re.compile("(?x) w eight", re.IGNORECASE),
        nn.Linear,
        (nn.Linear, nn.Conv2d),
        (_Named,),
        Where(type=_Named, dims=1),
        Where(type=(_Named, "Conv2d")),
    ],
    ids=str,
)
def test_expressions_and_types_become_text_that_selects_the_same(select: Any, read: Callable[[Recipe], Any]) -> None:
    recipe = Recipe("normal", [(select, "zeros")])
    again = recipe_from_data(read(recipe))
    rule, loaded = recipe.rules[0], again.rules[0]
    assert isinstance(rule, Rule) and isinstance(loaded, Rule)
    assert recipe_from_data(read(again)) == again and str(loaded) == str(rule)
    found = []
    for module in (nn.Linear(2, 2), _Named(2, 2), nn.Conv2d(2, 2, 2), nn.Embedding(2, 2)):
        for name in ("0.weight", "WEIGHT", "0.bias", "a\nb", "a.b", "b", "é", "w e i ght"):
            for shape in ((2,), (2, 2)):
                arguments = (name, module, nn.Parameter(torch.empty(shape)))
                found.append(rule.matches(*arguments))
                assert found[-1] == loaded.matches(*arguments), arguments
    assert any(found) and not all(found)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.Linear(6, 18)
        self.proj = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.slope = nn.PReLU(6)


def _model() -> nn.Module:
    model = nn.Module()
    model.h = nn.ModuleList([Block(), Block(), Block()])
    model.embed = nn.Embedding(7, 6, padding_idx=0)
    model.conv = nn.Conv2d(4, 6, 3)
    model.scale = nn.Parameter(torch.ones(3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    return model


RECIPE = Recipe(
    fastinit.scheme("kaiming_normal", mode="fan_out", nonlinearity="tanh"),
    [
        (re.compile(r"\.PROJ\.weight$", re.IGNORECASE), fastinit.DepthScaled("normal", by="layer")),  # type: ignore[arg-type]
        Rule("*.attn.weight", ("orthogonal", fastinit.Normal(std=0.1), "zeros"), "module", (6, 8, 4)),
        (nn.Embedding, fastinit.TruncNormal(std=0.02, bounds=(-math.inf, 2.0))),
        (Where(type=nn.Linear, dims=1), fastinit.Uniform(-0.1, 0.1)),
        ("scale", KEEP),
    ],
    fan="module",
    name="mine",
    source="here",
)


@pytest.mark.parametrize("suffix", [".json", ".toml"])
def test_a_saved_recipe_gives_the_same_plan_and_the_same_bits(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"recipe{suffix}"
    RECIPE.save(path)
    loaded = load_recipe(str(path))
    original, copy = _model(), _model()
    plan = fastinit.plan(original, RECIPE, seed=1)
    assert fastinit.plan(copy, loaded, seed=1).to_json() == plan.to_json()
    plan.run_()
    fastinit.init_model_(copy, loaded, seed=1)
    for name, value in original.named_parameters():
        assert torch.equal(value, copy.get_parameter(name)), name
        assert (value != 7.0).any() or name == "scale"
    loaded.save(path)
    assert load_recipe(path) == loaded


def test_rules_beside_a_recipe_come_first() -> None:
    rules = [("embed.weight", KEEP), ("h.1.*.weight", "ones")]
    reasons = {row.name: row.reason for row in fastinit.plan(_model(), RECIPE, rules).rows}
    assert reasons["embed.weight"] == "rule 'embed.weight': kept"
    assert reasons["h.1.proj.weight"] == "rule 'h.1.*.weight'"
    assert reasons["h.0.proj.weight"] == r"rule regex '(?i)\\.PROJ\\.weight$'"


def test_the_fan_convention_of_a_call_comes_before_that_of_the_recipe() -> None:
    convolution = nn.ConvTranspose2d(4, 6, 3)
    recipe = Recipe("xavier_uniform", fan="module")
    fans = [fastinit.plan(convolution, recipe, fan=fan).rows[0].fans for fan in (None, "torch")]
    assert fans == [Fans(36, 54), Fans(54, 36)]


def test_names_of_schemes_and_presets_are_one_choice() -> None:
    linear = nn.Linear(3, 3)
    assert fastinit.plan(linear, "bert").rows[0].distribution == distributions.Normal(0.0, 0.02)
    for given, nearest in (("gtp2", "gpt2"), ("xavier_unifrom", "xavier_uniform"), ("lama", "llama")):
        with pytest.raises(
            ValueError, match=rf"^scheme: got '{given}', did you mean '{nearest}'\? expected one of uniform, "
        ):
            fastinit.plan(linear, given)
    with pytest.raises(ValueError, match=r"^preset: got 'lama', did you mean 'llama'\? expected one of gpt2, "):
        fastinit.preset("lama")


def test_what_no_recipe_can_hold_is_named() -> None:
    def by_hand(name: str, module: nn.Module, parameter: torch.Tensor) -> bool:
        return True

    @dataclass(frozen=True)
    class Unregistered:
        def distribution(self, context: fastinit.Context) -> Any:
            return distributions.Constant(1.0)

    recipes = [
        (Recipe("normal", [("a", "zeros"), (by_hand, "zeros")]), r"^rules\[1\]: a function .*by_hand"),
        (Recipe("normal", [("a", Unregistered())]), r"^rules\[0\]\.scheme: .*Unregistered.*register_scheme"),
        (
            Recipe("normal", [Rule("a", ("zeros", Unregistered()), split=2)]),
            r"^rules\[0\]\.scheme\[1\]: .*Unregistered",
        ),
        (Recipe(fastinit.Scaled(Unregistered(), 2.0)), r"^scheme\.scheme: .*Unregistered"),
    ]
    for recipe, message in recipes:
        for write in (recipe.to_data, recipe.to_json, recipe.to_toml):
            with pytest.raises(ValueError, match=message):
                write()


@dataclass(frozen=True)
class Odd:
    """A registered scheme with arguments of all kinds."""

    value: Any = "nothing"

    def distribution(self, context: fastinit.Context) -> Any:
        return distributions.Constant(1.0)


@dataclass(frozen=True)
class Greek:
    """A registered scheme with an argument whose name is no bare key of TOML."""

    σ: float = 1.0
    needs_fans = False

    def distribution(self, fans: Fans | None) -> Any:
        return distributions.Constant(1.0)


class Plain:
    """A registered scheme that is no dataclass."""

    def distribution(self, context: fastinit.Context) -> Any:
        return distributions.Constant(1.0)


@pytest.fixture(scope="module")
def registered() -> None:
    fastinit.register_scheme("test_odd", Odd)
    fastinit.register_scheme("test_greek", Greek)
    fastinit.register_scheme("test_plain", Plain)


@READERS
@pytest.mark.parametrize("value", [1, True, "text", (1, (2.5, "a")), fastinit.Normal(std=3.0)], ids=str)
@pytest.mark.usefixtures("registered")
def test_schemes_of_users_round_trip(value: Any, read: Callable[[Recipe], Any]) -> None:
    again = recipe_from_data(read(Recipe(Odd(value)))).scheme
    assert again == Odd(value) and isinstance(again, Odd) and type(again.value) is type(value)


@READERS
@pytest.mark.usefixtures("registered")
def test_arguments_in_other_letters_round_trip(read: Callable[[Recipe], Any]) -> None:
    assert recipe_from_data(read(Recipe(Greek(0.5)))).scheme == Greek(0.5)


@pytest.mark.parametrize(
    "value", [None, torch.float32, object(), fastinit.Normal, {1: 2}], ids=lambda value: str(type(value))
)
@pytest.mark.usefixtures("registered")
def test_arguments_that_no_recipe_can_hold_are_named(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^rules\[0\]\.scheme\.value: .* no recipe can hold it"):
        Recipe("normal", [("a", Odd(value))]).to_toml()


@pytest.mark.usefixtures("registered")
def test_schemes_that_are_no_dataclass_can_be_planned_but_not_written() -> None:
    plan = fastinit.plan(nn.Linear(2, 2), "test_plain")
    assert "Plain" in str(plan)
    with pytest.raises(ValueError, match=r"^scheme: .*Plain.* no registered dataclass"):
        Recipe("test_plain").to_data()


_RULE = {"name": "a", "scheme": "zeros"}
BAD: list[tuple[Any, str]] = [
    ([], "recipe: expected a table, got []"),
    ({}, "scheme: expected the name of a scheme or a table with its name and arguments, got none"),
    ({"scheme": 3}, "scheme: expected the name of a scheme or a table with its name and arguments, got 3"),
    ({"scheme": "qqq"}, "scheme: expected one of uniform, normal, "),
    ({"scheme": "norml"}, "scheme: got 'norml', did you mean 'normal'? expected one of uniform, normal, "),
    ({"scheme": {"std": 1.0}}, "scheme.name: expected the name of a scheme, got None"),
    (
        {"scheme": {"name": "normal", "sdt": 1}},
        "scheme: key: got 'sdt', did you mean 'std'? expected one of name, mean, std",
    ),
    ({"scheme": {"name": "zeros", "value": 1}}, "scheme: key: expected one of name, got 'value'"),
    ({"scheme": {"name": "sparse"}}, "scheme.sparsity: expected it for 'sparse', got none"),
    ({"scheme": {"name": "normal", "std": "a"}}, "scheme.std: expected a number, got 'a'"),
    ({"scheme": {"name": "normal", "std": -1}}, "scheme.std: expected std >= 0, got -1"),
    ({"scheme": {"name": "normal", "std": "inf"}}, "scheme.std: expected a finite number, got inf"),
    ({"scheme": {"name": "uniform", "low": 2.0}}, "scheme.low, high: expected low <= high, got 2.0 and 1.0"),
    ({"scheme": {"name": "trunc_normal", "bounds": [2, 1]}}, "scheme.bounds[0], bounds[1]: expected"),
    (
        {"scheme": {"name": "trunc_normal", "unit": "sigmas"}},
        "scheme.unit: got 'sigmas', did you mean 'sigma'? expected one of absolute, sigma",
    ),
    (
        {"scheme": {"name": "scaled", "scheme": "norml", "factor": 1}},
        "scheme.scheme: got 'norml', did you mean 'normal'? ",
    ),
    (
        {"scheme": {"name": "scaled", "scheme": {"name": "normal", "std": -1}, "factor": 1}},
        "scheme.scheme.std: expected std >= 0, got -1",
    ),
    (
        {"scheme": "normal", "rule": []},
        "key: got 'rule', did you mean 'rules'? expected one of name, source, scheme, fan, rules",
    ),
    ({"scheme": "normal", "name": 3}, "name: expected a string, got 3"),
    ({"scheme": "normal", "source": []}, "source: expected a string, got []"),
    ({"scheme": "normal", "fan": "fan_in"}, "fan: expected one of torch, module, jax, keras, weight, got 'fan_in'"),
    (
        {"scheme": "normal", "fan": {"in_axes": 1}},
        "fan: key: got 'in_axes', did you mean 'in_axis'? expected one of in_axis, out_axis, batch_axis",
    ),
    ({"scheme": "normal", "fan": {"in_axis": "x"}}, "fan.in_axis: expected an axis or several, got 'x'"),
    ({"scheme": "normal", "fan": [1, 0]}, "fan: expected fan_in >= 1 and fan_out >= 1, got [1, 0]"),
    ({"scheme": "normal", "fan": {"in_axis": [0, "x"]}}, "fan.in_axis: expected an axis or several, got (0, 'x')"),
    ({"scheme": "normal", "fan": None}, "fan: expected one of torch, module, jax, keras, weight, Fans"),
    ({"scheme": "normal", "name": None}, "name: expected a string, got None"),
    ({"scheme": {"name": "normal", "std": 10**400}}, "scheme"),
    ({"scheme": "normal", "rules": {}}, "rules: expected an array of tables, got {}"),
    ({"scheme": "normal", "rules": [3]}, "rules[0]: expected a table, got 3"),
]
BAD_RULES: list[tuple[Any, str]] = [
    ({"name": "a"}, "rules[2]: expected either a scheme or keep = true, got neither"),
    ({"name": "a", "keep": False}, "rules[2]: expected either a scheme or keep = true, got neither"),
    ({**_RULE, "keep": True}, "rules[2]: expected either a scheme or keep = true, got both"),
    ({"name": "a", "keep": "yes"}, "rules[2].keep: expected true or false, got 'yes'"),
    ({"scheme": "zeros"}, "rules[2]: expected one of name, regex, type, shape, dims, requires_grad, role, "),
    (
        {"nam": "a", "scheme": "zeros"},
        "rules[2]: key: got 'nam', did you mean 'name'? expected one of name, regex, type, shape, dims, requires_grad, "
        "role, frozen, loaded, scheme, keep, fan, split, split_dim, zero_row, in_model",
    ),
    ({"name": 3, "scheme": "zeros"}, "rules[2].name: expected a glob or several, got 3"),
    ({"name": ["a", 3], "scheme": "zeros"}, "rules[2].name: expected a glob or several, got ('a', 3)"),
    ({"name": None, "scheme": "zeros"}, "rules[2].name: expected a value, got null"),
    ({"name": "a", "dims": None, "scheme": "zeros"}, "rules[2].dims: expected a value, got null"),
    ({"dims": [2], "scheme": "zeros"}, "rules[2].dims: expected int, got [2]"),
    ({**_RULE, "in_model": 1}, "rules[2].in_model: expected True or False, got 1"),
    ({**_RULE, "fan": {"axis": 1}}, "rules[2].fan: key: got 'axis', did you mean 'in_axis'? expected one of in_axis, "),
    ({**_RULE, "fan": [1]}, "rules[2].fan: expected one of torch"),
    ({**_RULE, "zero_row": 1.5}, "rules[2].zero_row: expected an int, got 1.5"),
    ({"regex": "(", "scheme": "zeros"}, "rules[2].regex: '(' is no regular expression: missing )"),
    ({"regex": 3, "scheme": "zeros"}, "rules[2].regex: expected a string, got 3"),
    ({"type": [3], "scheme": "zeros"}, "rules[2].type: expected module types or their names, got 3"),
    ({"type": [], "scheme": "zeros"}, "rules[2].type: expected module types or their names, got none"),
    ({"shape": 3, "scheme": "zeros"}, "rules[2].shape: expected sizes, None or -1 for any, got 3"),
    ({"shape": [1.5], "scheme": "zeros"}, "rules[2].shape: expected sizes, None or -1 for any, got (1.5,)"),
    ({"dims": "2", "scheme": "zeros"}, "rules[2].dims: expected int, got '2'"),
    ({"dims": -1, "scheme": "zeros"}, "rules[2].dims: expected dims >= 0, got -1"),
    ({"requires_grad": 1, "scheme": "zeros"}, "rules[2].requires_grad: expected bool, got 1"),
    ({"frozen": 1, "scheme": "zeros"}, "rules[2].frozen: expected bool, got 1"),
    ({"loaded": "yes", "scheme": "zeros"}, "rules[2].loaded: expected bool, got 'yes'"),
    ({"role": "biases", "scheme": "zeros"}, "rules[2].role: got 'biases', did you mean 'bias'? expected one of map, "),
    ({"role": ["map", 3], "scheme": "zeros"}, "rules[2].role: expected one of map, table, scale, bias, published, "),
    ({"role": [], "scheme": "zeros"}, "rules[2].role: expected a role or several, got none"),
    ({"name": "a", "scheme": {"name": "normal", "std": -1}}, "rules[2].scheme.std: expected std >= 0, got -1"),
    (
        {"name": "a", "scheme": ["zeros", "one"], "split": 2},
        "rules[2].scheme[1]: got 'one', did you mean 'ones'? expected one of ",
    ),
    (
        {"name": "a", "scheme": ["zeros", {"name": "normal", "std": "x"}], "split": 2},
        "rules[2].scheme[1].std: expected a number, got 'x'",
    ),
    ({"name": "a", "scheme": ["zeros", "ones"]}, "rules[2].split: expected one, for a scheme a block was given"),
    (
        {"name": "a", "scheme": ["zeros", "ones"], "split": 3},
        "rules[2].scheme: expected 3, one a block of split=3, got 2",
    ),
    ({**_RULE, "split": "3"}, "rules[2].split: expected a number of blocks or their sizes, got '3'"),
    ({**_RULE, "split": 2.5}, "rules[2].split: expected a number of blocks or their sizes, got 2.5"),
    ({**_RULE, "split": [1, 0]}, "rules[2].split: expected a number of blocks or their sizes, got (1, 0)"),
    ({**_RULE, "split_dim": 1}, "rules[2].split_dim: expected a split with it, got 1 alone"),
    ({**_RULE, "split": 2, "split_dim": "x"}, "rules[2].split_dim: expected an int, got 'x'"),
    ({"name": "a", "keep": True, "split": 2}, "rules[2].split: contradicts KEEP, got 2"),
    ({"name": "a", "keep": True, "fan": "module"}, "rules[2].fan: contradicts KEEP, got 'module'"),
    (
        {**_RULE, "fan": "modul"},
        "rules[2].fan: got 'modul', did you mean 'module'? expected one of torch, module, jax, keras, weight",
    ),
    ({**_RULE, "fan": {"out_axis": 1.5}}, "rules[2].fan.out_axis: expected an axis or several, got 1.5"),
]


@pytest.mark.parametrize(
    ("data", "message"),
    [*BAD, *(({"scheme": "normal", "rules": [_RULE, _RULE, rule]}, text) for rule, text in BAD_RULES)],
)
def test_a_wrong_recipe_is_refused_with_file_and_key(tmp_path: Path, data: Any, message: str) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(data))
    # Either all of the message, or an end of it.
    expected = (
        rf"^{re.escape(str(path))}: .*{re.escape(message)}"
        if message.startswith("got")
        else (rf"^{re.escape(f'{path}: {message}')}")
    )
    with pytest.raises(ValueError, match=expected):
        load_recipe(path)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("a.json", '{"scheme": "normal",\n "rules": [,]}', "line 2"),
        ("a.json", "", "expected a recipe, got an empty file"),
        ("a.json", " \n\t", "expected a recipe, got an empty file"),
        ("a.toml", "\ufeff", "expected a recipe, got an empty file"),
        ("a.json", "\ufeff{}", "scheme: expected the name of a scheme"),
        ("a.json", "[" * 100000, "nested too deeply"),
        ("a.toml", "scheme = " + "[" * 100000, "nested too deeply"),
        ("a.json", '{"scheme": "normal", "scheme": "zeros"}', "key 'scheme' stands twice in one table"),
        ("a.json", '{"scheme": {"name": "normal", "std": 1, "std": 1}}', "key 'std' stands twice in one table"),
        ("a.json", '{"scheme": "normal", "rules": [{"name": "a", "name": "b", "keep": true}]}', "key 'name' stands"),
        ("a.toml", 'scheme = { name = "normal", std = 1, std = 2 }\n', "line 1"),
        ("a.toml", '[scheme]\nname = "normal"\n[scheme]\nstd = 1\n', "line 3"),
        ("a.json", '{"scheme": {"name": "constant", "value": NaN}}', 'NaN is no JSON; a recipe has the strings "nan"'),
        ("a.json", '{"scheme": {"name": "constant", "value": -Infinity}}', "-Infinity is no JSON"),
        ("a.json", '{"scheme": {"name": "constant", "value": 1e999}}', "within the range of float64, got 1e999"),
        ("a.toml", 'scheme = { name = "constant", value = -1e999 }\n', "within the range of float64, got -1e999"),
        ("a.json", '{"scheme": {"name": "normal", "std": 1' + "0" * 400 + "}}", r"scheme"),
        ("a.toml", 'scheme = { name = "normal", std = 1' + "0" * 400 + " }", r"scheme"),
        ("a.json", '{"scheme": "normal", "rules": [{"dims": 1' + "0" * 5000 + ', "keep": 1}]}', "digits|keep"),
        ("a.toml", 'scheme = "normal"\nname = \n', "line 2"),
        ("a.toml", 'scheme = "normal"\nscheme = "zeros"\n', "line 2"),
        ("a.toml", "", "expected a recipe, got an empty file"),
        ("a.toml", "# nothing", "scheme: expected the name of a scheme"),
        ("a.toml", 'scheme = "normal"\n[[rules]]\nname = "*"\nscheme = { name = "normal", std = nan }\n',
         r"rules\[0\]\.scheme\.std: expected a finite number, got nan"),
        ("a.toml", "scheme = 2020-01-01\n", "scheme: expected the name of a scheme"),
        ("a.json", b"\xff\xfe", "UTF-8.* byte order mark of UTF-16"),
        ("a.json", '{"scheme": "normal"}'.encode("utf-16"), "UTF-8.* byte order mark of UTF-16"),
        ("a.toml", 'scheme = "normal"'.encode("utf-32"), "UTF-8.* byte order mark of UTF-16 or UTF-32"),
        ("a.json", '{"scheme": "normal"}'.encode("utf-16-le"), "UTF-8, got a zero byte in line 1"),
        ("a.json", b'{"scheme":\n"n\xf6rmal"}', "UTF-8, got invalid .* in line 2"),
        ("a.toml", b'scheme =\n\n"n\xf6rmal"', "UTF-8, got invalid .* in line 3"),
        ("a.yaml", "scheme: normal", r"^path: got '\.yaml', did you mean '\.toml'\? expected one of \.json, \.toml"),
        ("a", "", r"^path: expected one of \.json, \.toml, got ''"),
        ("a.jsn", "", r"did you mean '\.json'"),
    ],
)  # fmt: skip
def test_wrong_files_are_refused(tmp_path: Path, file: str, text: str | bytes, message: str) -> None:
    path = tmp_path / file
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as raised:
        load_recipe(path)
    assert path.suffix not in (".json", ".toml") or str(raised.value).startswith(f"{path}: ")


@pytest.mark.parametrize("suffix", [".json", ".toml"])
def test_a_byte_order_mark_is_taken(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"recipe{suffix}"
    RECIPE.save(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert load_recipe(path).to_data() == RECIPE.to_data()


def test_toml_has_literals_for_numbers_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    for literal, value in (("inf", math.inf), ("+inf", math.inf), ("-inf", -math.inf), ("1_0.5", 10.5)):
        path.write_text(f'scheme = {{ name = "constant", value = {literal} }}')
        assert load_recipe(path).scheme == fastinit.Constant(value)


@pytest.mark.parametrize("name", ["folder.json", "none.toml"])
def test_what_cannot_be_read_is_an_error_of_the_system(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(OSError, match=re.escape(name)):
        load_recipe(tmp_path / name)


@pytest.mark.parametrize("path", [None, 3, b"recipe.json", ["recipe.json"]], ids=str)
def test_what_is_no_path_is_refused(path: Any) -> None:
    for use in (load_recipe, RECIPE.save):
        with pytest.raises(TypeError, match=r"^path: expected a path to a \.json or \.toml file, got "):
            use(path)


def test_a_recipe_that_cannot_be_written_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text("before")
    for recipe in (Recipe("normal", [("\ud800", "zeros")]), Recipe("normal", [(lambda *_: True, "zeros")])):
        with pytest.raises(ValueError, match=r"surrogates|function"):
            recipe.save(path)
        assert path.read_text() == "before"


@pytest.mark.parametrize("argument", ["name", "source"])
def test_name_and_source_are_strings(argument: str) -> None:
    with pytest.raises(TypeError, match=f"^{argument}: expected a string, got 3"):
        Recipe("normal", **{argument: 3})  # type: ignore[arg-type]


def test_other_suffixes_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path: got '\.yml', did you mean '\.toml'\? expected one of \.json, \.toml"):
        RECIPE.save(tmp_path / "recipe.yml")
    with pytest.raises(FileNotFoundError):
        load_recipe(tmp_path / "none.toml")


_KEYS = (
    "name", "source", "scheme", "fan", "rules", "regex", "type", "shape", "dims", "requires_grad", "keep", "split",
    "role", "frozen", "loaded",
    "split_dim", "std", "mean", "bounds", "value", "factor", "gain", "mode", "nonlinearity", "a", "groups", "layers",
    "unit", "std_is", "low", "high", "in_axis", "batch_axis", "sparsity", "floor", "",
)  # fmt: skip


def _random_data(random_: random.Random, depth: int) -> Any:
    kind = random_.randrange(9 if depth else 6)
    if kind == 0:
        return random_.choice(fastinit.scheme_names()[: len(SCHEMES)])
    if kind == 1:
        return random_.choice(["", "a", "*", "(", "inf", "-inf", "nan", "module", "sigma", "fan_in", "relu", "after"])
    if kind in (2, 3):
        return random_.choice([0, 1, -1, 2, 3, 2**70, 10**400, 0.5, -2.5, 1e308, 1e-320, math.inf, math.nan])
    if kind in (4, 5):
        return random_.choice([None, True, False, [], {}])
    if kind == 6:
        return [_random_data(random_, depth - 1) for _ in range(random_.randrange(4))]
    keys = random_.sample(_KEYS, random_.randrange(6))
    table = {key: _random_data(random_, depth - 1) for key in keys}
    if kind == 8:
        table["name"] = random_.choice(fastinit.scheme_names()[: len(SCHEMES)])
    return table


def _mutated(random_: random.Random, data: Any) -> Any:
    """The data with a few parts replaced by others."""
    if random_.random() < 0.08:
        return _random_data(random_, 2)
    if isinstance(data, dict):
        table = {key: _mutated(random_, value) for key, value in data.items() if random_.random() > 0.03}
        if random_.random() < 0.1:
            table[random_.choice(_KEYS)] = _random_data(random_, 2)
        return table
    return [_mutated(random_, each) for each in data] if isinstance(data, list) else data


def test_whatever_comes_is_a_recipe_or_a_value_error() -> None:
    random_ = random.Random(0)
    valid = [Recipe(scheme, EQUAL_RULES[at % len(EQUAL_RULES) :][:3]).to_data()
             for at, scheme in enumerate(fastinit.scheme(name, **arguments) for name, arguments in _CASES)]  # fmt: skip
    good = bad = 0
    for at in range(4000):
        data = _mutated(random_, valid[at % len(valid)]) if at % 4 else _random_data(random_, 4)
        try:
            recipe = recipe_from_data(data)
        except ValueError:
            bad += 1
        else:
            good += 1
            assert isinstance(recipe.scheme, Scheme)
            assert all(isinstance(rule, Rule) for rule in recipe.rules)
    assert good > 300 and bad > 300
