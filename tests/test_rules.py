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
from fastinit.rules.select import Names, RuleFinder, Selector, exact_glob
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
        (nn.Linear, ["first.weight", "first.bias", "second.weight", "second.bias"]),
        (Special, ["second.weight", "second.bias"]),
        ((Special, nn.Embedding), ["second.weight", "second.bias", "embed.weight"]),
        (Where(type="Linear"), ["first.weight", "first.bias", "second.weight", "second.bias"]),
        (Where(type="torch.nn.modules.conv.Conv2d"), ["conv.weight", "conv.bias"]),
        (Where(type="_ConvNd"), ["conv.weight", "conv.bias"]),
        (Where(type="Conv"), []),
        (Where(type=("Embedding", Special)), ["second.weight", "second.bias", "embed.weight"]),
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
        ("first.*", "zeros"),
        (lambda name, module, parameter: True, "zeros"),
        ("*", "zeros"),
    ]
    with pytest.warns(UserWarning, match=r"no parameter matches rule 'conv\.\*', rule 'first\.\*', rule '\*'$"):
        ruled = _ruled(rules)
    assert ruled == dict(zip(ZOO, (4, 4, 4, 3, 1, 0, 6), strict=True))


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
    assert kept == ["first.weight", "first.bias", "embed.weight"]
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
    whole = nn.ParameterDict({"w": nn.Parameter(torch.empty(shape))})
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
        (lambda: Where(), ValueError, "select: expected a name, regex, type, shape, dims or requires_grad, got none"),
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


def test_rules_of_a_recipe_may_match_nothing() -> None:
    recipe = fastinit.Recipe("normal", [("nowhere", "zeros")])
    fastinit.plan(Zoo(), recipe, strict=True)
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
        self.gamma = nn.Parameter(torch.full((6,), 7.0))


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
            self.gamma = nn.Parameter(torch.full((6,), 7.0))
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
