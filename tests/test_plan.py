"""What a plan says of every parameter and buffer, and that it tells the truth."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from conftest import needs_native
from torch import nn

import fastinit
from fastinit.streams import canonical_name


class GemmaRMSNorm(nn.Module):
    """Computes x * (1 + weight), like its namesake."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((6,), 7.0))


class LlamaRMSNorm(GemmaRMSNorm):
    """Computes x * weight, like its namesake."""


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
        self.scale = nn.Parameter(torch.full((3,), 7.0))


@pytest.fixture
def mixed() -> Mixed:
    model = Mixed()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    return model


def test_plan_has_a_row_for_everything(mixed: Mixed) -> None:
    names = [row.name for row in fastinit.plan(mixed, "xavier_uniform").rows]
    expected = [name for name, _ in mixed.named_parameters(remove_duplicate=False)]
    expected += [name for name, _ in mixed.named_buffers()]
    assert sorted(names) == sorted(expected)


def test_plan_writes_nothing_and_draws_nothing(mixed: Mixed) -> None:
    state = torch.get_rng_state()
    print(fastinit.plan(mixed, "xavier_uniform"))
    assert torch.equal(state, torch.get_rng_state())
    assert all((parameter == 7.0).all() for parameter in mixed.parameters())


def test_default_treatment(mixed: Mixed) -> None:
    fastinit.init_model_(mixed, "xavier_uniform", seed=0)
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
    assert re.search(r"^scale .*no rule$", str(plan), re.MULTILINE)
    with pytest.raises(ValueError, match="strict: no rule covers scale"):
        fastinit.init_model_(mixed, "normal", strict=True)
    assert (mixed.linear.weight == 7.0).all()
    fastinit.init_model_(mixed, "normal", rules=[("scale", fastinit.KEEP)], strict=True)
    assert (mixed.scale == 7.0).all() and (mixed.linear.weight != 7.0).all()


def test_first_matching_rule_wins(mixed: Mixed) -> None:
    rules = [
        ("linear.*", fastinit.Constant(1.0)),
        (re.compile(r"weight$"), fastinit.Constant(2.0)),
        ((nn.Conv2d, nn.Linear), fastinit.Constant(3.0)),
        fastinit.Rule(lambda name, module, parameter: parameter.dim() == 1, "zeros"),
    ]
    fastinit.init_model_(mixed, "normal", rules=rules, seed=0)
    assert (mixed.linear.weight == 1.0).all() and (mixed.linear.bias == 1.0).all()
    assert (mixed.norm.weight == 2.0).all() and (mixed.conv.weight == 2.0).all()
    assert (mixed.conv.bias == 3.0).all()
    assert (mixed.scale == 0.0).all()
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
    records = json.loads(fastinit.plan(mixed, "xavier_uniform").to_json())
    linear = next(record for record in records if record["name"] == "linear.weight")
    assert linear["scheme"] == "xavier_uniform" and linear["shape"] == [4, 6]
    assert (linear["fan_in"], linear["fan_out"]) == (6, 4)
    assert linear["std"] == pytest.approx(math.sqrt(2.0 / 10))


def test_two_parameters_of_one_canonical_name_are_refused() -> None:
    model = nn.ModuleDict({"module": nn.Linear(2, 2, bias=False), "_orig_mod": nn.Linear(2, 2, bias=False)})
    with pytest.raises(ValueError, match=r"module\.weight and _orig_mod\.weight"):
        fastinit.plan(model, "normal")


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("module.layers.0.weight", "layers.0.weight"),
        ("_orig_mod.module.layers.0._checkpoint_wrapped_module.mlp.weight", "layers.0.mlp.weight"),
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
