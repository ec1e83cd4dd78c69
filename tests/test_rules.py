"""Rules: what they select, in which order, what a split does to the values, and the treatments beneath them."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import needs_native, without_address
from torch import nn

import fastinit
from fastinit import KEEP, Fans, Normal, Rule, Uniform, VarianceScaling, Where, _native
from fastinit.errors import ParameterError
from fastinit.rules.finder import Names, RuleFinder
from fastinit.rules.select import Selector
from fastinit.rules.where import exact_glob
from fastinit.schemes import distributions

# The models here have frozen parameters, of which one warning tells.
pytestmark = pytest.mark.filterwarnings("ignore::fastinit.KeptWarning")


class Special(nn.Linear):
    """A subclass, which a rule for nn.Linear takes, too."""


class Zoo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.second = Special(6, 4)
        self.conv = nn.Conv2d(3, 6, 3)
        self.embed = nn.Embedding(10, 4)
        self.second.weight.requires_grad_(False)


ZOO = ("first.weight", "first.bias", "second.weight", "second.bias", "conv.weight", "conv.bias", "embed.weight")


def _ruled(rules: Sequence[Rule | tuple[Selector, Any]], model: nn.Module | None = None) -> dict[str, int]:
    """The position of the rule that decided, for every parameter that one of them decided."""
    constants = [Rule(each[0], fastinit.Constant(100.0 + at)) for at, each in enumerate(map(_pair, rules))]
    rows = fastinit.plan(model or Zoo(), "normal", constants).rows
    positions = {row.name: row.distribution.mean() - 100.0 for row in rows if row.distribution is not None}
    return {name: int(position) for name, position in positions.items() if position >= 0.0}


def _pair(rule: Rule | tuple[Selector, Any]) -> tuple[Selector, Any]:
    return (rule.select, rule.scheme) if isinstance(rule, Rule) else rule


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ("first.weight", ["first.weight"]),
        ("first", []),
        ("*.weight", ["first.weight", "second.weight", "conv.weight", "embed.weight"]),
        ("?????.[!w]*", ["first.bias"]),
        ("FIRST.*", []),
        (Where(name=("first.*", "conv.bias")), ["first.weight", "first.bias", "conv.bias"]),
        (Where(name=["first.weight", "*.bias"]), ["first.weight", "first.bias", "second.bias", "conv.bias"]),  # type: ignore[arg-type]
        (re.compile("s"), ["first.weight", "first.bias", "second.weight", "second.bias", "conv.bias"]),
        (re.compile("^CONV", re.IGNORECASE), ["conv.weight", "conv.bias"]),
        (Where(regex=r"^(first|conv)\.b"), ["first.bias", "conv.bias"]),
        (nn.Linear, ["first.weight", "second.weight"]),
        (Special, ["second.weight"]),
        ((Special, nn.Embedding), ["second.weight", "embed.weight"]),
        ([Special, nn.Embedding], ["second.weight", "embed.weight"]),
        (Where(type="Linear"), ["first.weight", "second.weight"]),
        (Where(type="torch.nn.modules.conv.Conv2d"), ["conv.weight"]),
        (Where(type="_ConvNd"), ["conv.weight"]),
        (Where(type="Conv"), []),
        (Where(type=("Embedding", Special)), ["second.weight", "embed.weight"]),
        (Where(type="Linear", name="first.*"), ["first.weight"]),
        (Where(type="Linear", requires_grad=True), ["first.weight"]),
        (Where(type="Linear", role="bias"), ["first.bias", "second.bias"]),
        (Where(type="Linear", name="*.bias"), ["first.bias", "second.bias"]),
        (Where(type="Linear", regex="^first.*bias$"), ["first.bias"]),
        (Where(type="Linear", dims=1), ["first.bias", "second.bias"]),
        (Where(type="Linear", shape=(6,)), ["first.bias"]),
        (Where(role="bias"), ["first.bias", "second.bias", "conv.bias"]),
        (Where(role=["bias", "frozen"]), ["first.bias", "second.bias", "conv.bias", "second.weight"]),  # type: ignore[arg-type]
        (Where(frozen=True), ["second.weight"]),
        (Where(frozen=False, type="Linear"), ["first.weight"]),
        (Where(type=["Embedding"]), ["embed.weight"]),  # type: ignore[arg-type]
        (Where(shape=(None, 4)), ["first.weight", "embed.weight"]),
        (Where(shape=(-1, 4)), ["first.weight", "embed.weight"]),
        (Where(shape=(6,)), ["first.bias", "conv.bias"]),
        (Where(shape=(6, None)), ["first.weight"]),
        (Where(shape=()), []),
        (Where(dims=1), ["first.bias", "second.bias", "conv.bias"]),
        (Where(dims=4), ["conv.weight"]),
        (Where(requires_grad=False), ["second.weight"]),
        (lambda name, module, parameter: name[0] == "c" and parameter.dim() == 4, ["conv.weight"]),
        (lambda name, module, parameter: isinstance(module, Special), ["second.weight", "second.bias"]),
    ],
    ids=without_address,
)
@pytest.mark.filterwarnings("ignore:no parameter matches")
def test_selectors(select: Selector, expected: list[str]) -> None:
    assert sorted(_ruled([(select, "zeros")])) == sorted(expected)


_PROPERTIES: dict[str, Any] = {
    "name": "first.*",
    "regex": "weight$",
    "type": nn.Linear,
    "shape": (6, None),
    "dims": 2,
    "requires_grad": True,
}
_OTHERS: dict[str, Any] = {
    "name": "second.*",
    "regex": "bias$",
    "type": "Embedding",
    "shape": (None, 6),
    "dims": 1,
    "requires_grad": False,
}


@pytest.mark.parametrize("changed", _PROPERTIES)
@pytest.mark.filterwarnings("ignore:no parameter matches")
def test_all_properties_of_a_where_must_hold(changed: str) -> None:
    assert list(_ruled([(Where(**_PROPERTIES), "zeros")])) == ["first.weight"]
    assert "first.weight" not in _ruled([(Where(**{**_PROPERTIES, changed: _OTHERS[changed]}), "zeros")])


def test_the_first_match_wins_across_kinds_of_selectors() -> None:
    rules: list[tuple[Selector, Any]] = [
        ("conv.b*", "zeros"),
        (Where(dims=4), "zeros"),
        ("conv.*", "zeros"),  # in a run of globs, after one that is none
        ("second.bias", "zeros"),
        (nn.Linear, "zeros"),
        ("first.w*", "zeros"),
        (lambda name, module, parameter: True, "zeros"),
        ("*", "zeros"),
    ]
    with pytest.warns(UserWarning, match=r"no parameter matches rule 'conv\.\*', rule 'first\.w\*', rule '\*'$"):
        ruled = _ruled(rules)
    assert ruled == dict(zip(ZOO, (4, 6, 4, 3, 1, 0, 6), strict=True))


_PIECES = ("a", "b", "weight", "h", "0", "10", "[", "]", ".", "..", "(", "|", "\\", "+", "^", "$", "?P<r0>", "é", "\n")
_WILD = ("*", "**", "?", "[a-h]", "[!0-9]", "[]]", "[", "*.", ".*.", "*a*b*")


def _random_text(random_: random.Random, pieces: Sequence[str], longest: int) -> str:
    return "".join(random_.choices(pieces, k=random_.randrange(longest)))


def test_finder_is_the_naive_first_match() -> None:
    random_ = random.Random(0)
    module, parameter = nn.Linear(1, 1), torch.empty(1, 1)
    found_at: set[int | None] = set()
    for _ in range(300):
        globs = [_random_text(random_, (*_PIECES[:10], *_WILD, *_WILD), 6) for _ in range(random_.randrange(1, 12))]
        selectors: list[Selector] = [*globs]
        for at in random_.sample(range(len(globs)), len(globs) // 4):
            selectors[at] = random_.choice([re.compile(r"\d\d"), nn.Conv2d, Where(name=globs[at], dims=2), nn.Linear])
        rules = [Rule(select, "zeros") for select in selectors]
        finder = RuleFinder(rules)
        names = [_random_text(random_, _PIECES, 7) for _ in range(20)]
        names += [glob.replace("*", "x").replace("?", "0") for glob in globs]
        for name in names:
            matches = [at for at, select in enumerate(selectors) if _naive(select, name)]
            expected = matches[0] if matches else None
            assert finder.find((name, name, name), module, parameter) == expected, (name, selectors)
            assert [at for at, rule in enumerate(rules) if rule.matches(name, module, parameter)] == matches
            found_at.add(expected)
    assert found_at >= {None, 0, 1, 2, 3, 4, 5}


def _naive(select: Selector, name: str) -> bool:
    if isinstance(select, str):
        return fnmatchcase(name, select)
    if isinstance(select, re.Pattern):
        return select.search(name) is not None
    if isinstance(select, Where):
        return fnmatchcase(name, str(select.name))
    return select is nn.Linear


def test_finder_is_the_naive_first_match_over_all_names() -> None:
    random_ = random.Random(1)
    module, parameter = nn.Linear(1, 1), torch.empty(1, 1)
    kinds: set[str] = set()
    for _ in range(1000):
        pieces = ("a", "b", "c", "?", "*", "module.", "0.", "1.")
        globs = [_random_text(random_, pieces, 4) for _ in range(random_.randrange(1, 8))]
        selectors: list[Selector] = [Where(name=glob, dims=2) if random_.random() < 0.3 else glob for glob in globs]
        rules = [Rule(select, "zeros", in_model=random_.random() < 0.4) for select in selectors]
        in_model = _random_text(random_, pieces[:3] + pieces[6:], 4)
        name = in_model if random_.random() < 0.3 else _random_text(random_, pieces[:3] + pieces[6:], 4)
        full = f"module.{in_model}" if random_.random() < 0.5 else in_model
        in_whole = any(fnmatchcase(name, glob) and rule.in_model for glob, rule in zip(globs, rules, strict=True))
        expected = None
        for at, (glob, rule) in reversed(list(enumerate(zip(globs, rules, strict=True)))):
            by_wrapper = "module" in glob and fnmatchcase(full, glob)
            by_model = rule.in_model and not in_whole and fnmatchcase(in_model, glob)
            if fnmatchcase(name, glob) or by_wrapper or by_model:
                expected = at
                kinds.add("name" if fnmatchcase(name, glob) else "wrapper" if by_wrapper else "model")
        assert RuleFinder(rules).find(Names(name, in_model, full), module, parameter) == expected, (rules, name, full)
    assert kinds == {"name", "wrapper", "model"}


def test_rules_see_the_names_of_the_whole_and_not_those_of_a_part() -> None:
    stage = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)])})
    rules: list[tuple[Selector, Any]] = [("layers.1.weight", "zeros"), ("layers.5.weight", "ones")]
    names = {"layers.0": "layers.1", "layers.1": "layers.5"}
    rows = fastinit.plan(stage, "normal", rules, names=names).rows
    assert [row.reason for row in rows] == ["rule 'layers.1.weight'", "rule 'layers.5.weight'"]


@pytest.mark.parametrize(
    "select",
    ["module.weight", "module.*", Where(name=("x", "module.w*")), Where(regex=r"^module\.w"), re.compile("^module.w")],
    ids=str,
)
def test_rules_may_spell_out_what_a_wrapper_adds_to_names(select: Selector) -> None:
    wrapped = nn.DataParallel(nn.Linear(3, 3))
    assert [name for name, _ in wrapped.named_parameters()] == ["module.weight", "module.bias"]
    plan = fastinit.plan(wrapped, "normal", [(select, "ones")])
    assert {row.name: row.reason for row in plan.rows}["weight"].startswith("rule ")


@pytest.mark.parametrize("select", ["*.weight", "?*.*", Where(regex=r"\.weight"), re.compile(r"\.")], ids=str)
@pytest.mark.filterwarnings("ignore:no parameter matches")
def test_a_wrapper_changes_no_match_of_rules_that_do_not_spell_it_out(select: Selector) -> None:
    for model in (nn.Linear(3, 3), nn.DataParallel(nn.Linear(3, 3))):
        plan = fastinit.plan(model, "normal", [(select, "ones")])
        assert [row.reason for row in plan.rows] == ["linear map of Linear", "bias"], type(model)


def test_functions_get_the_name_in_the_whole() -> None:
    seen: list[str] = []

    def listen(name: str, module: nn.Module, parameter: torch.Tensor) -> bool:
        seen.append(name)
        return False

    stage = nn.DataParallel(nn.ModuleDict({"0": nn.Linear(2, 2, bias=False)}))
    rules = [Rule(listen, "zeros", in_model=True)]
    with pytest.warns(UserWarning, match="no parameter matches rule listen"):
        fastinit.plan(stage, "normal", rules, names={"0": "7"})
    assert seen == ["7.weight"]


@pytest.mark.parametrize("name", ["weight", "a*b", "a?b", "[ab]", "a[0]", "]", "[!a]", "a[", "é.0"])
def test_exact_globs_match_one_name(name: str) -> None:
    where = Where(name=exact_glob(name))
    module, parameter = nn.Module(), torch.empty(1)
    others = ("aXb", "a", "b", "a0", "ab", "weigh", "weights", "c")
    assert where.matches(name, module, parameter)
    assert not any(where.matches(other, module, parameter) for other in others)


def _too_few(name: str, module: nn.Module) -> bool:
    return True


def _looks_up(name: str, module: nn.Module, parameter: torch.Tensor) -> bool:
    return {"bias": True}[name]


@pytest.mark.parametrize(
    ("function", "problem", "cause"),
    [
        (_too_few, r"its function raised TypeError: .*2 positional arguments but 3", TypeError),
        (_looks_up, r"its function raised KeyError: 'weight'", KeyError),
        (lambda name, module, parameter: None, "expected its function to return True or False, got None", None),
        (lambda name, module, parameter: "no", "expected its function to return True or False, got 'no'", None),
        (
            lambda name, module, parameter: parameter > 0,
            "expected its function to return True or False, got tensor",
            None,
        ),
        (
            lambda name, module, parameter: torch.ones(()),
            r"expected its function to return True or False, got tensor\(1\.\)",
            None,
        ),
        (
            lambda name, module, parameter: np.array([True]),
            r"expected its function to return True or False, got array\(\[",
            None,
        ),
        (lambda name, module, parameter: torch.ones((), dtype=torch.bool, device="meta"), ".* got tensor", None),
    ],
)
def test_errors_of_functions_name_the_rule_and_the_parameter(
    function: Any, problem: str, cause: type[Exception] | None
) -> None:
    model = nn.Linear(2, 2)
    before = model.weight.clone()
    with pytest.raises(ParameterError, match=rf"^weight: rule .*: {problem}") as raised:
        fastinit.init_model_(model, "normal", [(function, "zeros")])
    assert raised.value.name == "weight"
    assert (None if cause is None else cause) is (type(raised.value.__cause__) if raised.value.__cause__ else None)
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize(
    "make", [bool, np.bool_, lambda given: torch.tensor(given), lambda given: torch.tensor([given])]
)
def test_functions_may_return_truths_of_numpy_and_torch(make: Callable[[bool], Any]) -> None:
    model = nn.Linear(2, 2)
    rules = [(lambda name, module, parameter: make(name == "bias"), fastinit.Constant(3.0))]
    fastinit.init_model_(model, "zeros", rules)
    assert (model.bias == 3.0).all() and (model.weight == 0.0).all()


@pytest.mark.parametrize(
    "rules",
    [3, 0, True, "*.weight", "", Rule("*", "zeros"), {"*": "zeros"}, {}, torch.ones(()), ["*"], ("*", "zeros")],
    ids=str,
)  # fmt: skip
def test_what_is_no_list_of_rules_is_refused(rules: Any) -> None:
    for use in (lambda: fastinit.plan(nn.Linear(2, 2), "normal", rules), lambda: fastinit.Recipe("normal", rules)):
        with pytest.raises(TypeError, match=r"^rules: expected"):
            use()


def test_rules_may_come_from_a_generator() -> None:
    model = fastinit.init_model_(nn.Linear(2, 2), "normal", (each for each in [("weight", "ones")]))  # type: ignore[arg-type]
    assert (model.weight == 1.0).all()


def test_keep_leaves_values_alone_and_covers() -> None:
    model = Zoo()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    plan = fastinit.plan(model, "normal", [("first.*", KEEP), (nn.Embedding, KEEP)], seed=0, strict=True)
    plan.run_()
    kept = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    assert kept == ["first.weight", "first.bias", "second.weight", "embed.weight"]  # the second is frozen
    assert {row.name: row.reason for row in plan.rows}["first.bias"] == "rule 'first.*': kept"


class Conv1D(nn.Module):
    """GPT-2's: the weight is (in, out)."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.nf = outputs
        self.weight = nn.Parameter(torch.empty(inputs, outputs))


def _stds(weight: torch.Tensor, sizes: Sequence[int], dim: int) -> list[float]:
    return [float(block.double().std()) for block in weight.detach().split(list(sizes), dim)]


FAN_IN = VarianceScaling(1.0, "fan_in", "normal")
FAN_OUT = VarianceScaling(1.0, "fan_out", "normal")
FAN_AVG = VarianceScaling(1.0, "fan_avg", "uniform")


@pytest.mark.parametrize(
    ("module", "fan", "split", "split_dim", "dim", "fans"),
    [
        (nn.Linear(192, 3 * 320), "torch", 3, None, 0, [(192, 320)] * 3),
        (nn.Linear(192, 3 * 320), "module", (320, 320, 320), -2, 0, [(192, 320)] * 3),
        (nn.Linear(256, 640), "torch", (512, 64, 64), None, 0, [(256, 512), (256, 64), (256, 64)]),
        (nn.Linear(600, 400), "torch", 3, 1, 1, [(200, 400)] * 3),
        (nn.Linear(600, 400), "torch", (100, 500), -1, 1, [(100, 400), (500, 400)]),
        (Conv1D(3 * 320, 192), "module", 3, None, 1, [(192, 320)] * 3),
        (Conv1D(640, 256), "module", (512, 64, 64), None, 1, [(256, 512), (256, 64), (256, 64)]),
        (nn.Conv2d(64, 3 * 128, 3), "module", 3, None, 0, [(576, 1152)] * 3),
        (nn.Linear(192, 3 * 320), Fans(100, 200), 3, None, 0, [(100, 200)] * 3),
    ],
    ids=["qkv", "sizes", "gqa", "dim 1", "uneven dim 1", "c_attn", "c_attn gqa", "conv", "fans"],
)
@pytest.mark.parametrize("scheme", [FAN_IN, FAN_OUT, FAN_AVG], ids=["fan_in", "fan_out", "fan_avg"])
def test_every_block_has_the_std_of_a_map_of_its_own(
    module: Any,
    fan: Any,
    split: int | tuple[int, ...],
    split_dim: int | None,
    dim: int,
    fans: list[tuple[int, int]],
    scheme: VarianceScaling,
) -> None:
    plan = fastinit.plan(module, "zeros", [Rule("weight", scheme, fan, split, split_dim)], seed=0)
    plan.run_()
    of_block = {"fan_in": lambda i, o: i, "fan_out": lambda i, o: o, "fan_avg": lambda i, o: (i + o) / 2}[scheme.mode]
    expected = [1.0 / math.sqrt(of_block(*each)) for each in fans]
    sizes = [module.weight.shape[dim] // split] * split if isinstance(split, int) else split
    for std, wanted, block in zip(
        _stds(module.weight, sizes, dim), expected, module.weight.split(list(sizes), dim), strict=True
    ):
        # Standard error of the std of a normal; that of a uniform is smaller.
        assert abs(std / wanted - 1.0) < 5.0 / math.sqrt(2.0 * block.numel())
    row = plan.rows[0]
    blocks = row.distribution.each if isinstance(row.distribution, distributions.Blocks) else (row.distribution,)
    kind = distributions.Uniform if scheme is FAN_AVG else distributions.Normal
    assert all(isinstance(each, kind) for each in blocks)
    variance = sum(size * std * std for size, std in zip(sizes, expected, strict=True)) / sum(sizes)
    assert row.distribution is not None and row.distribution.std() == pytest.approx(math.sqrt(variance), rel=1e-12)
    assert len(set(fans)) > 1 or row.fans == fans[0]


def _with_layout(shape: tuple[int, ...], layout: str) -> torch.Tensor:
    if layout == "transposed":
        return torch.empty(shape[::-1]).permute(*reversed(range(len(shape))))
    if layout == "channels_last":
        return torch.empty((shape[0], *shape[2:], shape[1])).movedim(-1, 1)
    if layout == "slice":
        return torch.empty((shape[0], 2 * shape[1] + 1, *shape[2:]))[:, 1::2]
    return torch.empty(shape)


@needs_native  # torch's values depend on the layout and the blocks
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "channels_last", "slice"])
@pytest.mark.parametrize(
    ("shape", "dim", "sizes"),
    [((12, 7), 0, (4, 8)), ((9, 12), 1, (5, 6, 1)), ((6, 8, 3, 2), 0, (1, 5)), ((6, 8, 3, 2), 1, (3, 5)),
     ((4, 6, 5), 2, (2, 3))],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("scheme", [Normal(0.0, 1.0), Uniform(-1.0, 1.0)], ids=["normal", "uniform"])
def test_a_split_keeps_the_place_of_every_value(
    scheme: Normal | Uniform, shape: tuple[int, ...], dim: int, sizes: tuple[int, ...], layout: str
) -> None:
    whole = nn.ParameterDict({"w": nn.Parameter(torch.zeros(shape))})
    fastinit.init_model_(whole, scheme, seed=3)
    split = nn.ParameterDict({"w": nn.Parameter(_with_layout(shape, layout))})
    factors = [2.0**at for at in range(len(sizes))]
    blocks = tuple(fastinit.Scaled(scheme, factor) for factor in factors)
    plan = fastinit.plan(split, "zeros", [Rule("w", blocks, split=sizes, split_dim=dim)], seed=3)
    assert isinstance(plan.rows[0].distribution, distributions.Blocks)
    plan.run_()
    for block, original, factor in zip(
        split["w"].split(list(sizes), dim), whole["w"].split(list(sizes), dim), factors, strict=True
    ):
        assert torch.equal(block, original * factor)


@needs_native
@pytest.mark.parametrize("transposed", [False, True])
def test_a_padding_row_stays_zero_in_a_split_of_the_columns(transposed: bool) -> None:
    embedding = nn.Embedding(10, 12, padding_idx=4)
    whole = fastinit.init_model_(nn.Embedding(10, 12), Normal(), seed=3).weight.detach().clone()
    if transposed:
        embedding.weight = nn.Parameter(torch.full((12, 10), 7.0).t())
    fastinit.init_model_(embedding, "zeros", [Rule("weight", (Normal(), Normal(std=4.0)), None, (5, 7), 1)], seed=3)
    whole[:, 5:] *= 4.0
    whole[4] = 0.0
    assert torch.equal(embedding.weight, whole)


def test_a_padding_row_in_a_split_of_the_rows_is_refused() -> None:
    embedding = nn.Embedding(10, 12, padding_idx=4)
    rule = Rule("weight", (Normal(), Normal(std=4.0)), split=2, split_dim=0)
    _assert_refused(embedding, rule, "weight: split: expected another dimension than the rows")


def test_schemes_of_the_shape_see_the_blocks() -> None:
    model = nn.ParameterDict({"rows": nn.Parameter(torch.empty(12, 4)), "columns": nn.Parameter(torch.empty(4, 12))})
    rules = [Rule("rows", "eye", split=3), Rule("columns", "eye", split=(4, 6, 2), split_dim=1)]
    fastinit.init_model_(model, "zeros", rules, seed=0)
    assert torch.equal(model["rows"], torch.eye(4).repeat(3, 1))
    assert torch.equal(model["columns"], torch.cat([torch.eye(4), torch.eye(4, 6), torch.eye(4, 2)], dim=1))


def test_every_gate_is_a_map_of_its_own() -> None:
    lstm = nn.LSTM(5, 5)
    fastinit.init_model_(
        lstm, "zeros", [Rule("weight_hh*", "eye", fan="module"), Rule("weight_ih*", "eye", fan="torch")]
    )
    assert torch.equal(lstm.weight_hh_l0, torch.eye(5).repeat(4, 1))
    assert torch.equal(lstm.weight_ih_l0, torch.eye(20, 5))


def test_blocks_may_be_kept_apart_by_scheme() -> None:
    linear = nn.Linear(8, 12)
    rule = Rule("weight", ("zeros", fastinit.Constant(3.0), "eye"), split=(2, 2, 8))
    fastinit.init_model_(linear, "normal", [rule], seed=0)
    assert torch.equal(linear.weight, torch.cat([torch.zeros(2, 8), torch.full((2, 8), 3.0), torch.eye(8)]))


@needs_native
def test_a_split_of_a_bias_needs_no_fans() -> None:
    linear = nn.Linear(8, 12)
    fastinit.init_model_(linear, "normal", [Rule("bias", ("zeros", "ones"), split=(8, 4))], seed=0)
    assert torch.equal(linear.bias, torch.tensor([0.0] * 8 + [1.0] * 4))


def _assert_refused(model: nn.Module, rule: Rule, message: str) -> None:
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(ValueError, match=re.escape(message)):
        fastinit.init_model_(model, "normal", [rule], seed=0)
    assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Rule("1.weight", "normal", split=5),
         "1.weight: normal: split: expected dim 0 to be divisible by 5, got 6 (shape (6, 4))"),
        (Rule("1.weight", FAN_IN, split=3, split_dim=1),
         "1.weight: variance_scaling: split: expected dim 1 to be divisible by 3, got 4 (shape (6, 4))"),
        (Rule("1.weight", ("zeros", "normal"), split=(3, 2)),
         "1.weight: split: expected sizes that add up to 6 (dim 0 of (6, 4)), got (3, 2)"),
        (Rule("1.weight", "normal", split=2, split_dim=2),
         "1.weight: normal: split_dim: expected a dimension of shape (6, 4), got 2"),
        (Rule("1.weight", "normal", split=2, split_dim=-3),
         "1.weight: normal: split_dim: expected a dimension of shape (6, 4), got -3"),
        (Rule("1.bias", "normal", split=2, split_dim=1),
         "1.bias: normal: split_dim: expected a dimension of shape (6,), got 1"),
        (Rule("1.bias", FAN_IN, split=2), "1.bias: variance_scaling: fans need at least 2 dimensions, got shape (6,)"),
        (Rule("1.bias", ("eye", "zeros"), split=2), "1.bias: eye: expected 2 dimensions, got shape (3,)"),
        (Rule("1.weight", FAN_IN, fan=fastinit.FanAxes(in_axis=2)),
         "1.weight: variance_scaling: in_axis: expected an axis of shape (6, 4), got 2"),
    ],
    ids=str,
)  # fmt: skip
def test_rules_that_do_not_fit_the_parameter_are_refused(rule: Rule, message: str) -> None:
    _assert_refused(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 6)), rule, message)


def _make(**arguments: Any) -> Callable[[], Rule]:
    return lambda: Rule(**{"select": "w", "scheme": "normal", **arguments})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (_make(scheme=KEEP, split=3), ValueError, "split: contradicts KEEP, got 3"),
        (_make(scheme=KEEP, fan="module"), ValueError, "fan: contradicts KEEP, got 'module'"),
        (_make(split_dim=1), ValueError, "split_dim: expected a split with it, got 1 alone"),
        (_make(split=2, split_dim="1"), TypeError, "split_dim: expected an int, got '1'"),
        (_make(split=2, split_dim=True), TypeError, "split_dim: expected an int, got True"),
        (_make(scheme=("zeros", "ones")), ValueError, "split: expected one, for a scheme a block was given"),
        (_make(scheme=("zeros", "ones"), split=3), ValueError, "scheme: expected 3, one a block of split=3, got 2"),
        (_make(scheme=("zeros",), split=(3, 4)), ValueError, "scheme: expected 2, one a block of split=(3, 4), got 1"),
        (_make(split=0), ValueError, "split: expected a number of blocks or their sizes, got 0"),
        (_make(split=-3), ValueError, "split: expected a number of blocks or their sizes, got -3"),
        (_make(split=True), ValueError, "split: expected a number of blocks or their sizes, got True"),
        (_make(split=2.5), ValueError, "split: expected a number of blocks or their sizes, got 2.5"),
        (_make(split=()), ValueError, "split: expected a number of blocks or their sizes, got ()"),
        (_make(split=(3, 0)), ValueError, "split: expected a number of blocks or their sizes, got (3, 0)"),
        (_make(split=(3, 1.0)), ValueError, "split: expected a number of blocks or their sizes, got (3, 1.0)"),
        (_make(fan="fan_in"), ValueError, "fan: expected one of torch, module, jax, keras, weight, got 'fan_in'"),
        (_make(fan="modul"), ValueError, "did you mean 'module'"),
        (_make(fan=(3, 0)), ValueError, "fan: expected fan_in >= 1 and fan_out >= 1, got (3, 0)"),
        (_make(fan=(3, 1.5)), TypeError, "fan: expected one of torch"),
        (_make(fan=fastinit.FanAxes(in_axis="x")), TypeError, "in_axis: expected an axis or several, got 'x'"),  # type: ignore[arg-type]
        (_make(fan=fastinit.FanAxes(batch_axis=(0, 1.0))), TypeError, "batch_axis: expected an axis or several"),  # type: ignore[arg-type]
        (_make(scheme="norml"), ValueError, "did you mean 'normal'"),
        (_make(scheme=Normal), TypeError, "scheme: expected a name or a scheme object"),
        (_make(in_model=1), TypeError, "in_model: expected True or False, got 1"),
        (_make(select=3), TypeError, "select: expected a glob"),
        (_make(select=()), TypeError, "select: expected a glob"),
        (_make(select=int), TypeError, "select: expected a glob"),
        (_make(select=(nn.Linear, "x")), TypeError, "select: expected a glob"),
        (lambda: Where(), ValueError, "select: expected one of name, regex, type, shape, "),
        (lambda: Where(name=()), TypeError, "name: expected a glob or several, got ()"),
        (lambda: Where(name=("a", 3)), TypeError, "name: expected a glob or several, got ('a', 3)"),  # type: ignore[arg-type]
        (lambda: Where(regex="("), ValueError, "regex: '(' is no regular expression: missing )"),
        (lambda: Where(regex=re.compile("a")), TypeError, "regex: expected a string, got re.compile('a')"),  # type: ignore[arg-type]
        (lambda: Where(type=()), TypeError, "type: expected module types or their names, got none"),
        (lambda: Where(type=int), TypeError, "type: expected module types or their names, got <class 'int'>"),  # type: ignore[arg-type]
        (lambda: Where(shape=3), TypeError, "shape: expected sizes, None or -1 for any, got 3"),  # type: ignore[arg-type]
        (lambda: Where(shape=(3, -2)), TypeError, "shape: expected sizes, None or -1 for any, got (3, -2)"),
        (lambda: Where(shape=(3, True)), TypeError, "shape: expected sizes, None or -1 for any, got (3, True)"),
        (lambda: Where(dims=-1), ValueError, "dims: expected dims >= 0, got -1"),
        (lambda: Where(dims=True), TypeError, "dims: expected int, got True"),
        (lambda: Where(requires_grad=1), TypeError, "requires_grad: expected bool, got 1"),  # type: ignore[arg-type]
        (lambda: Where(frozen=1), TypeError, "frozen: expected bool, got 1"),  # type: ignore[arg-type]
        (lambda: Where(loaded="yes"), TypeError, "loaded: expected bool, got 'yes'"),  # type: ignore[arg-type]
        (lambda: Where(role="biases"), ValueError, "role: got 'biases', did you mean 'bias'? expected one of map, "),
        (lambda: Where(role=()), TypeError, "role: expected a role or several, got none"),
    ],
)  # fmt: skip
def test_arguments_of_rules_are_checked(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("select", "shown"),
    [
        ("*.weight", "rule '*.weight'"),
        (Where(name="*.weight"), "rule '*.weight'"),
        (Where(name=("first.*", "conv.*")), "rule name 'first.*' | 'conv.*'"),
        (Where(name=("first.*", "a", "b", "c")), "rule name 'first.*' and 3 more"),
        (re.compile("w"), "rule regex 'w'"),
        (re.compile("W", re.IGNORECASE), "rule regex '(?i)W'"),
        (nn.Linear, "rule type Linear"),
        ((nn.Conv2d, nn.Linear), "rule type Conv2d | Linear"),
        (Where(type="torch.nn.modules.linear.Linear"), "rule type Linear"),
        (Where(dims=2, type=Zoo), "rule type Zoo, dims 2"),
        (Where(role="bias"), "rule role 'bias'"),
        (Where(role=("map", "bias"), frozen=True), "rule role 'map' | 'bias', frozen True"),
    ],
    ids=str,
)
def test_rules_show_what_they_select(select: Selector, shown: str) -> None:
    assert str(Rule(select, "zeros")) == shown


def test_rules_that_match_nothing_are_named_or_refused() -> None:
    rules: list[tuple[Selector, Any]] = [
        ("first.*", "zeros"),
        (nn.Conv3d, "zeros"),
        ("first.weight", "ones"),  # entirely behind the first
        (Where(regex="^x", dims=3), KEEP),
    ]
    names = "rule type Conv3d, rule 'first.weight', rule regex '^x', dims 3"
    with pytest.warns(UserWarning, match=f"^no parameter matches {re.escape(names)}$"):
        fastinit.plan(Zoo(), "normal", rules)
    with pytest.raises(ValueError, match=f"^strict: no parameter matches {re.escape(names)}$"):
        fastinit.plan(Zoo(), "normal", rules, strict=True)


def test_rules_of_a_recipe_may_match_nothing_if_one_does() -> None:
    recipe = fastinit.Recipe("normal", [("nowhere", "zeros"), ("first.weight", "zeros")])
    fastinit.plan(Zoo(), recipe, strict=True)
    fastinit.plan(Zoo(), recipe, [("first.*", "ones")], strict=True)  # which comes before what matches
    with pytest.warns(UserWarning, match="no parameter matches rule 'neither'$"):
        fastinit.plan(Zoo(), recipe, [("neither", "zeros")])


def _module(**parameters: torch.Tensor) -> nn.Module:
    module = nn.Module()
    for name, value in parameters.items():
        module.register_parameter(name, nn.Parameter(value, requires_grad=value.dtype.is_floating_point))
    return module


def _nested(name: str, value: torch.Tensor) -> nn.Module:
    """A model whose only parameter has this dotted name."""
    *modules, own_name = name.split(".")
    model = _module(**{own_name: value})
    for each in reversed(modules):
        model, inner = nn.Module(), model
        model.add_module(each, inner)
    return model


SEVENS = torch.full((8, 6), 7.0)


def trained(*shape: int) -> torch.Tensor:
    return torch.full(shape, 7.0)


@pytest.mark.parametrize(
    ("name", "distribution"),
    [
        ("x.lora_A.default.weight", distributions.Uniform(-(6**-0.5), 6**-0.5)),
        ("x.lora_A", distributions.Uniform(-(6**-0.5), 6**-0.5)),
        ("x.lora_B.default.weight", distributions.Constant(0.0)),
        ("lora_B.weight", distributions.Constant(0.0)),
        ("x.lora_embedding_A.default", distributions.Constant(0.0)),
        ("x.lora_embedding_B.default", distributions.Normal(0.0, 1.0)),
        ("x.not_lora_B.weight", distributions.Normal(0.0, 0.5)),
        ("x.lora_Bias.weight", distributions.Normal(0.0, 0.5)),
    ],
)
def test_lora_adapters_start_as_zero_updates(name: str, distribution: Any) -> None:
    row = fastinit.plan(_nested(name, SEVENS.clone()), Normal(std=0.5)).rows[0]
    assert type(row.distribution) is type(distribution)
    assert row.distribution.parameters() == pytest.approx(distribution.parameters(), rel=1e-15)


def test_lora_rules_choose_what_a_is() -> None:
    names = ["x.lora_A.default.weight", "x.lora_B.default.weight", "x.lora_embedding_B.default"]
    wanted = [distributions.Normal(0.0, 0.25), distributions.Constant(0.0), distributions.Normal(0.0, 1.0)]
    for name, distribution in zip(names, wanted, strict=True):
        with pytest.warns(UserWarning, match="no parameter matches"):
            plan = fastinit.plan(_nested(name, SEVENS.clone()), "zeros", fastinit.lora_rules(Normal(std=0.25)))
        assert plan.rows[0].distribution == distribution
        assert plan.rows[0].reason.startswith("rule regex")


class LayerScale(nn.Module):
    """timm's."""

    def __init__(self, init_values: float) -> None:
        super().__init__()
        self.init_values = init_values
        self.gamma = nn.Parameter(trained(6))


@pytest.mark.parametrize("init_values", [1e-5, 1])
def test_layer_scale_has_its_init_values(init_values: float) -> None:
    module = fastinit.init_model_(LayerScale(init_values), "normal", seed=0, strict=True)
    assert (module.gamma == init_values).all()


def test_slopes_of_prelu_have_their_initial_value() -> None:
    model = nn.Sequential(nn.PReLU(3, init=0.1), nn.PReLU())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    fastinit.init_model_(model, "normal", seed=0, strict=True)
    assert torch.equal(model[0].weight, torch.full((3,), 0.1)) and model[1].weight.item() == 0.25


def test_state_spaces_have_their_published_values() -> None:
    model = nn.Module()
    model.mixer = _module(A_log=SEVENS.clone(), D=torch.full((8,), 7.0), dt_bias=torch.full((500,), 7.0))
    model.mixer.dt_proj = nn.Linear(4, 500)
    model.mixer.out_proj = nn.Linear(4, 8)
    fastinit.init_model_(model, Normal(std=0.5), seed=0, strict=True)
    assert torch.equal(model.mixer.A_log, torch.arange(1, 7, dtype=torch.float64).log().float().expand(8, 6))
    assert (model.mixer.D == 1.0).all()
    for bias in (model.mixer.dt_bias, model.mixer.dt_proj.bias):
        steps = nn.functional.softplus(bias.double())
        assert 0.0009999 < steps.min() < 0.0015 and 0.07 < steps.max() < 0.10001
        # Log-uniform: half of the values lie below the geometric mean, 0.01.
        assert 0.4 < (steps < 0.01).double().mean() < 0.6
    assert (model.mixer.out_proj.bias == 0.0).all() and model.mixer.dt_proj.weight.std() > 0.4


@pytest.mark.parametrize(
    ("class_name", "forward", "value"),
    [
        ("GemmaRMSNorm", lambda self, x: _normalised(x) * (1.0 + self.weight), 0.0),
        ("AnyNorm", lambda self, x: torch.addcmul(_normalised(x), _normalised(x), self.weight), 0.0),
        ("LlamaRMSNorm", lambda self, x: _normalised(x) * self.weight, 1.0),
        ("Gemma3nRMSNorm", lambda self, x: _normalised(x) * self.weight, 1.0),
        ("RMSNormGated", lambda self, x, gate: _normalised(x) * self.weight * gate, 1.0),
        ("CenteredRMSNormGated", lambda self, x, gate: _normalised(x) * (1 + self.weight) * gate, 0.0),
        ("LayerNorm2d", lambda self, x: _normalised(x, 1) * self.weight[:, None, None], 1.0),
        ("CenteredNorm2d", lambda self, x: _normalised(x, 1) * (self.weight[:, None, None] + 1), 0.0),
        ("NormThatCannotRunAlone", lambda self, x: self.missing(x), 7.0),
        ("LoneNorm", lambda self, x: self.missing(x), 1.0),
    ],
)
@pytest.mark.filterwarnings("ignore::fastinit.UncoveredWarning")
def test_norms_start_as_the_identity(class_name: str, forward: Any, value: float) -> None:
    norm = type(class_name, (nn.Module,), {"forward": forward})()
    norm.weight = nn.Parameter(torch.full((6,), 7.0))
    fastinit.init_model_(norm, "normal", seed=0)
    assert (norm.weight == value).all()


def _normalised(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(dim, keepdim=True) + 1e-6)


def test_a_norm_is_asked_without_being_touched() -> None:
    calls: list[str] = []

    class CountingNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(torch.rand(6))
            self.register_buffer("seen", torch.zeros(6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen += 1
            self.times = 1
            return x * (1 + self.gamma)

    norm = CountingNorm()
    norm.register_forward_hook(lambda *_: calls.append("hook"))
    state = torch.get_rng_state()
    fastinit.init_model_(norm, "normal", seed=0)
    assert (norm.gamma == 0.0).all() and (norm.seen == 0.0).all()
    assert calls == [] and not hasattr(norm, "times") and torch.equal(state, torch.get_rng_state())


def test_a_norm_that_is_added_to_its_input_begins_as_the_identity() -> None:
    class ResponseNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(1, 1, 1, 6))
            self.bias = nn.Parameter(torch.rand(1, 1, 1, 6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            response = x.norm(dim=(1, 2), keepdim=True)
            return x + torch.addcmul(self.bias, self.weight, x * response)

    norm = fastinit.init_model_(ResponseNorm(), "normal", seed=0)
    x = torch.randn(2, 3, 3, 6)
    assert torch.equal(norm(x), x)


def test_a_norm_derived_from_torchs_is_asked() -> None:
    class LayerNorm1P(nn.LayerNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.layer_norm(x, self.normalized_shape, self.weight + 1, self.bias, self.eps)

    assert (fastinit.init_model_(LayerNorm1P(6), "normal", seed=0).weight == 0.0).all()


def test_zero_centered_gamma_is_obeyed() -> None:
    norm = nn.RMSNorm(6)
    norm.zero_centered_gamma = True
    assert (fastinit.init_model_(norm, "normal", seed=0).weight == 0.0).all()


def test_a_rule_comes_before_every_default() -> None:
    model = nn.Module()
    model.norm = nn.LayerNorm(6)
    model.slope = nn.PReLU(6)
    model.lora_B = nn.Linear(6, 6)
    fastinit.init_model_(model, "normal", [("*", fastinit.Constant(3.0))], seed=0)
    assert all((parameter == 3.0).all() for parameter in model.parameters())


def test_integers_are_kept_and_not_covered() -> None:
    packed = torch.arange(12, dtype=torch.int32).reshape(3, 4)
    model = _module(packed=packed.clone(), weight=torch.full((3, 4), 7.0))
    with pytest.warns(fastinit.UncoveredWarning, match="no rule covers packed"):
        plan = fastinit.plan(model, "normal", seed=0)
    assert plan.uncovered == ("packed",) and plan.rows[0].reason == "torch.int32: not sampled"
    plan.run_()
    assert torch.equal(model.packed, packed) and (model.weight != 7.0).all()
    fastinit.init_model_(model, "normal", [("packed", KEEP)], strict=True)
    with pytest.raises((TypeError, ValueError), match=r"^packed: .*torch\.int32"):
        fastinit.init_model_(model, "normal", [("packed", "normal")])


def test_frozen_parameters_are_kept_and_counted_unless_a_rule_says_otherwise() -> None:
    model = nn.Linear(4, 6)
    model.weight.requires_grad_(False).fill_(7.0)
    with pytest.warns(fastinit.KeptWarning, match=r"^1 frozen parameters .* are kept.*: weight$") as caught:
        plan = fastinit.plan(model, "normal", seed=0, strict=True)
    assert len(caught) == 1 and caught[0].filename == __file__
    plan.run_()
    assert (model.weight == 7.0).all() and (model.bias == 0.0).all() and plan.rows[0].reason == "frozen: kept"
    fastinit.init_model_(model, "normal", [(Where(requires_grad=False), "normal")], seed=1)
    assert (model.weight != 7.0).all() and not model.weight.requires_grad and model.bias.requires_grad


def test_a_call_that_writes_nothing_says_so() -> None:
    model = nn.Linear(4, 6).requires_grad_(False)
    with pytest.warns(fastinit.KeptWarning, match="nothing is left to write"):
        fastinit.init_model_(model, "normal", seed=0)


def test_loaded_weights_are_kept_unless_a_rule_says_otherwise() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4))
    for parameter in model[0].parameters():
        parameter._is_hf_initialized = True  # type: ignore[attr-defined]
        parameter.data.fill_(7.0)
    with pytest.warns(fastinit.KeptWarning, match=r"^1 loaded weights .* are kept.*: 0\.weight$"):
        plan = fastinit.plan(model, "normal", [("0.bias", fastinit.Constant(3.0))], seed=0, strict=True)
    plan.run_()
    assert (model[0].weight == 7.0).all() and (model[0].bias == 3.0).all() and (model[1].bias == 0.0).all()
    assert plan.rows[0].reason == "loaded weights (_is_hf_initialized): kept" and plan.rows[0].covered


# ---- rows that are zero ----


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4, padding_idx=3)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight


@pytest.mark.parametrize("row", [3, -7])
def test_a_head_in_another_stage_has_the_padding_row_of_its_embedding(row: int) -> None:
    whole = fastinit.init_model_(Tied(), "normal", seed=0)
    stage = nn.ModuleDict({"head": nn.Linear(4, 10, bias=False)})
    rules = [Rule("embed.weight", "normal", zero_row=row)]
    fastinit.init_model_(stage, "normal", rules, seed=0, names={"head.weight": "embed.weight"})
    weight = stage.get_parameter("head.weight")
    assert (weight[3] == 0.0).all()
    if _native.module is not None:
        assert torch.equal(weight, whole.embed.weight)


@pytest.mark.parametrize(
    ("zero_row", "scheme", "error", "message"),
    [
        (10, "normal", ValueError, r"weight: .*zero_row: expected a row of shape \(10, 4\), got 10"),
        (-11, "normal", ValueError, r"zero_row: expected a row of shape \(10, 4\), got -11"),
        (1.0, "normal", TypeError, "zero_row: expected an int, got 1.0"),
        (True, "normal", TypeError, "zero_row: expected an int, got True"),
        (1, fastinit.KEEP, ValueError, "zero_row: contradicts KEEP, got 1"),
    ],
)
def test_rows_that_are_none_are_refused(zero_row: Any, scheme: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fastinit.plan(nn.Linear(4, 10), "normal", [Rule("weight", scheme, zero_row=zero_row)])


def test_rows_of_zeros_go_into_recipes_and_through_mup(tmp_path: Path) -> None:
    recipe = fastinit.Recipe("kaiming_normal", [Rule("embed.weight", "kaiming_normal", zero_row=5)])
    for name in ("recipe.json", "recipe.toml"):
        recipe.save(tmp_path / name)
        assert fastinit.load_recipe(tmp_path / name).rules == recipe.rules
    for given in (recipe, fastinit.mup(Tied(), Tied(), recipe)):
        weight = fastinit.init_model_(Tied(), given, seed=0).embed.weight
        assert (weight == 0.0).all(dim=1).nonzero().flatten().tolist() == [5]


class OtherNorm(nn.Module):
    """A normalisation with other names for its two vectors, or, without `gamma`, Swish with its slope."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.full((4,), 7.0)))


@pytest.mark.parametrize(
    ("make", "weights"),
    [
        (lambda: nn.Linear(4, 4), {"weight"}),
        (lambda: nn.LayerNorm(4), {"weight"}),
        (lambda: nn.BatchNorm2d(4), {"weight"}),
        (lambda: nn.ConvTranspose2d(4, 4, 3), {"weight"}),
        (lambda: nn.Bilinear(4, 4, 4), {"weight"}),
        (lambda: nn.LSTMCell(4, 4), {"weight_ih", "weight_hh"}),
        (
            lambda: nn.LSTM(4, 4, bidirectional=True, proj_size=2),
            {f"weight_{kind}_l0{way}" for kind in ("ih", "hh", "hr") for way in ("", "_reverse")},
        ),
        (lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True), {"in_proj_weight"}),
        (lambda: nn.PReLU(4), {"weight"}),
        (lambda: OtherNorm("gamma", "beta"), {"gamma"}),
        (lambda: OtherNorm("scale", "shift"), {"scale"}),
        (lambda: OtherNorm("beta"), {"beta"}),
    ],
)
def test_a_type_takes_the_weights_and_leaves_the_biases_to_their_role(
    make: Callable[[], nn.Module], weights: set[str]
) -> None:
    module = make()
    ruled = _ruled([(type(module), "zeros")], module)
    own = {name for name in module._parameters if module._parameters[name] is not None}
    assert {name for name in ruled if name in own} == weights
    recipe = fastinit.Recipe("zeros", [(Where(type=type(module).__name__), "zeros")])
    assert {row.name for row in fastinit.plan(module, recipe).rows if row.reason.startswith("rule type")} == weights


def test_ones_for_a_norm_do_not_shift_it_and_matrix_schemes_pass_over_biases() -> None:
    model = nn.ModuleDict({"norm": nn.LayerNorm(4), "linear": nn.Linear(4, 3), "lstm": nn.LSTM(4, 4)})
    rules: list[tuple[Selector, Any]] = [(nn.LayerNorm, "ones"), (nn.Linear, "xavier_uniform"), (nn.LSTM, "orthogonal")]
    fastinit.init_model_(model, "zeros", rules, seed=0, strict=True, fan="torch")
    zero = {name for name, parameter in model.named_parameters() if not parameter.any()}
    assert zero == {"norm.bias", "linear.bias", "lstm.bias_ih_l0", "lstm.bias_hh_l0"}
    assert (model["norm"].weight == 1.0).all()


def test_keep_and_own_take_the_whole_module() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    before = model[0].bias.clone()
    rules: list[tuple[Selector, Any]] = [(Where(name="0.*", type=nn.Linear), KEEP), (nn.Linear, "own")]
    fastinit.init_model_(model, "zeros", rules, seed=0, strict=True)
    assert torch.equal(model[0].bias, before) and model[1].bias.any()


def test_a_type_takes_the_weight_alone_through_wrappers_and_parametrizations() -> None:
    linear = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    assert set(_ruled([(nn.Linear, "zeros")], nn.DataParallel(linear))) == {"weight"}


def test_a_rule_asks_for_the_role_only_where_it_looks_at_it() -> None:
    asked: list[str] = []

    def role() -> str:
        asked.append("asked")
        return "map"

    linear = nn.Linear(2, 2)
    names = Names("0.weight", "0.weight", "0.weight")
    rules = [Rule("*.bias", "zeros"), Rule(nn.Conv2d, "zeros"), Rule(Where(type="Conv2d", role="map"), "zeros")]
    assert RuleFinder(rules).find(names, linear, linear.weight, role) is None and asked == []
    for roles, found in (("map", 0), (("table", "map"), 0), ("table", None), ("bias", None)):
        assert RuleFinder([Rule(Where(role=roles), "zeros")]).find(names, linear, linear.weight, role) == found
    assert RuleFinder([Rule(Where(role="map"), "zeros")]).find(names, linear, linear.weight) is None


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        (Where(loaded=True), ["0.weight", "1.bias"]),
        (Where(role="loaded"), ["0.weight", "1.bias"]),
        (Where(loaded=True, type="Linear"), ["0.weight"]),
        (Where(loaded=True, role="bias"), ["1.bias"]),
        (Where(loaded=False), ["0.bias", "1.weight"]),
    ],
    ids=str,
)
def test_rules_reach_loaded_weights(select: Selector, expected: list[str]) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].weight._is_hf_initialized = model[1].bias._is_hf_initialized = True  # type: ignore[assignment]
    assert sorted(_ruled([(select, "zeros")], model)) == expected


def test_the_mark_of_loaded_weights_counts_only_where_there_is_memory() -> None:
    linear = nn.Linear(2, 2, device="meta")
    linear.weight._is_hf_initialized = True  # type: ignore[assignment]
    assert not Where(loaded=True).matches("weight", linear, linear.weight)
    linear.to_empty(device="cpu")
    linear.weight._is_hf_initialized = True  # type: ignore[assignment]
    assert Where(loaded=True).matches("weight", linear, linear.weight)


def test_pairs_may_be_lists() -> None:
    rules: Any = [["*.weight", "ones"], [[nn.Linear, nn.Conv2d], "zeros"]]
    for use in (fastinit.Recipe("zeros", rules).rules, fastinit.Recipe("zeros", tuple(map(tuple, rules))).rules):
        assert list(use) == [Rule("*.weight", "ones"), Rule((nn.Linear, nn.Conv2d), "zeros")]
    model = fastinit.init_model_(nn.Linear(3, 3), "zeros", [["weight", "ones"]])  # type: ignore[list-item]
    assert (model.weight == 1.0).all()


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("given", ["gpt2", fastinit.Recipe("zeros", [("nowhere", "ones")])], ids=str)
def test_a_preset_or_recipe_that_matches_nothing_is_reported(given: str | fastinit.Recipe, strict: bool) -> None:
    name = "the recipe 'gpt2'" if given == "gpt2" else "the recipe"
    message = f"no parameter matches any rule of {name}, which is for other models$"
    if strict:
        with pytest.raises(ValueError, match=f"^strict: {message}"):
            fastinit.plan(nn.Linear(3, 3), given, strict=True)
        return
    for model in (nn.Linear(3, 3), nn.DataParallel(nn.Linear(3, 3))):
        with pytest.warns(UserWarning, match=f"^{message}") as caught:
            fastinit.init_model_(model, given, [("weight", "zeros")])
        assert len(caught) == 1 and caught[0].filename == __file__


def test_a_recipe_that_matches_nothing_is_reported_once_by_materialize() -> None:
    with pytest.warns(UserWarning, match="^no parameter matches any rule of the recipe 'gpt2'") as caught:
        fastinit.materialize_(nn.Linear(3, 3, device="meta"), "gpt2", device="cpu")
    assert len(caught) == 1


def test_a_part_of_a_model_may_lack_all_that_a_recipe_is_for() -> None:
    fastinit.plan(nn.ModuleDict({"wte": nn.Embedding(3, 3)}), "gpt2", names={"wte": "transformer.wte"}, strict=True)


def test_a_preset_without_rules_is_for_any_model() -> None:
    fastinit.plan(nn.Linear(3, 3), "bert", strict=True)


NO_ARGUMENTS = {
    "normal": "N(0, 1), std 1 whatever its size; write fastinit.Normal(std=0.02), or ",
    "uniform": "U[0, 1], std 0.289 whatever its size; write fastinit.Uniform(-0.05, 0.05), or ",
    "trunc_normal": "N(0, 1) in [-2, 2], std 0.88 whatever its size; write fastinit.TruncNormal(std=0.02, ",
}


def _materialized(scheme: Any, rules: Any = None) -> None:
    fastinit.materialize_(nn.Linear(3, 3, device="meta"), scheme, rules, device="cpu")


CALLS: list[Callable[..., object]] = [
    lambda *given: fastinit.init_model_(nn.Linear(3, 3), *given),
    lambda *given: fastinit.plan(nn.Linear(3, 3), *given),
    _materialized,
]


@pytest.mark.parametrize("call", CALLS, ids=["init_model_", "plan", "materialize_"])
@pytest.mark.parametrize("name", NO_ARGUMENTS)
def test_one_std_for_a_whole_model_is_reported_once(
    name: str, call: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fastinit.model, "warned_of_one_std", set())
    message = f'^scheme: "{name}" without arguments gives every matrix {re.escape(NO_ARGUMENTS[name])}'
    with pytest.warns(UserWarning, match=message) as caught:
        _ = [call(name), call(name)]
    assert len(caught) == 1 and caught[0].filename == __file__


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("call", CALLS, ids=["init_model_", "plan", "materialize_"])
def test_one_std_that_somebody_asked_for_is_not_reported(call: Callable[..., object]) -> None:
    for scheme in (Normal(std=1.0), Uniform(0.0, 1.0), fastinit.scheme("normal", std=0.02), "xavier_normal"):
        call(scheme)
    call("xavier_uniform", [("weight", "normal")])
    call("normal", [("weight", Normal(std=0.02))])  # nothing is left for the scheme
    fastinit.init_([torch.empty(3, 3)], "normal")
    fastinit.normal_(torch.empty(3, 3))
