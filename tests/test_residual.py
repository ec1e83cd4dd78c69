"""DeepNorm, T-Fixup, Fixup, ZerO and residual zeros: every parameter of real module structures against the papers'
numbers."""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard
from torch import nn
from torch.nn import functional

import fastinit
from fastinit import Recipe
from fastinit.schemes import distributions

WIDTH, HIDDEN = 12, 20


def nest(parameters: Mapping[str, Any]) -> nn.Module:
    """Modules by dotted names: a stand-in with the names of a published model."""
    root = nn.Module()
    for path, leaf in parameters.items():
        *parents, last = path.split(".")
        module = root
        for each in parents:
            if each not in module._modules:
                module.add_module(each, nn.Module())
            module = module.get_submodule(each)
        module.add_module(last, leaf)
    return root


def linears(prefix: str, layers: int, sizes: Mapping[str, tuple[int, int]]) -> dict[str, nn.Module]:
    """nn.Linear(in, out) of these names in every layer; `prefix` holds an {}."""
    return {
        f"{prefix.format(layer)}.{name}": nn.Linear(*size) for layer in range(layers) for name, size in sizes.items()
    }


SQUARE, UP, DOWN = (WIDTH, WIDTH), (WIDTH, HIDDEN), (HIDDEN, WIDTH)

# What every family calls its query, key, value, attention output and MLP; the stack's name and the rest.
FAMILIES: dict[str, tuple[str, str, str, str, str, dict[str, tuple[int, int]]]] = {
    "fairseq": (
        "decoder.layers.{}", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj",
        {"fc1": UP, "fc2": DOWN},
    ),
    "bert": (
        "bert.encoder.layer.{}", "attention.self.query", "attention.self.key", "attention.self.value",
        "attention.output.dense", {"intermediate.dense": UP, "output.dense": DOWN},
    ),
    "llama": (
        "model.layers.{}", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        {"mlp.gate_proj": UP, "mlp.up_proj": UP, "mlp.down_proj": DOWN},
    ),
    "t5": (
        "encoder.block.{}", "layer.0.SelfAttention.q", "layer.0.SelfAttention.k", "layer.0.SelfAttention.v",
        "layer.0.SelfAttention.o",
        {"layer.1.DenseReluDense.wi_0": UP, "layer.1.DenseReluDense.wi_1": UP, "layer.1.DenseReluDense.wo": DOWN},
    ),
    "torchtitan": (
        "layers.{}", "attention.wq", "attention.wk", "attention.wv", "attention.wo",
        {"feed_forward.w1": UP, "feed_forward.w2": DOWN, "feed_forward.w3": UP},
    ),
}  # fmt: skip


def family(name: str, layers: int) -> tuple[nn.Module, dict[str, str]]:
    """A stand-in, and the role of every parameter: "plain" (query, key), "scaled" or "other"."""
    stack, query, key, value, out, mlp = FAMILIES[name]
    attention = dict.fromkeys((query, key, value, out), SQUARE)
    model = nest({**linears(stack, layers, {**attention, **mlp}), "head.proj": nn.Linear(WIDTH, 7)})
    roles = {}
    for full_name, parameter in model.named_parameters():
        of_key = full_name.endswith((f"{query}.weight", f"{key}.weight"))
        scaled = full_name.endswith(tuple(f"{each}.weight" for each in (value, out, *mlp)))
        roles[full_name] = "bias" if parameter.dim() < 2 else "plain" if of_key or not scaled else "scaled"
    return model, roles


def stds(
    model: nn.Module,
    recipe: Recipe,
    kind: type[distributions.Distribution] = distributions.Normal,
    of_embeddings: type[distributions.Distribution] = distributions.Normal,
) -> dict[str, float]:
    """Of all rows, whose distributions are of this kind, or constant."""
    found = {}
    for row in fastinit.plan(model, recipe).rows:
        if row.distribution is not None:
            found[row.name] = row.distribution.std()
            wanted = of_embeddings if "embed" in row.name or row.name.startswith("shared") else kind
            whole = row.distribution
            rest = whole.rest if isinstance(whole, distributions.ZeroRow) else whole
            for each in rest.each if isinstance(rest, distributions.Blocks) else (rest,):
                assert isinstance(each, (wanted, distributions.Constant)), row.name
    return found


def assert_follows(model: nn.Module, recipe: Recipe, factors: Mapping[str, float], uniform: bool) -> None:
    """Every row is Xavier by its own shape times the factor of its name; a bias zero."""
    for row in fastinit.plan(model, recipe).rows:
        assert row.distribution is not None
        if row.tensor.dim() < 2:
            assert row.distribution == distributions.Constant(0.0), row.name
            continue
        rows, columns = row.tensor.shape
        expected = factors[row.name] * math.sqrt(2.0 / (rows + columns))
        assert row.distribution.mean() == 0.0
        assert isinstance(row.distribution, distributions.Uniform if uniform else distributions.Normal), row.name
        assert row.distribution.std() == pytest.approx(expected, rel=1e-12), row.name


@pytest.mark.parametrize("layers", [1, 5])
@pytest.mark.parametrize("name", list(FAMILIES))
def test_deepnorm_in_every_family_of_names(name: str, layers: int) -> None:
    model, roles = family(name, layers)
    beta = 1.0 / math.sqrt(math.sqrt(8 * layers))
    factors = {parameter: beta if role == "scaled" else 1.0 for parameter, role in roles.items()}
    assert sum(role == "scaled" for role in roles.values()) == layers * (2 + len(FAMILIES[name][5]))
    assert_follows(model, fastinit.deepnorm(model), factors, uniform=False)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_t_fixup_in_every_family_of_names(name: str) -> None:
    model, roles = family(name, 3)
    factor = (9 * 3) ** -0.25 if name == "fairseq" else 0.67 * 3**-0.25
    factors = {parameter: factor if role == "scaled" else 1.0 for parameter, role in roles.items()}
    assert_follows(model, fastinit.t_fixup(model), factors, uniform=True)


def test_deepnorm_leaves_no_bias_scaled() -> None:
    model, _ = family("fairseq", 2)
    for bias in (each for name, each in model.named_parameters() if name.endswith("bias")):
        nn.init.constant_(bias, 7.0)
    with pytest.warns(fastinit.ConstantWarning, match=r"are zero now: .*head\.proj\.bias \(7\)"):
        fastinit.init_model_(model, fastinit.deepnorm(model), seed=0)
    assert all((each == 0.0).all() for name, each in model.named_parameters() if name.endswith("bias"))


def blocks_of(model: nn.Module, recipe: Recipe, name: str) -> tuple[distributions.Distribution, ...]:
    row = next(row for row in fastinit.plan(model, recipe).rows if row.name == name)
    assert isinstance(row.distribution, distributions.Blocks)
    assert row.distribution.sizes == (WIDTH,) * 3
    return row.distribution.each


def encoder_of(layers: int, **arguments: Any) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, HIDDEN, dropout=0.0, batch_first=True, **arguments)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


def test_deepnorm_of_torch_encoder_scales_the_value_third_of_in_proj() -> None:
    model = encoder_of(12)
    recipe = fastinit.deepnorm(model)
    plain, beta = math.sqrt(1.0 / WIDTH), 0.3195  # the paper's beta for 12 layers: 96^-1/4
    for layer in range(12):
        q, k, v = blocks_of(model, recipe, f"layers.{layer}.self_attn.in_proj_weight")
        assert q == k and isinstance(q, distributions.Normal)
        assert q.mean() == 0.0 and q.std() == pytest.approx(plain, rel=1e-12)
        assert isinstance(v, distributions.Normal)
        assert v.std() == pytest.approx(96**-0.25 * plain, rel=1e-12)
        assert v.std() == pytest.approx(beta * plain, rel=1e-3)
    found = stds(model, recipe)
    for name in ("linear1", "linear2"):
        expected = 96**-0.25 * math.sqrt(2.0 / (WIDTH + HIDDEN))
        assert found[f"layers.3.{name}.weight"] == pytest.approx(expected, rel=1e-12)
    assert found["layers.3.self_attn.in_proj_bias"] == found["layers.3.linear1.bias"] == 0.0
    norm = next(row for row in fastinit.plan(model, recipe).rows if row.name == "layers.3.norm1.weight")
    assert norm.distribution == distributions.Constant(1.0)


# Encoder and decoder betas for (N, M), from the table of the paper.
@pytest.mark.parametrize(("n", "m", "encoder", "decoder"), [(12, 6, 0.4179, 0.3433), (3, 1, None, None)])
def test_deepnorm_counts_encoder_and_decoder_apart(
    n: int, m: int, encoder: float | None, decoder: float | None
) -> None:
    model = nn.Transformer(WIDTH, 2, n, m, HIDDEN, batch_first=True)
    recipe = fastinit.deepnorm(model)
    beta_e, beta_d = 0.87 * (n**4 * m) ** (-1 / 16), (12 * m) ** -0.25
    if encoder is not None and decoder is not None:
        assert (beta_e, beta_d) == (pytest.approx(encoder, abs=1e-4), pytest.approx(decoder, abs=1e-4))
    found, square = stds(model, recipe), math.sqrt(1.0 / WIDTH)
    rectangular = math.sqrt(2.0 / (WIDTH + HIDDEN))
    assert found["encoder.layers.0.linear2.weight"] == pytest.approx(beta_e * rectangular, rel=1e-12)
    assert found["decoder.layers.0.linear2.weight"] == pytest.approx(beta_d * rectangular, rel=1e-12)
    assert found[f"encoder.layers.{n - 1}.self_attn.out_proj.weight"] == pytest.approx(beta_e * square, rel=1e-12)
    for attention in ("self_attn", "multihead_attn"):
        assert found[f"decoder.layers.0.{attention}.out_proj.weight"] == pytest.approx(beta_d * square, rel=1e-12)
        q, k, v = blocks_of(model, recipe, f"decoder.layers.0.{attention}.in_proj_weight")
        assert q.std() == k.std() == pytest.approx(square, rel=1e-12)
        assert v.std() == pytest.approx(beta_d * square, rel=1e-12)


def test_t_fixup_of_encoder_and_decoder() -> None:
    n, m = 4, 2
    model = nest(
        {
            "encoder": encoder_of(n),
            "decoder": nn.TransformerDecoder(nn.TransformerDecoderLayer(WIDTH, 2, HIDDEN), m),
            "encoder.embed_tokens": nn.Embedding(50, WIDTH, padding_idx=1),
            "decoder.embed_tokens": nn.Embedding(40, WIDTH),
            "shared": nn.Embedding(30, WIDTH),
        }
    )
    recipe = fastinit.t_fixup(model)
    in_encoder, in_decoder = 0.67 * n**-0.25, (9 * m) ** -0.25
    square, rectangular = math.sqrt(1.0 / WIDTH), math.sqrt(2.0 / (WIDTH + HIDDEN))
    found = stds(model, recipe, distributions.Uniform)
    for name, expected in {
        "encoder.layers.0.linear1.weight": in_encoder * rectangular,
        "encoder.layers.3.self_attn.out_proj.weight": in_encoder * square,
        "decoder.layers.0.linear1.weight": in_decoder * rectangular,
        "decoder.layers.1.multihead_attn.out_proj.weight": in_decoder * square,
        "encoder.embed_tokens.weight": (9 * n) ** -0.25 * WIDTH**-0.5 * math.sqrt(49 / 50),  # a padding row of fifty
        "decoder.embed_tokens.weight": (9 * m) ** -0.25 * WIDTH**-0.5,
        "shared.weight": (9 * n) ** -0.25 * WIDTH**-0.5,
    }.items():
        assert found[name] == pytest.approx(expected, rel=1e-12), name
    for name, factor in (("encoder.layers.0.self_attn", in_encoder), ("decoder.layers.1.multihead_attn", in_decoder)):
        q, k, v = blocks_of(model, recipe, f"{name}.in_proj_weight")
        assert isinstance(v, distributions.Uniform)
        assert q.std() == k.std() == pytest.approx(square, rel=1e-12)
        assert v.std() == pytest.approx(factor * square, rel=1e-12)


def test_t_fixup_takes_a_head_called_decoder_for_no_stack() -> None:
    model, _ = family("bert", 4)
    model.add_module("cls", nest({"predictions.decoder": nn.Linear(WIDTH, 30)}))
    found = stds(model, fastinit.t_fixup(model), distributions.Uniform)
    expected = 0.67 * 4**-0.25 * math.sqrt(2.0 / (WIDTH + HIDDEN))
    assert found["bert.encoder.layer.0.output.dense.weight"] == pytest.approx(expected, rel=1e-12)
    assert found["cls.predictions.decoder.weight"] == pytest.approx(math.sqrt(2.0 / (WIDTH + 30)), rel=1e-12)


def test_only_layers_with_attention_are_counted() -> None:
    model, _ = family("llama", 2)
    model.add_module("features", nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(9))))
    found = stds(model, fastinit.deepnorm(model))
    expected = 16**-0.25 * math.sqrt(1.0 / WIDTH)
    assert found["model.layers.0.self_attn.o_proj.weight"] == pytest.approx(expected, rel=1e-12)


class Conv1D(nn.Module):
    """Stored as (in, out), like its namesake in transformers."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.nf = outputs
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))


def gpt2_stand_in(layers: int) -> nn.Module:
    model = nest({"wte": nn.Embedding(60, WIDTH), "ln_f": nn.LayerNorm(WIDTH)})
    for layer in range(layers):
        for name, outputs, inputs in (
            ("attn.c_attn", 3 * WIDTH, WIDTH),
            ("attn.c_proj", WIDTH, WIDTH),
            ("mlp.c_fc", HIDDEN, WIDTH),
            ("mlp.c_proj", WIDTH, HIDDEN),
        ):
            stand_in = nest({f"{layer}.{name}": Conv1D(outputs, inputs)})
            _merge(model, nest({"h": stand_in}))
    return model


def _merge(into: nn.Module, other: nn.Module) -> None:
    for name, module in other.named_children():
        if name in into._modules:
            _merge(into.get_submodule(name), module)
        else:
            into.add_module(name, module)


def test_deepnorm_of_gpt2_splits_conv1d_along_its_outputs() -> None:
    model = gpt2_stand_in(3)
    recipe = fastinit.deepnorm(model)
    row = next(row for row in fastinit.plan(model, recipe).rows if row.name == "h.1.attn.c_attn.weight")
    assert isinstance(row.distribution, distributions.Blocks)
    assert (row.distribution.dim, row.distribution.sizes) == (1, (WIDTH,) * 3)
    square = math.sqrt(1.0 / WIDTH)
    expected = [square, square, 24**-0.25 * square]
    assert [each.std() for each in row.distribution.each] == pytest.approx(expected, rel=1e-12)
    found = stds(model, recipe)
    rectangular = 24**-0.25 * math.sqrt(2.0 / (WIDTH + HIDDEN))
    assert found["h.2.mlp.c_fc.weight"] == pytest.approx(rectangular, rel=1e-12)
    assert found["h.2.mlp.c_proj.weight"] == pytest.approx(rectangular, rel=1e-12)


@pytest.mark.parametrize("make", [fastinit.deepnorm, fastinit.t_fixup])
def test_what_a_transformer_recipe_lacks_is_named(make: Callable[..., Recipe]) -> None:
    name = make.__name__
    with pytest.raises(ValueError, match=f"{name}: out: expected parameters of these names, found none: .*out_proj"):
        make(nn.Sequential(nn.Linear(3, 3)))
    layer = nn.TransformerEncoderLayer(WIDTH, 2, HIDDEN)
    with pytest.raises(ValueError, match=f"{name}: expected a model with a stack of numbered layers, found none"):
        make(layer)
    stack = nest(linears("layers.{}", 2, {"self_attn.out_proj": SQUARE, "fc1": UP}))
    with pytest.raises(ValueError, match=f"{name}: value: expected parameters"):
        make(stack)
    with pytest.raises(ValueError, match=f"{name}: mlp: expected parameters of these names, found none: mine"):
        make(encoder_of(2), mlp=("mine",))


def test_recipes_take_names_of_ones_own() -> None:
    model = nest(linears("block.{}", 2, {"a": SQUARE, "b": SQUARE, "c": UP}))
    recipe = fastinit.deepnorm(model, value=("*.a.weight",), fused=("none",), out=("*.b.weight",), mlp=("*.c.weight",))
    assert stds(model, recipe)["block.1.a.weight"] == pytest.approx(0.5 * math.sqrt(1.0 / WIDTH), rel=1e-12)


RECIPES: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Recipe]]] = {
    "deepnorm": (lambda: encoder_of(3), fastinit.deepnorm),
    "t_fixup": (lambda: nn.Transformer(WIDTH, 2, 2, 3, HIDDEN, batch_first=True), fastinit.t_fixup),
    "zer_o": (lambda: encoder_of(2), fastinit.zer_o),
    "residual_zeros": (lambda: encoder_of(2), lambda model: fastinit.residual_zeros(model, "kaiming_normal")),
    "fixup": (lambda: FixupResNet(FixupBlock, [2, 2]), fastinit.fixup),
}


@pytest.mark.parametrize("name", list(RECIPES))
def test_applying_a_recipe_twice_gives_the_same_bits(name: str) -> None:
    make_model, make_recipe = RECIPES[name]
    model = make_model()
    recipe = make_recipe(model)
    fastinit.init_model_(model, recipe, seed=3)
    once = {key: value.clone() for key, value in model.state_dict().items()}
    fastinit.init_model_(model, recipe, seed=3)
    fastinit.init_model_(model, make_recipe(model), seed=3, strict=True)
    assert all(torch.equal(value, once[key]) for key, value in model.state_dict().items())


def _rot13(name: str) -> str:
    return codecs.encode(name, "rot13")


@pytest.mark.parametrize("name", list(RECIPES))
def test_names_of_the_whole_leave_the_rules_with_the_parameters_of_the_model(name: str, tmp_path: Any) -> None:
    make_model, make_recipe = RECIPES[name]
    model = make_model()
    recipe = make_recipe(model)
    recipe.save(tmp_path / "recipe.json")
    for made in (recipe, fastinit.load_recipe(tmp_path / "recipe.json")):
        expected, renamed = fastinit.plan(model, made).rows, fastinit.plan(model, made, names=_rot13, layers=9).rows
        assert [row.name for row in renamed] == [_rot13(row.name) for row in expected]
        assert [(row.reason, row.distribution) for row in renamed] == [
            (row.reason, row.distribution) for row in expected
        ]
        assert any(row.reason.startswith("rule name") for row in renamed)


@pytest.mark.parametrize("make", [fastinit.deepnorm, fastinit.t_fixup, fastinit.fixup, fastinit.zer_o])
@pytest.mark.parametrize("model", [None, "model", nn.Linear], ids=str)
def test_what_is_no_model_is_refused(make: Any, model: Any) -> None:
    with pytest.raises(TypeError, match=r"^model: expected a torch\.nn\.Module, got (NoneType|str|type)$"):
        make(model)
    with pytest.raises(TypeError, match=r"^model: expected a torch\.nn\.Module"):
        fastinit.residual_zeros(model, "normal")


@pytest.mark.parametrize("globs", ["*.out.weight", None, 3, ("a", 3)], ids=str)
def test_globs_are_checked(globs: Any) -> None:
    for make in (fastinit.deepnorm, fastinit.t_fixup):
        for role in ("value", "fused", "out", "mlp"):
            with pytest.raises(TypeError, match=f"^{role}: expected a sequence of strings, got "):
                make(encoder_of(2), **{role: globs})
    for role in ("last", "last_norm"):
        with pytest.raises(TypeError, match=f"^{role}: expected a sequence of strings, got "):
            fastinit.residual_zeros(encoder_of(2), "normal", **{role: globs})


def test_the_scheme_for_embeddings_is_checked() -> None:
    with pytest.raises(ValueError, match=r"^embedding: got 'norml', did you mean 'normal'\? expected one of "):
        fastinit.zer_o(encoder_of(1), embedding="norml")
    for given in (None, 3, fastinit.Normal):
        with pytest.raises(TypeError, match=r"^embedding: expected the name of a scheme or a scheme, got "):
            fastinit.zer_o(encoder_of(1), embedding=given)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list(RECIPES))
def test_recipes_survive_being_written(name: str, tmp_path: Any) -> None:
    make_model, make_recipe = RECIPES[name]
    model = make_model()
    recipe = make_recipe(model)
    recipe.save(tmp_path / "recipe.toml")
    assert str(fastinit.plan(model, fastinit.load_recipe(tmp_path / "recipe.toml"), seed=0).to_json()) == str(
        fastinit.plan(model, recipe, seed=0).to_json()
    )


class FixupBlock(nn.Module):
    """The structure and the names of the authors' FixupBasicBlock."""

    convolutions = 2

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.bias1a = nn.Parameter(torch.full((1,), 7.0))
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bias1b = nn.Parameter(torch.full((1,), 7.0))
        self.bias2a = nn.Parameter(torch.full((1,), 7.0))
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.scale = nn.Parameter(torch.full((1,), 7.0))
        self.bias2b = nn.Parameter(torch.full((1,), 7.0))
        self.downsample = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = functional.relu(self.conv1(x + self.bias1a) + self.bias1b)
        out = self.conv2(out + self.bias2a) * self.scale + self.bias2b
        return functional.relu(out + (x if self.downsample is None else self.downsample(x + self.bias1a)))


class FixupBottleneck(nn.Module):
    """The structure and the names of the authors' FixupBottleneck."""

    convolutions = 3

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        middle = outputs // 4
        for name in ("bias1a", "bias1b", "bias2a", "bias2b", "bias3a", "scale", "bias3b"):
            self.register_parameter(name, nn.Parameter(torch.full((1,), 7.0)))
        self.conv1 = nn.Conv2d(inputs, middle, 1, bias=False)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, 1, bias=False)
        self.conv3 = nn.Conv2d(middle, outputs, 1, bias=False)
        self.downsample = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None


class FixupResNet(nn.Module):
    def __init__(self, block: Any, layers: list[int], width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bias1 = nn.Parameter(torch.full((1,), 7.0))
        inputs = width
        for stage, blocks in enumerate(layers):
            outputs = width * 2**stage
            stride = 1 if stage == 0 else 2
            made = [block(inputs, outputs, stride)] + [block(outputs, outputs) for _ in range(blocks - 1)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*made))
            inputs = outputs
        self.bias2 = nn.Parameter(torch.full((1,), 7.0))
        self.fc = nn.Linear(inputs, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.conv1(x) + self.bias1)
        for name, module in self.named_children():
            if name.startswith("layer"):
                x = module(x)
        logits: torch.Tensor = self.fc(x.mean((2, 3)) + self.bias2)
        return logits


@pytest.mark.parametrize(("block", "power"), [(FixupBlock, -0.5), (FixupBottleneck, -0.25)])
def test_fixup_of_a_residual_network(block: Any, power: float) -> None:
    model = FixupResNet(block, [2, 3, 4])
    last = f"conv{block.convolutions}.weight"
    for row in fastinit.plan(model, fastinit.fixup(model), strict=True).rows:
        assert row.distribution is not None
        if row.tensor.numel() == 1:
            value = 1.0 if row.name.endswith("scale") else 0.0
            assert row.distribution == distributions.Constant(value), row.name
        elif row.name.endswith(last) or row.name.startswith("fc."):
            assert row.distribution == distributions.Constant(0.0), row.name
        else:
            out, _, *kernel = row.tensor.shape
            he_out = math.sqrt(2.0 / (out * math.prod(kernel)))
            in_branch = re.search(r"\.conv\d\.weight$", row.name) is not None
            assert isinstance(row.distribution, distributions.Normal)
            assert row.distribution.std() == pytest.approx(he_out * (9**power if in_branch else 1.0), rel=1e-12)


def test_fixup_of_a_single_block_and_without_any() -> None:
    found = stds(FixupBlock(4, 4), fastinit.fixup(FixupBlock(4, 4)))
    assert found["conv1.weight"] == pytest.approx(math.sqrt(2.0 / 36), rel=1e-12) and found["conv2.weight"] == 0.0
    with pytest.raises(ValueError, match="fixup: expected residual branches with convolutions conv1 and conv2"):
        fastinit.fixup(nn.Sequential(nn.Conv2d(3, 3, 3)))


def test_fixup_of_fifty_blocks_keeps_the_signal_and_its_first_update_level() -> None:
    changes = {}
    for blocks in (5, 50):
        model = FixupResNet(FixupBlock, [blocks])
        fastinit.init_model_(model, fastinit.fixup(model), seed=0, backend="torch")
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(4, 3, 8, 8, generator=generator)
        nn.init.normal_(model.fc.weight, std=0.3, generator=generator)  # else the first step moves the classifier alone
        before = model(x)
        assert 0.05 < before.std() < 5.0
        functional.cross_entropy(before, torch.arange(4)).backward()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "layer" in name and parameter.dim() == 4:
                    parameter -= 1e-3 * parameter.grad  # type: ignore[operator]
        changes[blocks] = float((model(x) - before).detach().square().mean().sqrt())
    assert 0.5 < changes[50] / changes[5] < 2.0


def zer_o_matrix(out: int, inputs: int) -> np.ndarray[Any, Any]:
    """Algorithm 1 from scipy's Hadamard matrix, with the scale of the authors' code."""
    if out <= inputs:
        return np.eye(out, inputs)
    order = math.ceil(math.log2(out))
    corner: np.ndarray[Any, Any] = np.eye(out, 2**order) @ hadamard(2**order) @ np.eye(2**order, inputs)
    return corner * 2.0 ** (-order / 2)


def zer_o_kernel(out: int, inputs: int, *kernel: int) -> np.ndarray[Any, Any]:
    """Algorithm 2: the matrix at position floor(k / 2)."""
    values = np.zeros((out, inputs, *kernel))
    values[(slice(None), slice(None), *(size // 2 for size in kernel))] = zer_o_matrix(out, inputs)
    return values


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "shape",
    [(8, 8), (5, 9), (9, 5), (16, 5), (33, 32), (1, 1), (7, 1), (1, 7), (8, 3, 5), (3, 8, 4), (8, 8, 3, 3),
     (12, 5, 2, 4), (4, 6, 1, 1), (6, 4, 2, 3, 4)],
    ids=str,
)  # fmt: skip
def test_zer_o_is_the_papers_construction(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    given = torch.full(shape, 7.0, dtype=dtype)
    fastinit.init_([given], "zer_o", seed=0)
    expected = zer_o_matrix(*shape) if len(shape) == 2 else zer_o_kernel(*shape)
    assert torch.equal(given, torch.from_numpy(expected).to(dtype))


def test_a_linear_zer_o_network_keeps_norms() -> None:
    widths = [16, 16, 64, 64, 32]
    model = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))
    fastinit.init_model_(model, fastinit.zer_o(model))
    x = torch.randn(10, 16, generator=torch.Generator().manual_seed(0))
    widened = model[:3](x)
    assert torch.allclose(widened.norm(dim=1), x.norm(dim=1), rtol=1e-5)
    assert torch.equal(model(x), widened[:, :32])
    assert torch.linalg.matrix_rank(model[1].weight) == 16


def test_zer_o_of_a_transformer() -> None:
    model = nest({"encoder": encoder_of(2), "embed": nn.Embedding(30, WIDTH), "head": nn.Linear(WIDTH, 30)})
    fastinit.init_model_(model, fastinit.zer_o(model), seed=0, strict=True)
    q, k, v = model.get_parameter("encoder.layers.1.self_attn.in_proj_weight").detach().chunk(3)
    assert torch.equal(q, torch.eye(WIDTH)) and not k.any() and not v.any()
    assert torch.equal(model.get_parameter("encoder.layers.1.self_attn.out_proj.weight"), torch.eye(WIDTH))
    for name in ("encoder.layers.0.linear1.weight", "encoder.layers.0.linear2.weight", "head.weight"):
        weight = model.get_parameter(name)
        assert torch.equal(weight, torch.from_numpy(zer_o_matrix(*weight.shape)).float()), name
    assert model.get_parameter("embed.weight").std().item() == pytest.approx(0.02, rel=0.2)
    assert not model.get_parameter("encoder.layers.0.linear1.bias").any()


@pytest.mark.parametrize("name", ["bert", "llama", "torchtitan"])
def test_zer_o_of_unfused_attention(name: str) -> None:
    model, _ = family(name, 2)
    fastinit.init_model_(model, fastinit.zer_o(model))
    stack, query, key, value, out, _ = FAMILIES[name]
    for each, expected in ((query, torch.eye(WIDTH)), (key, 0), (value, 0), (out, torch.eye(WIDTH))):
        assert (model.get_parameter(f"{stack.format(1)}.{each}.weight") == expected).all(), each


def test_zer_o_takes_learned_tables_and_experts_for_no_maps() -> None:
    model = nest({"norm": nn.LayerNorm((3, 4, WIDTH))})
    for name, shape in {"pos_embed": (1, 9, WIDTH), "cls_token": (1, 1, WIDTH), "experts": (4, WIDTH, WIDTH)}.items():
        model.register_parameter(name, nn.Parameter(torch.zeros(shape)))
    model.register_parameter("position_embeddings", nn.Parameter(torch.zeros(9, WIDTH)))
    fastinit.init_model_(model, fastinit.zer_o(model, embedding=fastinit.Normal(std=0.5)), seed=0)
    for name in ("pos_embed", "cls_token", "experts", "position_embeddings"):
        assert 0.2 < model.get_parameter(name).std() < 0.8 and model.get_parameter(name).all(), name
    assert (model.get_parameter("norm.weight") == 1.0).all()


@pytest.mark.parametrize(("inputs", "out", "groups"), [(6, 6, 6), (6, 12, 6), (8, 4, 2), (4, 8, 2), (4, 12, 2)])
def test_zer_o_gives_every_group_a_matrix(inputs: int, out: int, groups: int) -> None:
    model = nn.Conv1d(inputs, out, 3, groups=groups, bias=False)
    fastinit.init_model_(model, fastinit.zer_o(model))
    for group in model.weight.detach().chunk(groups):
        assert torch.equal(group, torch.from_numpy(zer_o_kernel(*group.shape)).float())


def test_zer_o_gives_every_gate_a_matrix() -> None:
    model = nn.LSTM(5, 8)
    fastinit.init_model_(model, fastinit.zer_o(model))
    for gate in model.weight_hh_l0.detach().chunk(4):
        assert torch.equal(gate, torch.eye(8))
    for gate in model.weight_ih_l0.detach().chunk(4):
        assert torch.equal(gate, torch.from_numpy(zer_o_matrix(8, 5)).float())


def test_zer_o_widens_transposed_layouts_with_hadamard() -> None:
    model = nest({"c_fc": Conv1D(16, 4), "up": nn.ConvTranspose2d(4, 16, 3, bias=False)})
    fastinit.init_model_(model, fastinit.zer_o(model))
    expected = torch.from_numpy(zer_o_matrix(16, 4).T).float()
    assert torch.equal(model.get_parameter("c_fc.weight"), expected)
    assert torch.equal(model.get_parameter("up.weight")[:, :, 1, 1], expected)


@pytest.mark.parametrize("scheme", ["kaiming_normal", "orthogonal", fastinit.Normal(std=3.0)], ids=str)
def test_residual_zeros_make_a_pre_norm_transformer_the_identity(scheme: Any) -> None:
    x = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    stack = encoder_of(3, norm_first=True)
    layer = nn.TransformerEncoderLayer(WIDTH, 2, HIDDEN, dropout=0.0, batch_first=True, norm_first=True)
    for model in (stack, layer):
        fastinit.init_model_(model, scheme, fan="torch", seed=0)
        assert not torch.allclose(model(x), x, atol=0.1)
        fastinit.init_model_(model, fastinit.residual_zeros(model, scheme), seed=0)
        assert torch.equal(model(x), x)


class BatchNormBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return out


def test_residual_zeros_of_a_residual_network_zero_the_last_normalisation_alone() -> None:
    model = nest({"bn1": nn.BatchNorm2d(4), "layer1": nn.Sequential(BatchNormBlock(4), BatchNormBlock(4))})
    fastinit.init_model_(model, fastinit.residual_zeros(model, "kaiming_normal"), seed=0)
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.get_submodule("layer1")(x), x)
    for name, parameter in model.named_parameters():
        if ".conv" in name and name.endswith("weight"):
            assert parameter.std() > 0.1, name
        elif name.endswith("weight"):
            assert (parameter == (0.0 if "bn2" in name else 1.0)).all(), name


def test_residual_zeros_of_bottlenecks_leave_bn2_at_one() -> None:
    norms = {f"layer1.{block}.bn{norm}": nn.BatchNorm2d(4) for block in range(2) for norm in (1, 2, 3)}
    model = nest({**norms, "bn2": nn.BatchNorm2d(4)})
    fastinit.init_model_(model, fastinit.residual_zeros(model, "kaiming_normal"))
    for name, parameter in model.named_parameters():
        if name.endswith("weight"):
            assert (parameter == (0.0 if "bn3" in name else 1.0)).all(), name


def test_residual_zeros_come_before_the_rules_of_a_preset() -> None:
    model = gpt2_stand_in(2)
    recipe = fastinit.residual_zeros(model, "gpt2")
    found = stds(model, recipe)
    assert found["h.0.attn.c_proj.weight"] == found["h.1.mlp.c_proj.weight"] == 0.0
    assert found["h.0.attn.c_attn.weight"] == found["wte.weight"] == 0.02


def test_residual_zeros_need_branches() -> None:
    with pytest.raises(
        ValueError, match=r"residual_zeros: last: expected parameters of these names, found none: .*fc2"
    ):
        fastinit.residual_zeros(nn.Sequential(nn.Linear(3, 3)), "normal")
