"""muP: its table of roles, widths and learning rates against Tensor Programs V, and what it does to training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import fastinit
from fastinit.recipes.width_scaling import MuPRow
from fastinit.schemes import distributions
from fastinit.schemes.base import Scheme

# Position tables and tokens are their author's. No rule covers them here.
pytestmark = pytest.mark.filterwarnings("ignore::fastinit.UncoveredWarning")

INPUTS, CLASSES, BASE = 5, 3, 16


class MLP(nn.Module):
    def __init__(self, width: int, device: str | None = None) -> None:
        super().__init__()
        self.first = nn.Linear(INPUTS, width, device=device)
        self.hidden = nn.Linear(width, width, device=device)
        self.norm = nn.LayerNorm(width, device=device)
        self.last = nn.Linear(width, CLASSES, device=device)

    def forward(self, x: torch.Tensor, output_factor: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.relu(self.hidden(torch.relu(self.first(x))))
        return hidden, self.last(hidden * output_factor)


def rows_of(recipe: fastinit.MuP) -> dict[str, MuPRow]:
    return {row.name: row for row in recipe.rows}


def stds(model: nn.Module, scheme: str | Scheme | fastinit.Recipe) -> dict[str, float]:
    return {row.name: row.distribution.std() for row in fastinit.plan(model, scheme).rows if row.distribution}


def kinds(model: nn.Module, scheme: str | Scheme | fastinit.Recipe) -> dict[str, type[distributions.Distribution]]:
    return {row.name: type(row.distribution) for row in fastinit.plan(model, scheme).rows if row.distribution}


# name: role, widths, std factor, output factor, Adam, SGD, at m times the width.
TABLE_3: dict[str, Callable[[float], tuple[Any, ...]]] = {
    "first.weight": lambda m: ("input", 1, m, 1, 1, 1, m),
    "first.bias": lambda m: ("vector", 1, m, 1, 1, 1, m),
    "hidden.weight": lambda m: ("hidden", m, m, m**-0.5, 1, 1 / m, 1),
    "hidden.bias": lambda m: ("vector", 1, m, 1, 1, 1, m),
    "norm.weight": lambda m: ("vector", 1, m, 1, 1, 1, m),
    "norm.bias": lambda m: ("vector", 1, m, 1, 1, 1, m),
    "last.weight": lambda m: ("output", m, 1, 1 / m, 1, 1 / m, 1 / m),
    "last.bias": lambda m: ("fixed", 1, 1, 1, 1, 1, 1),
}
TABLE_8 = {**TABLE_3, "last.weight": lambda m: ("output", m, 1, 1, 1 / m, 1, m)}


@pytest.mark.parametrize("times", [0.5, 2, 4, 8])
@pytest.mark.parametrize("output_multiplier", [False, True])
def test_roles_and_multipliers_of_an_mlp(times: float, output_multiplier: bool) -> None:
    wide = MLP(int(BASE * times))
    for base in (MLP(BASE), MLP(BASE, device="meta")):
        recipe = fastinit.mup(wide, base, "kaiming_normal", output_multiplier=output_multiplier)
        table = TABLE_8 if output_multiplier else TABLE_3
        assert list(rows_of(recipe)) == [name for name, _ in wide.named_parameters()] == list(table)
        for row in recipe.rows:
            assert row.shape == tuple(wide.get_parameter(row.name).shape)
            assert row[2] == table[row.name](times)[0]
            assert row[3:] == pytest.approx(table[row.name](times)[1:], rel=1e-15), row.name


@pytest.mark.parametrize("scheme", ["kaiming_normal", "xavier_uniform", "lecun_normal", fastinit.Normal(std=0.02)])
@pytest.mark.parametrize("output_multiplier", [False, True])
def test_std_at_growing_widths(scheme: str | Scheme, output_multiplier: bool) -> None:
    at_base = stds(MLP(BASE), scheme)
    for times in (1, 2, 4, 8):
        wide = MLP(BASE * times)
        recipe = fastinit.mup(wide, MLP(BASE), scheme, output_multiplier=output_multiplier)
        assert kinds(wide, recipe) == kinds(wide, scheme)
        found = stds(wide, recipe)
        assert found["first.weight"] == pytest.approx(at_base["first.weight"], rel=1e-12)
        assert found["hidden.weight"] == pytest.approx(at_base["hidden.weight"] * times**-0.5, rel=1e-12)
        power = 0 if output_multiplier else -1
        assert found["last.weight"] == pytest.approx(at_base["last.weight"] * times**power, rel=1e-12)
        assert found["hidden.bias"] == 0.0 and found["norm.weight"] == 0.0


def test_tables_3_and_8_are_equivalent() -> None:
    """Lemma J.1: a multiplier times t, std / t, SGD's learning rate / t^2 and Adam's / t change nothing."""
    wide = MLP(BASE * 4)
    three, eight = (rows_of(fastinit.mup(wide, MLP(BASE), "normal", output_multiplier=each)) for each in (False, True))
    for name, row in three.items():
        t = eight[name].output_factor / row.output_factor
        assert (eight[name].std_factor, eight[name].sgd, eight[name].adam) == pytest.approx(
            (row.std_factor / t, row.sgd / t**2, row.adam / t), rel=1e-15
        )


def test_one_step_of_sgd_and_of_adam_is_the_same_under_both_tables() -> None:
    x, labels = torch.randn(8, INPUTS, dtype=torch.float64), torch.arange(8) % CLASSES
    for optimizer in ("sgd", "adam"):
        outputs = []
        for output_multiplier in (False, True):
            model = MLP(BASE * 4).double()
            recipe = fastinit.mup(model, MLP(BASE), "kaiming_normal", output_multiplier=output_multiplier)
            fastinit.init_model_(model, recipe, seed=0)
            factor = rows_of(recipe)["last.weight"].output_factor
            groups = recipe.parameter_groups(model, 1e-2, optimizer)  # type: ignore[arg-type]
            # Without eps Adam's steps do not depend on the size of the gradient.
            steps: Any = torch.optim.SGD(groups) if optimizer == "sgd" else torch.optim.Adam(groups, eps=1e-30)
            for _ in range(3):
                steps.zero_grad()
                functional.cross_entropy(model(x, factor)[1], labels).backward()
                steps.step()
            outputs.append((model(x)[0], model.last.weight * factor))
        for three, eight in zip(*outputs, strict=True):
            assert torch.allclose(three, eight, rtol=1e-9, atol=1e-12), optimizer


def mu_adam(ninf: int, fan_in: float, fan_out: float) -> float:
    """microsoft/mup: matrices of two infinite dimensions lr / width_mult, all others lr."""
    return 1.0 / fan_in if ninf == 2 else 1.0


def mu_sgd(ninf: int, fan_in: float, fan_out: float) -> float:
    """microsoft/mup: vector-like lr * width_mult, matrix-like lr / (fan_in_mult / fan_out_mult)."""
    return fan_out / fan_in if ninf == 2 else max(fan_in, fan_out) if ninf == 1 else 1.0


def test_learning_rates_under_table_8_are_those_of_microsoft_mup() -> None:
    wide = nn.Sequential(nn.Linear(5, 32), nn.Linear(32, 24), nn.LayerNorm(24), nn.Linear(24, 3))
    base = nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    recipe = fastinit.mup(wide, base, "normal", output_multiplier=True)
    for name, parameter in wide.named_parameters():
        ratios = [a / b for a, b in zip(parameter.shape, base.get_parameter(name).shape, strict=True)]
        fan_out, fan_in = (ratios[0], ratios[1]) if len(ratios) == 2 else (ratios[0], 1.0)
        ninf = sum(ratio != 1.0 for ratio in ratios)
        assert recipe.learning_rates("adam")[name] == mu_adam(ninf, fan_in, fan_out), name
        assert recipe.learning_rates("sgd")[name] == mu_sgd(ninf, fan_in, fan_out), name


class Transformer(nn.Module):
    def __init__(self, width: int, vocabulary: int = 20, tied: bool = False, head_first: bool = False) -> None:
        super().__init__()
        if head_first:
            self.head = nn.Linear(width, vocabulary, bias=False)
        self.embed = nn.Embedding(vocabulary, width)
        self.pos_embed = nn.Parameter(torch.zeros(1, 7, width))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_table = nn.Parameter(torch.zeros(9, width))
        self.block = nn.TransformerEncoderLayer(width, 2, 4 * width)
        if not head_first:
            self.head = nn.Linear(width, vocabulary, bias=False)
        if tied and head_first:
            self.embed.weight = self.head.weight
        elif tied:
            self.head.weight = self.embed.weight


def test_roles_of_a_transformer() -> None:
    rows = rows_of(fastinit.mup(Transformer(32), Transformer(8), "xavier_uniform"))
    roles = {name: row.role for name, row in rows.items() if len(row.shape) > 1}
    assert roles == {
        "embed.weight": "input",
        "pos_embed": "vector",
        "cls_token": "vector",
        "position_table": "vector",
        "block.self_attn.in_proj_weight": "hidden",
        "block.self_attn.out_proj.weight": "hidden",
        "block.linear1.weight": "hidden",
        "block.linear2.weight": "hidden",
        "head.weight": "output",
    }
    for name in ("embed.weight", "pos_embed", "cls_token", "position_table"):
        assert rows[name][5:] == (1.0, 1.0, 1.0, 4.0), name


def test_the_vocabulary_is_no_width() -> None:
    wide, base = nn.Embedding(100, 32), nn.Embedding(10, 8)
    recipe = fastinit.mup(wide, base, "normal")
    assert recipe.rows[0][2:] == ("input", 1.0, 4.0, 1.0, 1.0, 1.0, 4.0)
    assert stds(wide, recipe)["weight"] == 1.0


@pytest.mark.parametrize("head_first", [False, True])
def test_tied_embedding_and_head_need_the_output_multiplier(head_first: bool) -> None:
    wide, base = (Transformer(width, tied=True, head_first=head_first) for width in (32, 8))
    first, second = ("head", "embed") if head_first else ("embed", "head")
    with pytest.raises(ValueError, match=rf"^{second}\.weight: is tied to {first}\.weight.*output_multiplier=True"):
        fastinit.mup(wide, base, "normal")
    recipe = fastinit.mup(wide, base, fastinit.Normal(std=0.5), output_multiplier=True)
    rows = rows_of(recipe)
    assert rows["head.weight"].role == "output" and rows["head.weight"].output_factor == 0.25
    assert rows["embed.weight"].role == "input" and rows["embed.weight"].output_factor == 1.0
    assert rows["head.weight"][7:] == rows["embed.weight"][7:] == (1.0, 4.0)
    assert stds(wide, recipe)[f"{first}.weight"] == 0.5
    groups = recipe.parameter_groups(wide, 1.0, "sgd")
    assert sum(len(group["params"]) for group in groups) == len(list(wide.parameters()))
    shapes = {name: parameter.shape for name, parameter in base.named_parameters()}
    assert fastinit.mup(wide, shapes, "normal", output_multiplier=True).rows == recipe.rows


def test_layers_that_are_shared_in_one_role_have_one_row() -> None:
    def model(width: int) -> nn.Module:
        made = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width)])
        made[1].weight = made[0].weight
        return made

    assert [row.name for row in fastinit.mup(model(8), model(4), "normal").rows] == ["0.weight", "0.bias", "1.bias"]


def experts(width: int, transposed: bool = False) -> nn.Module:
    module = nn.Module()
    module.is_transposed = transposed  # type: ignore[assignment]
    module.weight = nn.Parameter(torch.empty((6, width, 3) if transposed else (6, 3, width)))
    return module


@pytest.mark.parametrize(
    ("wide", "base", "expected"),
    [
        (nn.Conv2d(3, 32, 3), nn.Conv2d(3, 8, 3), ("input", 1, 4)),
        (nn.Conv2d(32, 64, 3), nn.Conv2d(8, 32, 3), ("hidden", 4, 2)),
        (nn.Conv2d(32, 3, 1), nn.Conv2d(8, 3, 1), ("output", 4, 1)),
        (nn.Conv2d(32, 32, 3, groups=32), nn.Conv2d(8, 8, 3, groups=8), ("input", 1, 4)),
        (nn.Conv2d(32, 32, 3, groups=4), nn.Conv2d(8, 8, 3, groups=4), ("hidden", 4, 4)),
        (nn.ConvTranspose2d(32, 3, 3), nn.ConvTranspose2d(8, 3, 3), ("output", 4, 1)),
        (nn.ConvTranspose2d(3, 32, 3), nn.ConvTranspose2d(3, 8, 3), ("input", 1, 4)),
        (nn.LSTM(5, 32), nn.LSTM(5, 8), ("input", 1, 4)),
        (experts(32), experts(8), ("output", 4, 1)),
        (experts(32, True), experts(8, True), ("output", 4, 1)),
        (nn.Linear(5, 3), nn.Linear(5, 3), ("fixed", 1, 1)),
    ],
    ids=str,
)
def test_roles_follow_what_the_module_computes(wide: nn.Module, base: nn.Module, expected: tuple[Any, ...]) -> None:
    row = fastinit.mup(wide, base, "normal").rows[0]
    assert (row.role, row.width_in, row.width_out) == expected


def shapes_of(model: nn.Module) -> dict[str, Sequence[int]]:
    return {name: list(parameter.shape) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("scheme", ["normal", "kaiming_normal", "orthogonal"])
def test_the_base_may_be_shapes(scheme: str) -> None:
    wide = MLP(64)
    by_module = fastinit.mup(wide, MLP(BASE), scheme)
    by_shapes = fastinit.mup(wide, shapes_of(MLP(BASE)), scheme)
    assert by_module.rows == by_shapes.rows
    assert stds(wide, by_module) == stds(wide, by_shapes)


@pytest.mark.parametrize("scheme", ["xavier_uniform", "orthogonal", "zer_o", fastinit.Normal(std=0.3)], ids=str)
def test_a_base_of_equal_width_changes_no_bit(scheme: str | Scheme) -> None:
    plain, parametrised = Transformer(8), Transformer(8)
    recipe = fastinit.mup(parametrised, Transformer(8, vocabulary=20), scheme)
    assert all(row[3:] == (1.0,) * 6 and row.role == "fixed" for row in recipe.rows)
    fastinit.init_model_(plain, scheme, fan="torch", seed=0)
    fastinit.init_model_(parametrised, recipe, seed=0)
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, parametrised.get_parameter(name)), name


@pytest.mark.parametrize("scheme", ["orthogonal", fastinit.Scaled("orthogonal", 3.0), "eye", "zer_o"], ids=str)
def test_schemes_of_the_shape_are_scaled_by_what_their_shape_leaves(scheme: str | Scheme) -> None:
    """An orthogonal matrix already shrinks as 1 / sqrt(width): a hidden one has the base's singular values."""
    base, wide = (nn.Sequential(nn.Linear(6, n), nn.Linear(n, n), nn.Linear(n, 4)) for n in (8, 32))
    fastinit.init_model_(base, scheme, seed=0)
    fastinit.init_model_(wide, fastinit.mup(wide, base, scheme), seed=0)

    def size(model: nn.Module, layer: int) -> float:
        return float(model.get_parameter(f"{layer}.weight").detach().square().mean().sqrt())

    for layer, expected in enumerate((1.0, 0.5, 0.25)):
        assert size(wide, layer) / size(base, layer) == pytest.approx(expected, rel=1e-5), layer


def gpt2(width: int, conv1d: bool = False) -> nn.Module:
    model = nn.ModuleDict({"wte": nn.Embedding(20, width), "h": nn.ModuleList()})
    for _ in range(3):
        block = nn.ModuleDict(
            {"mlp": nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})}
        )
        model["h"].append(block)  # type: ignore[operator]
    return model


def test_a_preset_under_mup() -> None:
    wide = gpt2(32)
    recipe = fastinit.mup(wide, gpt2(8), "gpt2")
    assert kinds(wide, recipe) == kinds(wide, "gpt2")
    found = stds(wide, recipe)
    assert found["wte.weight"] == 0.02
    assert found["h.1.mlp.c_fc.weight"] == pytest.approx(0.02 / 2, rel=1e-12)
    assert found["h.1.mlp.c_proj.weight"] == pytest.approx(0.02 / math.sqrt(6) / 2, rel=1e-12)


def test_rules_under_mup() -> None:
    wide, base = MLP(64), MLP(16)
    rules: list[Any] = [
        ("first.*", fastinit.KEEP),
        fastinit.Rule("hidden.weight", "kaiming_normal", fan=fastinit.Fans(50, 50)),
        fastinit.Rule("last.weight", "zeros"),
        fastinit.Rule("hidden.bias", fastinit.VarianceScaling(1.0, "fan_in", "normal"), fan="weight"),
    ]
    recipe = fastinit.mup(wide, base, fastinit.Recipe("normal", rules))
    before = wide.first.weight.clone()
    fastinit.init_model_(wide, recipe, seed=0)
    assert torch.equal(wide.first.weight, before) and not wide.last.weight.any()
    found = stds(wide, recipe)
    assert found["hidden.weight"] == pytest.approx(math.sqrt(2.0 / 50) / 2, rel=1e-12)
    for each in (base, shapes_of(base)):
        of_bias = stds(wide, fastinit.mup(wide, each, fastinit.Recipe("normal", rules)))["hidden.bias"]
        assert of_bias == pytest.approx(1 / 4, rel=1e-12)  # the base's, as a vector's
    assert rows_of(recipe)["first.weight"].adam == 1.0 and rows_of(recipe)["last.weight"].adam == 0.25


@pytest.mark.parametrize("scheme", ["xavier_uniform", fastinit.Normal(std=0.5), "orthogonal"], ids=str)
def test_split_rules_under_mup(scheme: str | Scheme) -> None:
    wide, base = (nn.ModuleDict({"qkv": nn.Linear(width, 3 * width)}) for width in (32, 8))
    rule = fastinit.Rule("qkv.weight", (scheme, fastinit.Scaled(scheme, 2.0), "zeros"), fan="module", split=3)
    recipe = fastinit.Recipe("normal", [rule])
    at_base = next(iter(fastinit.plan(base, recipe).rows)).distribution
    at_wide = next(iter(fastinit.plan(wide, fastinit.mup(wide, base, recipe)).rows)).distribution
    assert isinstance(at_base, distributions.Blocks) and isinstance(at_wide, distributions.Blocks)
    assert (at_wide.dim, at_wide.sizes) == (0, (32, 32, 32))
    for of_base, of_wide in zip(at_base.each, at_wide.each, strict=True):
        assert type(of_wide) is type(of_base)
        assert of_wide.std() == pytest.approx(0.5 * of_base.std(), rel=1e-12)


class Conv1D(nn.Module):
    """Stored as (in, out), like its namesake in transformers."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.nf = outputs
        self.weight = nn.Parameter(torch.empty(inputs, outputs))


def test_conv1d_of_gpt2_under_mup() -> None:
    wide, base = (nn.ModuleDict({"c_attn": Conv1D(3 * width, width)}) for width in (32, 8))
    for schemes in (("lecun_uniform",) * 3, ("normal", fastinit.Scaled("normal", 2.0), "zeros")):
        rule = fastinit.Rule("c_attn.weight", schemes, fan="module", split=3)
        recipe = fastinit.mup(wide, base, fastinit.Recipe("normal", [rule]))
        (row,) = fastinit.plan(wide, recipe).rows
        each = row.distribution.each if isinstance(row.distribution, distributions.Blocks) else (row.distribution,)
        if schemes[0] == "normal":
            assert isinstance(row.distribution, distributions.Blocks) and row.distribution.dim == 1
        expected = 8**-0.5 / 2 if schemes[0] != "normal" else 0.5
        assert each[0] is not None and each[0].std() == pytest.approx(expected, rel=1e-12)
    plain = fastinit.Recipe("lecun_uniform", fan="module")
    assert stds(wide, fastinit.mup(wide, base, plain))["c_attn.weight"] == pytest.approx(8**-0.5 / 2, rel=1e-12)
    with pytest.raises(ValueError, match=r"c_attn\.weight: fans of Conv1D: expected a base that is a module"):
        fastinit.mup(wide, shapes_of(base), plain)


def test_depthwise_convolutions_have_the_fans_of_the_base() -> None:
    wide, base = (nn.Conv2d(width, width, 3, groups=width) for width in (32, 8))
    recipe = fastinit.Recipe(fastinit.VarianceScaling(1.0, "fan_out", "normal"), fan="module")
    assert stds(wide, fastinit.mup(wide, base, recipe))["weight"] == pytest.approx(1 / 3, rel=1e-12)


@pytest.mark.filterwarnings("ignore::fastinit.KeptWarning")
def test_loaded_weights_are_kept() -> None:
    wide = MLP(64)
    wide.hidden.weight._is_hf_initialized = True  # type: ignore[attr-defined]
    before = wide.hidden.weight.clone()
    fastinit.init_model_(wide, fastinit.mup(wide, MLP(BASE), "normal"))
    assert torch.equal(wide.hidden.weight, before)


def test_mup_of_a_recipe_made_for_the_model() -> None:
    def stack(width: int) -> nn.Module:
        layer = nn.TransformerEncoderLayer(width, 2, 4 * width)
        return nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)

    wide, base = stack(32), stack(8)
    recipe = fastinit.mup(wide, base, fastinit.deepnorm(wide))
    at_base = stds(base, fastinit.deepnorm(base))
    for name, std in stds(wide, recipe).items():
        assert std == pytest.approx(at_base[name] / 2 if at_base[name] else 0.0, rel=1e-12), name
    assert kinds(wide, recipe) == kinds(base, fastinit.deepnorm(base))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_parameter_groups_hold_every_parameter_once(optimizer: Any) -> None:
    model = Transformer(32, tied=True)
    recipe = fastinit.mup(model, Transformer(8, tied=True), "normal", output_multiplier=True)
    groups = recipe.parameter_groups(model, 0.1, optimizer)
    rates = recipe.learning_rates(optimizer)
    found = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(found) == len(list(model.parameters()))
    assert len(groups) == len({group["lr"] for group in groups})
    for name, parameter in model.named_parameters():
        assert found[id(parameter)] == pytest.approx(0.1 * rates[name], rel=1e-15)
    torch.optim.AdamW(groups)


def test_parameter_groups_are_for_the_model_of_the_recipe() -> None:
    recipe = fastinit.mup(MLP(32), MLP(16), "normal")
    with pytest.raises(ValueError, match=r"^0\.weight: expected a parameter of the model that mup was called with"):
        recipe.parameter_groups(nn.Sequential(nn.Linear(3, 3)), 0.1)
    with pytest.raises(ValueError, match=r"optimizer: got 'adamw', did you mean 'adam'\? expected one of adam, sgd"):
        recipe.learning_rates("adamw")  # type: ignore[arg-type]


def test_the_table_is_aligned_and_complete() -> None:
    recipe = fastinit.mup(MLP(64), MLP(BASE), "normal", output_multiplier=True)
    title, *lines = str(recipe).splitlines()
    assert [line.split()[0] for line in lines] == [row.name for row in recipe.rows]
    columns = ("shape", "role", "width in", "width out", "std x", "output x", "Adam lr x", "SGD lr x")
    starts = [title.index(column) for column in columns]
    for line, row in zip(lines, recipe.rows, strict=True):
        cells = [line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
        assert cells[0] == "x".join(map(str, row.shape)) and cells[1] == row.role
        assert [float(cell) for cell in cells[2:]] == pytest.approx(row[3:], rel=1e-5)
        assert all(line[start - 1] == " " for start in starts)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ({}, r"^weight: expected a parameter of this name in the base model, found none"),
        ({"weight": (4, 4)}, r"^bias: expected a parameter of this name"),
        ({"weight": (4, 4, 1), "bias": (4,)}, r"^weight: expected 2 dimensions in the base model, got shape"),
        ({"weight": (4, 4), "bias": ()}, r"^bias: expected 1 dimensions"),
        ({"weight": (0, 4), "bias": (4,)}, r"^weight: expected a base of no empty dimension, got shape \(0, 4\)"),
        (nn.Conv1d(4, 4, 1), r"^weight: expected 2 dimensions"),
        (nn.Linear(4, 4, bias=False), r"^bias: expected a parameter of this name"),
    ],
    ids=str,
)  # fmt: skip
def test_bases_that_do_not_fit_are_refused(base: nn.Module | Mapping[str, Sequence[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fastinit.mup(nn.Linear(8, 8), base, "normal")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda model: fastinit.mup(None, model, "normal"), TypeError, "model: expected a torch.nn.Module"),
        (lambda model: fastinit.mup(model, None, "normal"), TypeError, "base: expected .* or a mapping .*, got None"),
        (lambda model: fastinit.mup(model, [(4, 4)], "normal"), TypeError, "base: expected"),
        (lambda model: fastinit.mup(model, model, None), TypeError, "scheme: expected"),
        (
            lambda model: fastinit.mup(model, model, "normal", output_multiplier="no"),
            TypeError,
            "output_multiplier: expected True or False, got 'no'",
        ),
        (
            lambda model: fastinit.mup(model, {"weight": 3, "bias": (4,)}, "normal"),
            ValueError,
            "weight: expected a shape in the base, got 3",
        ),
        (
            lambda model: fastinit.mup(model, {"weight": (4, -4), "bias": (4,)}, "normal"),
            ValueError,
            r"weight: expected a shape in the base, got \(4, -4\)",
        ),
        (lambda model: fastinit.mup(model, model, "normal").parameter_groups(None, 0.1), TypeError, "model: expected"),
        (lambda model: fastinit.mup(model, model, "normal").parameter_groups(model, "x"), TypeError, "lr: expected"),
    ],
)  # fmt: skip
def test_arguments_of_the_wrong_kind_are_named(
    call: Callable[[Any], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{message}"):
        call(nn.Linear(4, 4))


def test_rates_and_shapes_may_be_numbers_of_numpy_and_torch() -> None:
    recipe = fastinit.mup(nn.Linear(8, 8), {"weight": [4, np.int64(4)], "bias": (4,)}, "normal")
    for lr in (np.float32(0.5), torch.tensor(0.5)):
        groups = recipe.parameter_groups(nn.Linear(8, 8), lr)  # type: ignore[arg-type]
        assert [float(group["lr"]) for group in groups] == [0.25, 0.5]


def _head_and_layers(width: int) -> nn.Module:
    layers = nn.ModuleList([nn.Linear(8, width), nn.Linear(width, width), nn.Linear(width, width)])
    return nn.ModuleDict({"layers": layers, "head": nn.Linear(width, 10)})


@pytest.mark.parametrize("scheme", ["kaiming_normal", fastinit.Normal(std=0.5)], ids=str)
def test_names_of_the_whole_leave_the_rules_with_the_parameters_of_the_model(scheme: Any, tmp_path: Any) -> None:
    wide = _head_and_layers(64)
    recipe = fastinit.mup(wide, _head_and_layers(16), scheme)
    recipe.save(tmp_path / "recipe.toml")
    for made in (recipe, fastinit.load_recipe(tmp_path / "recipe.toml")):
        expected = [row.distribution for row in fastinit.plan(wide, made).rows]
        for names in ({"head": "lm_head"}, {"layers": "decoder.layers", "head": "out"}, lambda name: name[::-1]):
            assert [row.distribution for row in fastinit.plan(wide, made, names=names, layers=8).rows] == expected


def test_a_recipe_of_the_whole_serves_its_stages() -> None:
    whole = _head_and_layers(64)
    recipe = fastinit.mup(whole, _head_and_layers(16), "kaiming_normal")
    expected = {row.name: row.distribution for row in fastinit.plan(whole, recipe).rows}
    # The stage's layers.0 is no layers.0 of the whole, for which the recipe has a rule, too.
    stage = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64)]), "head": nn.Linear(64, 10)})
    rows = fastinit.plan(stage, recipe, names={"layers.0": "layers.1", "layers.1": "layers.2"}, layers=3).rows
    assert len(rows) == 6 and all(row.distribution == expected[row.name] for row in rows)


def test_letters_of_globs_in_names_stand_for_themselves() -> None:
    def make(width: int) -> nn.Module:
        shapes = {"a[0]": (width, width), "a*": (5, width), "aX": (width, 7), "a?": (width, width)}
        return nn.ParameterDict({name: nn.Parameter(torch.empty(shape)) for name, shape in shapes.items()})

    recipe = fastinit.mup(make(64), make(16), fastinit.Normal(std=1.0))
    assert stds(make(64), recipe) == {"a[0]": 0.5, "a*": 0.25, "aX": 1.0, "a?": 0.5}


def test_splits_into_unequal_blocks_need_schemes_without_fans() -> None:
    wide, base = (nn.ModuleDict({"qkv": nn.Linear(width, 2 * width)}) for width in (32, 8))
    rule = fastinit.Rule("qkv.weight", "xavier_uniform", split=(32, 16, 16))
    with pytest.raises(ValueError, match=r"^qkv\.weight: split: expected equal blocks.*\(32, 16, 16\)"):
        fastinit.mup(wide, base, fastinit.Recipe("normal", [rule]))
    recipe = fastinit.mup(
        wide, base, fastinit.Recipe("zeros", [fastinit.Rule("qkv.weight", "normal", split=(32, 16, 16))])
    )
    assert stds(wide, recipe)["qkv.weight"] == 0.5


def test_parametrised_weights_are_refused() -> None:
    wide, base = (nn.ModuleDict({"a": nn.utils.parametrizations.weight_norm(nn.Linear(n, n))}) for n in (8, 4))
    with pytest.raises(ValueError, match=r"^a\.weight: expected a weight that is a parameter itself"):
        fastinit.mup(wide, base, "normal")


def growth(make_groups: Callable[[nn.Module, nn.Module], Any], scheme_of: Callable[[MLP], Any]) -> tuple[float, float]:
    """How much more the hidden activations, and the output, change within five steps at width 1024 than at 64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, INPUTS, generator=generator)
    labels = torch.randint(CLASSES, (32,), generator=generator)
    changes = []
    for width in (64, 1024):
        model = MLP(width)
        fastinit.init_model_(model, scheme_of(model), seed=0)
        optimizer = torch.optim.Adam(make_groups(model, model))
        before = [each.detach() for each in model(x)]
        for _ in range(5):
            optimizer.zero_grad()
            functional.cross_entropy(model(x)[1], labels).backward()
            optimizer.step()
        after = [each.detach() for each in model(x)]
        changes.append([float((b - a).square().mean().sqrt()) for a, b in zip(before, after, strict=True)])
    return changes[1][0] / changes[0][0], changes[1][1] / changes[0][1]


def test_activations_and_outputs_change_alike_at_every_width() -> None:
    recipes: dict[int, fastinit.MuP] = {}

    def under_mup(model: MLP) -> fastinit.MuP:
        recipes[id(model)] = fastinit.mup(model, MLP(64, device="meta"), "kaiming_normal")
        return recipes[id(model)]

    level = growth(lambda model, _: recipes[id(model)].parameter_groups(model, 1e-3), under_mup)
    standard = growth(lambda model, _: [{"params": model.parameters(), "lr": 1e-3}], lambda _: "kaiming_normal")
    assert all(0.5 < each < 2.0 for each in level)
    assert all(each > 4.0 for each in standard)


def test_many_equal_layers_share_one_rule() -> None:
    def layers(count: int, width: int) -> nn.Module:
        return nn.ModuleList(nn.Linear(width, width, device="meta") for _ in range(count))

    recipe = fastinit.mup(layers(500, 1 << 14), layers(500, 1 << 10), "xavier_uniform")
    assert len(recipe.rows) == 1000 and len(recipe.rules) == 1
