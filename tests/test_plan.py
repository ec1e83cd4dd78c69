"""What a plan says of every parameter and buffer, and that it tells the truth."""

from __future__ import annotations

import json
import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import needs_native, without_address
from torch import nn

import fastinit
from fastinit.run.names import canonical_name
from fastinit.run.streams import derive_stream
from fastinit.schemes import distributions

pytestmark = pytest.mark.filterwarnings("ignore::fastinit.UncoveredWarning")  # of `scale`, in `mixed`


class GemmaRMSNorm(nn.Module):
    """Computes x * (1 + weight), like its namesake."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (1.0 + self.weight)


class LlamaRMSNorm(GemmaRMSNorm):
    """Computes x * weight, like its namesake."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 6, padding_idx=2)
        self.linear = nn.Linear(6, 4)
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.LayerNorm(6)
        self.batch_norm = nn.BatchNorm2d(8)
        self.group_norm = nn.GroupNorm(2, 8)
        self.plain_norm = LlamaRMSNorm()
        self.centered_norm = GemmaRMSNorm()
        self.attention = nn.MultiheadAttention(6, 2)
        self.lstm = nn.LSTM(6, 5)
        self.head = nn.Linear(6, 10, bias=False)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.rand(3))


@pytest.fixture
def mixed() -> Mixed:
    model = Mixed()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    return model


def test_plan_has_a_row_for_everything(mixed: Mixed) -> None:
    names = [row.name for row in fastinit.plan(mixed, "xavier_uniform", fan="torch").rows]
    expected = [name for name, _ in mixed.named_parameters(remove_duplicate=False)]
    expected += [name for name, _ in mixed.named_buffers()]
    assert sorted(names) == sorted(expected)


def test_plan_writes_nothing_and_draws_nothing(mixed: Mixed) -> None:
    state = torch.get_rng_state()
    print(fastinit.plan(mixed, "xavier_uniform", fan="torch"))
    assert torch.equal(state, torch.get_rng_state())
    assert all((parameter == 7.0).all() for parameter in mixed.parameters())


def test_default_treatment(mixed: Mixed) -> None:
    fastinit.init_model_(mixed, "xavier_uniform", fan="torch", seed=0)
    zeros = ["linear.bias", "conv.bias", "norm.bias", "batch_norm.bias", "centered_norm.weight", "lstm.bias_ih_l0"]
    ones = ["norm.weight", "batch_norm.weight", "group_norm.weight", "plain_norm.weight"]
    matrices = ["linear.weight", "conv.weight", "attention.in_proj_weight", "lstm.weight_hh_l0"]
    there = dict(mixed.named_parameters())
    for name in [*zeros, "attention.in_proj_bias", "lstm.bias_hh_l0"]:
        assert (there[name] == 0.0).all(), name
    for name in ones:
        assert (there[name] == 1.0).all(), name
    for name in matrices:
        fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(there[name])
        bound = math.sqrt(6.0 / (fan_in + fan_out))
        assert 0.5 * bound < there[name].abs().max() <= bound, name
    assert (mixed.scale == 7.0).all()
    assert (mixed.batch_norm.running_var == 1.0).all()


def test_padding_row_is_zero_and_the_others_unchanged(mixed: Mixed) -> None:
    fastinit.init_model_(mixed, "normal", seed=0)
    whole = torch.empty(10, 6)
    fastinit.init_([whole], "normal", names=["embed.weight"], seed=0)
    whole[2] = 0.0
    assert torch.equal(mixed.embed.weight, whole)


@needs_native  # torch's values depend on the layout
@pytest.mark.parametrize("padding", [0, 4, 9])
def test_padding_row_of_a_transposed_embedding_is_zero(padding: int) -> None:
    embedding = nn.Embedding(10, 6, padding_idx=padding)
    embedding.weight = nn.Parameter(torch.empty(6, 10).t())
    fastinit.init_model_(embedding, "normal", seed=0)
    whole = torch.empty(10, 6)
    fastinit.init_([whole], "normal", names=["weight"], seed=0)
    whole[padding] = 0.0
    assert torch.equal(embedding.weight, whole)


def test_tied_parameters_are_written_once_under_their_first_name(mixed: Mixed) -> None:
    rows = {row.name: row for row in fastinit.plan(mixed, "normal").rows}
    assert rows["embed.weight"].action == "init"
    assert rows["head.weight"].action == "tied" and rows["head.weight"].reason == "tied to embed.weight"
    fastinit.init_model_(mixed, "normal", seed=0)
    alone = torch.empty(10, 6)
    fastinit.init_([alone], "normal", names=["embed.weight"], seed=0)
    alone[2] = 0.0
    assert torch.equal(mixed.head.weight, alone)


def test_uncovered_parameters_are_kept_reported_and_refused_if_strict(mixed: Mixed) -> None:
    plan = fastinit.plan(mixed, "normal")
    assert plan.uncovered == ("scale",)
    assert re.search(r"^scale .*its author's, and no code tells$", str(plan), re.MULTILINE)
    with pytest.raises(ValueError, match="strict: no rule covers scale"):
        fastinit.init_model_(mixed, "normal", strict=True)
    assert (mixed.linear.weight == 7.0).all()
    fastinit.init_model_(mixed, "normal", rules=[("scale", fastinit.KEEP)], strict=True)
    assert (mixed.scale == 7.0).all() and (mixed.linear.weight != 7.0).all()


def test_first_matching_rule_wins(mixed: Mixed) -> None:
    rules = [
        ("linear.*", fastinit.Constant(1.0)),
        (re.compile(r"weight$"), fastinit.Constant(2.0)),
        ("conv.*", fastinit.Constant(3.0)),
        fastinit.Rule(lambda name, module, parameter: parameter.dim() == 1, "zeros"),
    ]
    fastinit.init_model_(mixed, "normal", rules=rules, seed=0)
    assert (mixed.linear.weight == 1.0).all() and (mixed.linear.bias == 1.0).all()
    assert (mixed.norm.weight == 2.0).all() and (mixed.conv.weight == 2.0).all()
    assert (mixed.conv.bias == 3.0).all() and (mixed.scale == 0.0).all()
    assert (mixed.embed.weight[2] == 0.0).all() and (mixed.embed.weight[3] == 2.0).all()


def test_rules_that_match_nothing_warn_and_are_refused_if_strict(mixed: Mixed) -> None:
    with pytest.warns(UserWarning, match=r"no parameter matches rule 'encoder\.\*'"):
        fastinit.plan(mixed, "normal", rules=[("encoder.*", "zeros")])
    with pytest.raises(ValueError, match=r"no parameter matches rule 'encoder"):
        fastinit.plan(mixed, "normal", rules=[("scale", "zeros"), ("encoder.*", "zeros")], strict=True)


def test_rules_are_checked() -> None:
    with pytest.raises(TypeError, match="rules: expected Rule objects or"):
        fastinit.plan(nn.Linear(2, 2), "normal", rules=["weight"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="select: expected a glob"):
        fastinit.Rule(3, "zeros")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="did you mean 'zeros'"):
        fastinit.Rule("*", "zero")


def test_running_again_gives_the_same_bits_with_a_seed_and_others_without(mixed: Mixed) -> None:
    plan = fastinit.plan(mixed, "normal", seed=4)
    plan.run_()
    first = mixed.linear.weight.clone()
    plan.run_()
    assert torch.equal(first, mixed.linear.weight)
    unseeded = fastinit.plan(mixed, "normal")
    unseeded.run_()
    second = mixed.linear.weight.clone()
    unseeded.run_()
    assert not torch.equal(second, mixed.linear.weight)


def test_manual_seed_governs_runs_without_a_seed(mixed: Mixed) -> None:
    outcomes = []
    for _ in range(2):
        torch.manual_seed(5)
        fastinit.init_model_(mixed, "normal")
        outcomes.append(mixed.linear.weight.clone())
        generator = torch.Generator().manual_seed(6)
        fastinit.init_model_(mixed, "normal", generator=generator)
        outcomes.append(mixed.linear.weight.clone())
    assert torch.equal(outcomes[0], outcomes[2]) and torch.equal(outcomes[1], outcomes[3])
    assert not torch.equal(outcomes[0], outcomes[1])


def test_a_seed_leaves_the_global_generator_alone(mixed: Mixed) -> None:
    state = torch.get_rng_state()
    fastinit.init_model_(mixed, "normal", seed=0)
    assert torch.equal(state, torch.get_rng_state())


def test_plan_exports_json(mixed: Mixed) -> None:
    records = json.loads(fastinit.plan(mixed, "xavier_uniform", fan="torch").to_json())
    linear = next(record for record in records if record["name"] == "linear.weight")
    assert linear["scheme"] == "xavier_uniform" and linear["shape"] == [4, 6]
    assert (linear["fan_in"], linear["fan_out"]) == (6, 4)
    assert linear["std"] == pytest.approx(math.sqrt(2.0 / 10))


def test_two_parameters_of_one_canonical_name_are_refused() -> None:
    model = nn.ModuleDict({"_forward_module": nn.Linear(2, 2, bias=False), "_orig_mod": nn.Linear(2, 2, bias=False)})
    with pytest.raises(fastinit.ParameterError, match=r"_forward_module\.weight and _orig_mod\.weight"):
        fastinit.plan(model, "normal")


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("_orig_mod.layers.0._checkpoint_wrapped_module.mlp.weight", "layers.0.mlp.weight"),
        ("_forward_module.weight", "weight"),
        ("module.weight", "module.weight"),  # it may be the model's own
        ("layers.0._fsdp_wrapped_module.bias", "layers.0.bias"),
        ("conv.parametrizations.weight.original", "conv.weight"),
        ("parametrizations.weight.original1", "weight.1"),
        ("submodule.weight", "submodule.weight"),
    ],
)
def test_canonical_names(name: str, canonical: str) -> None:
    assert canonical_name(name) == canonical


def test_custom_schemes_can_be_registered() -> None:
    fastinit.register_scheme("test_small", lambda std=0.01: fastinit.Normal(0.0, std))
    with pytest.raises(ValueError, match="registered already"):
        fastinit.register_scheme("test_small", fastinit.Normal)
    tensor = torch.empty(1000)
    fastinit.init_([tensor], "test_small", seed=0)
    assert tensor.std() == pytest.approx(0.01, rel=0.1)


def test_a_plan_prints_as_an_aligned_table(mixed: Mixed) -> None:
    rules = [fastinit.Rule("attention.in_proj_weight", ("eye", "normal", "zeros"), "module", 3), ("scale", "ones")]
    plan = fastinit.plan(mixed, "xavier_uniform", rules, fan="torch")
    header, *lines = str(plan).splitlines()
    columns = ["name", "kind", "shape", "dtype", "device", "scheme", "fan in/out", "distribution", "std", "why"]
    assert re.split(r"  +", header) == columns
    starts = [header.index(f"{column} ") for column in columns[:-1]] + [header.index("why")]
    cells = {}
    for line in lines[: len(plan.rows)]:
        assert all(start == 0 or line[start - 2 : start] in ("  ", "") for start in starts), line
        found = [line[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)]
        cells[found[0]] = found[1:]
    assert list(cells) == [row.name for row in plan.rows]
    assert cells["linear.weight"] == [
        "Linear", "4x6", "float32", "cpu", "xavier_uniform", "6/4", "U[-0.774597, 0.774597]", "0.4472",
        "linear map of Linear",
    ]  # fmt: skip
    assert cells["attention.in_proj_weight"][4:] == [
        "eye | normal | zeros", "", "6: 1 on a diagonal | 6: N(0, 1^2) | 6: 0", "0.6211",
        "rule 'attention.in_proj_weight'",
    ]  # fmt: skip
    assert cells["head.weight"] == ["Linear", "10x6", "float32", "cpu", "tied", "", "", "", "tied to embed.weight"]
    assert cells["batch_norm.num_batches_tracked"][:5] == ["BatchNorm2d", "scalar", "int64", "cpu", "buffer"]
    assert cells["embed.weight"][6] == "U[-0.612372, 0.612372], row 2 zero"
    assert len({line.index(cells[line.split()[0]][-1], starts[-1]) for line in lines[: len(plan.rows)]}) == 1


def test_the_summary_counts_what_is_written_and_names_the_rest(mixed: Mixed) -> None:
    plan = fastinit.plan(mixed, "normal", [("conv.*", fastinit.KEEP)], seed=0)
    written = [row.tensor for row in plan.rows if row.action == "init"]
    assert plan.numel == sum(tensor.numel() for tensor in written) == 572
    assert plan.nbytes == 4 * plan.numel
    first, *others = plan.summary().splitlines()
    assert first.startswith(f"{len(written)} tensors, 572 elements, 0.0 MiB to write")
    assert others == [
        "not covered by any rule: scale",
        "kept: conv.weight, conv.bias",
        "buffers, kept: batch_norm.running_mean, batch_norm.running_var, batch_norm.num_batches_tracked",
        "tied to another: head.weight",
    ]
    assert str(plan).endswith(plan.summary())
    many = fastinit.plan(nn.ParameterList(nn.Parameter(torch.ones(2)) for _ in range(8)), "normal")
    assert many.summary().splitlines()[1] == "not covered by any rule: {0..7}"
    names = nn.ParameterDict({each: nn.Parameter(torch.ones(2)) for each in "abcdefgh"})
    assert fastinit.plan(names, "normal").summary().endswith("not covered by any rule: a, b, c, d, e, f and 2 more")


def test_bytes_are_those_of_the_dtype() -> None:
    plan = fastinit.plan(nn.Linear(100, 100, bias=False, dtype=torch.bfloat16), "normal")
    assert (plan.numel, plan.nbytes) == (10_000, 20_000)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"where": "linear.*"}, ["linear.weight", "linear.bias"]),
        ({"where": fastinit.Where(name="*.weight", dims=4)}, ["conv.weight"]),
        ({"where": fastinit.Where(shape=(4, None))}, ["linear.weight"]),
        ({"where": fastinit.Where(regex="^lstm.*hh")}, ["lstm.weight_hh_l0", "lstm.bias_hh_l0"]),
        ({"where": lambda row: row.fans == (27, 72)}, ["conv.weight"]),
        ({"action": "tied"}, ["head.weight"]),
        ({"action": "keep"}, ["scale", "norm.weight"]),
        ({"covered": False}, ["scale"]),
        ({"action": "keep", "covered": True}, ["norm.weight"]),
        ({"where": "s*", "action": "init"}, []),
        ({"where": "conv.*", "action": "init", "covered": True}, ["conv.weight", "conv.bias"]),
    ],
    ids=without_address,
)
def test_plans_are_filtered(mixed: Mixed, arguments: dict[str, Any], names: list[str]) -> None:
    plan = fastinit.plan(mixed, "xavier_uniform", [("norm.weight", fastinit.KEEP)], fan="torch", seed=1)
    filtered = plan.filter(**arguments)
    assert [row.name for row in filtered.rows] == names
    assert len(plan.rows) == len(plan.filter().rows)


@needs_native  # torch's values depend on the layout
def test_a_filtered_plan_writes_its_rows_alone_with_the_values_of_the_whole() -> None:
    whole, part = Mixed(), Mixed()
    for model in (whole, part):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(7.0)
        nn.utils.parametrizations.weight_norm(model.linear)
    plan = fastinit.plan(part, "kaiming_normal", seed=1)
    fastinit.plan(whole, "kaiming_normal", seed=1).run_()
    plan.filter(lambda row: row.name in ("linear.weight", "embed.weight", "conv.bias")).run_()
    for name, value in part.named_parameters():
        if name.startswith(("linear.parametrizations", "embed.", "conv.bias")):
            assert torch.equal(value, whole.get_parameter(name)), name
        elif not name.startswith(("linear", "conv.bias")):
            assert (value == 7.0).all(), name


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"where": 3}, TypeError, "where: expected a glob, a Where or a function of the row, got 3"),
        ({"where": fastinit.Where(type="Linear")}, ValueError, "where: expected a Where without a type and a role"),
        ({"where": fastinit.Where(role="bias")}, ValueError, "where: expected a Where without a type and a role"),
        ({"action": "kept"}, ValueError, "action: got 'kept', did you mean 'keep'? expected one of init, "),
    ],
    ids=str,
)
def test_arguments_of_filters_are_checked(
    mixed: Mixed, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        fastinit.plan(mixed, "normal").filter(**arguments)


def _numel(row: fastinit.Row) -> int:
    return row.tensor.numel()


@pytest.mark.parametrize(
    ("by", "key"),
    [
        ("name", lambda row: row.name),
        ("numel", _numel),
        ("bytes", lambda row: row.tensor.nbytes),
        ("std", lambda row: -1.0 if row.distribution is None else row.distribution.std()),
        ("fan_in", lambda row: -1 if row.fans is None else row.fans.fan_in),
        ("fan_out", lambda row: -1 if row.fans is None else row.fans.fan_out),
        ("action", lambda row: row.action),
        (_numel, _numel),
    ],
    ids=str,
)
class Infinite:
    """A scheme of a user, with an infinite number."""

    def distribution(self, context: fastinit.Context) -> Any:
        return distributions.Constant(-math.inf)


def _no_json(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def test_json_holds_no_infinities() -> None:
    model = nn.ParameterDict({name: nn.Parameter(torch.empty(4, 4)) for name in "abcd"})
    rules: list[Any] = [
        ("a", fastinit.TruncNormal(std=0.5, bounds=(-math.inf, math.inf))),
        ("b", fastinit.TruncNormal(bounds=(-math.inf, 0.0))),
        ("c", Infinite()),
        ("d", fastinit.Constant(math.nan)),
    ]
    records = json.loads(fastinit.plan(model, "normal", rules).to_json(), parse_constant=_no_json)
    assert [record["mean"] for record in records[:2]] == [0.0, pytest.approx(-math.sqrt(2.0 / math.pi))]
    assert [record["std"] for record in records[:2]] == [0.5, pytest.approx(math.sqrt(1.0 - 2.0 / math.pi))]
    assert [record["mean"] for record in records[2:]] == [None, None]
    assert records[0]["distribution"] == "N(0, 0.5^2) in [-inf, inf]" and records[2]["distribution"] == "-inf"


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.h = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.embed = nn.Embedding(5, 6, padding_idx=1)
        self.parametrised = nn.utils.parametrizations.weight_norm(nn.Linear(6, 4))
        self.fused = nn.Linear(6, 18)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_running_again_never_compounds(backend: str) -> None:
    model = Stack()
    rules: list[Any] = [
        ("h.*.weight", fastinit.DepthScaled(fastinit.scheme("xavier_uniform"), by="layer")),
        ("embed.*", fastinit.Scaled(fastinit.Normal(), 3.0)),
        fastinit.Rule("fused.weight", ("normal", fastinit.Scaled(fastinit.Orthogonal(), 2.0), "eye"), split=3),
    ]
    plan = fastinit.plan(model, "kaiming_normal", rules, seed=2, backend=backend)
    plan.run_()
    first = {name: value.clone() for name, value in model.state_dict().items()}
    weight = model.parametrised.weight.detach().clone()
    plan.run_()
    fastinit.plan(model, "kaiming_normal", rules, seed=2, backend=backend).run_()
    for name, value in model.state_dict().items():
        assert torch.equal(value, first[name]), name
    assert torch.equal(model.parametrised.weight, weight)
    assert (model.embed.weight[1] == 0.0).all() and (model.embed.weight[0] != 0.0).all()


def test_strict_lists_all_that_is_uncovered() -> None:
    model = nn.ParameterDict({f"scale{at}": nn.Parameter(torch.ones(3)) for at in range(10)})
    names = ", ".join(sorted(model))
    with pytest.raises(ValueError, match=f"^strict: no rule covers {names}$"):
        fastinit.plan(model, "normal", strict=True)
    with pytest.raises(ValueError, match=f"^strict: no rule covers {names.replace('scale3, ', '')}$"):
        fastinit.init_model_(model, "normal", [("scale3", "ones")], strict=True)
    assert all((parameter == 1.0).all() for parameter in model.values())


def test_a_plan_takes_presets_and_recipes_for_a_scheme(mixed: Mixed) -> None:
    by_name = fastinit.plan(mixed, "bert", seed=0)
    assert by_name.to_json() == fastinit.plan(mixed, fastinit.preset("bert", mixed), seed=0).to_json()
    assert by_name.to_json() == fastinit.plan(mixed, fastinit.Normal(std=0.02), seed=0).to_json()
    with pytest.raises(
        ValueError, match=r"^scheme: got 'brt', did you mean 'bert'\? expected one of uniform, .*, dcgan"
    ):
        fastinit.plan(mixed, "brt")
    with pytest.raises(TypeError, match="scheme: expected a name or a scheme object, got 3"):
        fastinit.plan(mixed, 3)  # type: ignore[arg-type]


def test_equal_layers_are_folded() -> None:
    def layer() -> nn.Module:
        experts = nn.ModuleList(nn.Linear(4, 8, bias=False) for _ in range(3))
        return nn.ModuleDict({"attn": nn.Linear(4, 12), "experts": experts})

    model = nn.ModuleDict({"embed": nn.Embedding(7, 4), "h": nn.ModuleList(layer() for _ in range(5))})
    model["h"][3]["attn"] = nn.Linear(4, 16)
    names = [line.split()[0] for line in str(fastinit.plan(model, "xavier_uniform")).splitlines()[1:-1]]
    assert names == [
        "embed.weight", "h.{0..2,4}.attn.weight", "h.{0..2,4}.attn.bias", "h.{0..4}.experts.{0..2}.weight",
        "h.3.attn.weight", "h.3.attn.bias",
    ]  # fmt: skip


def test_numbers_within_words_are_not_folded() -> None:
    model = nn.ModuleDict({f"conv{number}": nn.Linear(2, 2, bias=False) for number in range(3)})
    names = [line.split()[0] for line in str(fastinit.plan(model, "normal")).splitlines()[1:-1]]
    assert names == ["conv0.weight", "conv1.weight", "conv2.weight"]


def test_frozen_parameters_and_buffers_without_memory_are_shown() -> None:
    with torch.device("meta"):
        model = nn.BatchNorm1d(3)
    model.weight.requires_grad_(False)
    text = str(fastinit.plan(model, "normal"))
    assert re.search(r"^weight .*author: ones; frozen$", text, re.MULTILINE)
    assert re.search(r"^running_mean .*buffer: materialize_ restores it$", text, re.MULTILINE)
    assert "frozen, and written all the same: weight" in text
    assert "buffers without memory, for materialize_ to restore: running_mean, running_var, num_batches_tracked" in text


def test_a_lazy_module_that_is_kept_can_be_printed() -> None:
    plan = fastinit.plan(nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 3)), "normal", [("0.*", fastinit.KEEP)])
    assert re.search(r"^0\.weight +LazyLinear +lazy", str(plan), re.MULTILINE)
    assert json.loads(plan.to_json())[0]["shape"] is None


def test_a_row_tells_the_kind_of_module_as_its_author_wrote_it() -> None:
    parametrised = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    assert type(parametrised).__name__ == "ParametrizedLinear"
    assert {row.kind for row in fastinit.plan(parametrised, "normal").rows if row.action == "init"} == {"Linear"}


def test_prefixes_that_begin_no_name_are_refused() -> None:
    stage = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(4, 4, bias=False)])})
    with pytest.raises(ValueError, match=r"names: no parameter or buffer .*: layer\.0$"):
        fastinit.plan(stage, "normal", names={"layer.0": "layers.24"})
    with pytest.raises(TypeError, match="names: expected a mapping of names to names"):
        fastinit.plan(stage, "normal", names={"layers.0": 24})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"names: the function raised KeyError for layers\.0\.weight"):
        fastinit.plan(stage, "normal", names={}.__getitem__)


def test_a_rule_for_the_second_name_of_a_tie_is_explained() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(5, 4), "lm_head": nn.Linear(4, 5, bias=False)})
    model["lm_head"].weight = model["embed"].weight
    with pytest.warns(UserWarning, match=r"lm_head\.weight is tied to embed\.weight, whose name decides"):
        fastinit.plan(model, "normal", [("lm_head.weight", "zeros")])


def test_warnings_point_at_the_caller() -> None:
    calls: list[Callable[[], object]] = [
        lambda: fastinit.init_model_(nn.Linear(2, 2), "xavier_normal", [("typo", "zeros")]),
        lambda: fastinit.plan(nn.Linear(2, 2), "xavier_normal", [("typo", "zeros")]),
        lambda: fastinit.init_([torch.empty(9, dtype=torch.float16)], fastinit.Normal(std=1e-9), seed=0),
        lambda: fastinit.normal_(torch.empty(9, dtype=torch.float16), 0.0, 1e-9),
    ]
    for call in calls:
        with pytest.warns(UserWarning, match=r"matches|many values are the same") as caught:
            call()
        assert [each.filename for each in caught] == [__file__]


def test_values_that_vanish_are_said() -> None:
    with pytest.warns(UserWarning, match=r"^w: .* many values are the same"):
        fastinit.init_([torch.empty(9, dtype=torch.float16)], fastinit.Normal(std=1e-9), names=["w"], seed=0)


@pytest.mark.parametrize("seed", [np.int64(3), np.uint64(3), np.int8(3)])
def test_integers_of_numpy_are_seeds(seed: np.integer[Any]) -> None:
    given, wanted = torch.empty(5), torch.empty(5)
    fastinit.init_([given], "normal", seed=seed)  # type: ignore[arg-type]
    fastinit.init_([wanted], "normal", seed=3)
    assert torch.equal(given, wanted)


def test_errors_carry_the_name_and_can_be_pickled() -> None:
    with pytest.raises(fastinit.ParameterError) as caught:
        fastinit.init_([torch.empty(2, 2).to_sparse()], "normal", names=["w"], seed=0)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.name, again.problem, str(again)) == ("w", caught.value.problem, str(caught.value))
    assert isinstance(again, ValueError) and isinstance(again, TypeError)


# ---- the seed of one run ----


def test_a_run_takes_a_seed_of_its_own() -> None:
    first, other = nn.Linear(20, 30), nn.Linear(20, 30)
    for given in (5, np.int64(5), torch.tensor(5), torch.tensor([5], dtype=torch.uint64)):
        plan = fastinit.plan(first, "xavier_uniform", seed=1)
        plan.run_(seed=given)
        fastinit.init_model_(other, "xavier_uniform", seed=5)
        assert torch.equal(first.weight, other.weight)
        plan.run_()
        fastinit.init_model_(other, "xavier_uniform", seed=1)
        assert torch.equal(first.weight, other.weight)
    fastinit.plan(first, "orthogonal", generator=torch.Generator()).run_(seed=torch.tensor(-1))
    fastinit.init_model_(other, "orthogonal", seed=2**64 - 1)
    assert torch.equal(first.weight, other.weight)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.tensor(1.0), "one int64 or uint64 element, got torch.float32 of shape ()"),
        (torch.tensor([1, 2]), "one int64 or uint64 element, got torch.int64 of shape (2,)"),
        (torch.tensor(1, dtype=torch.int32), "got torch.int32"),
        (torch.empty((), dtype=torch.int64, device="meta"), "on the CPU or on a CUDA device, got one on meta"),
        (-1, "expected 0 <= seed < 2**64, got -1"),
        ("1", "expected an int or None, got str"),
        (True, "expected an int or None, got bool"),
    ],
)
def test_a_seed_of_a_run_that_is_none_is_refused(given: object, message: str) -> None:
    model = nn.Linear(4, 4)
    before = model.weight.detach().clone()
    plan = fastinit.plan(model, "xavier_uniform", seed=1)
    with pytest.raises((TypeError, ValueError), match=f"^seed: .*{re.escape(message)}"):
        plan.run_(seed=given)  # type: ignore[arg-type]
    assert torch.equal(model.weight, before)


def test_derived_seeds() -> None:
    names = [*range(50), *map(str, range(50)), "", "layer", "layer 1"]
    seeds = {fastinit.derive_seed(seed, name) for seed in range(50) for name in names}
    assert len(seeds) == 50 * len(names) and all(0 <= seed < 2**64 for seed in seeds)
    assert fastinit.derive_seed(3, "warm-up") == fastinit.derive_seed(3, "warm-up")
    assert max(seeds) > 2**63 > min(seeds)
    assert fastinit.derive_seed(3, "a") == derive_stream(3, "seed name:a").key  # docs/STREAM.md, section 1
    assert fastinit.derive_seed(3, -12) == derive_stream(3, "seed number:-12").key
    for seed, name in ((-1, "a"), (None, "a"), (1.0, "a"), (1, 1.0), (1, None), (1, True)):
        with pytest.raises((TypeError, ValueError), match="seed"):
            fastinit.derive_seed(seed, name)  # type: ignore[arg-type]
