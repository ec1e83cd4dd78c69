"""Presets of models that no package installs: small stand-ins with the published names, against the formulas."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import nn

import fastinit
from fastinit import presets
from fastinit.schemes.distributions import Chrono, Constant, Distribution, LogOfUniform, Normal, Orthogonal, Uniform


def stand_in(parts: dict[str, nn.Module | nn.Parameter]) -> nn.Module:
    """A model that has these modules and parameters under these names."""
    model = nn.Module()
    for name, part in parts.items():
        *path, last = name.split(".")
        at = model
        for each in path:
            if not hasattr(at, each):
                at.add_module(each, nn.Module())
            at = getattr(at, each)
        setattr(at, last, part)
    return model


def vector(*shape: int, frozen: bool = False) -> nn.Parameter:
    return nn.Parameter(torch.full(shape, 7.0), requires_grad=not frozen)


def linear(inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=bias)


def uniform(bound: float) -> Uniform:
    return Uniform(-bound, bound)


def numbers(distribution: Distribution) -> tuple[float, ...]:
    return distribution.mean(), distribution.std(), *distribution.bounds()


def check(model: nn.Module, recipe: str | fastinit.Recipe, wanted: Iterable[tuple[str, Any]]) -> fastinit.Plan:
    """Every parameter has the distribution, or the values, of the first pattern that is found in its name."""
    plan = fastinit.plan(model, recipe, seed=5, strict=True)
    plan.run_()
    wanted, used = list(wanted), set()
    for row in plan.rows:
        pattern, law = next(each for each in wanted if re.search(each[0], row.name))
        used.add(pattern)
        if law is None:
            assert row.action == "keep", row.name
            continue
        assert row.distribution is not None, row.name
        if isinstance(law, torch.Tensor):
            values = model.get_parameter(row.name)
            torch.testing.assert_close(values, law.float().view_as(values), rtol=1e-6, atol=1e-6, msg=row.name)
        else:
            assert type(row.distribution) is type(law), row.name
            assert numbers(row.distribution) == pytest.approx(numbers(law), rel=1e-9), row.name
    assert used == {pattern for pattern, _ in wanted}
    return plan


ZERO = Constant(0.0)
ONE = Constant(1.0)


@pytest.mark.parametrize("std", [None, 0.1])
def test_nanogpt(std: float | None) -> None:
    parts: dict[str, Any] = {"transformer.wte": nn.Embedding(50, 32), "transformer.wpe": nn.Embedding(8, 32)}
    for layer in range(3):
        at = f"transformer.h.{layer}"
        parts |= {f"{at}.ln_1": nn.LayerNorm(32, bias=False), f"{at}.attn.c_attn": linear(32, 96)}
        parts |= {f"{at}.attn.c_proj": linear(32, 32), f"{at}.mlp.c_proj": linear(128, 32, True)}
    sigma = std or 0.02
    wanted = [
        (r"ln_1", ONE), (r"bias$", ZERO), (r"c_proj", Normal(0.0, sigma / math.sqrt(6.0))), (r"", Normal(0.0, sigma)),
    ]  # fmt: skip
    check(stand_in(parts), presets.nanogpt(std=std), wanted)


def test_modded_nanogpt() -> None:
    parts: dict[str, Any] = {"embed": nn.Embedding(50, 32), "lm_head": linear(32, 64), "skip_weights": vector(2)}
    parts |= {f"value_embeds.{i}": nn.Embedding(50, 32) for i in range(3)}
    for layer in range(4):
        at = f"blocks.{layer}"
        parts |= {f"{at}.attn.qkv_w": vector(3, 64, 32), f"{at}.attn.lambdas": vector(2), f"{at}.lambdas": vector(2)}
        parts |= {f"{at}.attn.c_proj": linear(64, 32), f"{at}.mlp.c_fc": linear(32, 128)}
        parts |= {f"{at}.mlp.c_proj": linear(128, 32)}
    wanted = [
        (r"embed", Normal(0.0, 1.0)),
        (r"c_proj|lm_head", ZERO),
        (r"attn\.lambdas", Constant(0.5)),
        (r"blocks\.\d\.lambdas", torch.tensor([1.0, 0.0])),
        (r"skip_weights", ONE),
        (r"qkv_w|c_fc", uniform(math.sqrt(3.0) * 0.5 / math.sqrt(32.0))),
    ]
    check(stand_in(parts), "modded_nanogpt", wanted)


@pytest.mark.parametrize("keys", [32, 16])
def test_nanochat(keys: int) -> None:
    layers = 4
    parts: dict[str, Any] = {"transformer.wte": nn.Embedding(50, 32), "lm_head": linear(32, 50)}
    parts |= {"resid_lambdas": vector(layers), "x0_lambdas": vector(layers), "smear_gate": linear(24, 1)}
    parts |= {"smear_lambda": vector(1), "backout_lambda": vector(1), "value_embeds.1": nn.Embedding(50, keys)}
    for layer in range(layers):
        at = f"transformer.h.{layer}"
        parts |= {
            f"{at}.attn.c_q": linear(32, 32),
            f"{at}.attn.c_k": linear(32, keys),
            f"{at}.attn.c_v": linear(32, keys),
        }
        parts |= {f"{at}.attn.c_proj": linear(32, 32), f"{at}.attn.ve_gate": linear(12, 2)}
        parts |= {f"{at}.mlp.c_fc": linear(32, 128), f"{at}.mlp.c_proj": linear(128, 32)}
    bound = math.sqrt(3.0 / 32.0)
    depth = torch.arange(layers) / (layers - 1)
    wanted = [
        (r"wte", Normal(0.0, 0.8)),
        (r"lm_head", Normal(0.0, 0.001)),
        (r"c_proj|smear_lambda", ZERO),
        (r"backout_lambda", Constant(0.2)),
        (r"gate", Uniform(0.0, 0.02)),
        (r"c_fc", uniform(0.4 * bound)),
        (r"resid_lambdas", 1.15 - 0.10 * depth),
        (r"x0_lambdas", 0.20 - 0.15 * depth),
        (r"c_[qkv]|value_embeds", uniform(bound)),
    ]
    check(stand_in(parts), "nanochat", wanted)


def test_deepseek_v3_without_a_config() -> None:
    parts: dict[str, Any] = {
        "layers.0.mlp.gate.weight": vector(4, 32),
        "layers.0.mlp.experts.down_proj": vector(4, 32, 8),
    }
    parts |= {"layers.0.mlp.gate.e_score_correction_bias": vector(4), "layers.0.q_proj": linear(32, 32)}
    check(stand_in(parts), "deepseek_v3", [(r"correction_bias", ZERO), (r"", Normal(0.0, 0.006))])


def test_mamba2() -> None:
    parts: dict[str, Any] = {"backbone.embedding": nn.Embedding(50, 32), "backbone.norm_f": nn.RMSNorm(32)}
    for layer in range(3):
        at = f"backbone.layers.{layer}"
        parts |= {f"{at}.norm": nn.RMSNorm(32), f"{at}.mixer.in_proj": linear(32, 200), f"{at}.mixer.D": vector(8)}
        parts |= {f"{at}.mixer.A_log": vector(8), f"{at}.mixer.dt_bias": vector(8), f"{at}.mixer.norm": nn.RMSNorm(64)}
        parts |= {f"{at}.mixer.conv1d": nn.Conv1d(96, 96, 4, groups=96), f"{at}.mixer.out_proj": linear(64, 32)}
    model = stand_in(parts)
    wanted = [
        (r"embedding", Normal(0.0, 0.02)),
        (r"norm|\.D$", ONE),
        (r"A_log", LogOfUniform(1.0, 16.0)),
        (r"dt_bias", fastinit.TimeStep().distribution(fastinit.Context((8,)))),
        (r"in_proj", uniform(32.0**-0.5)),
        (r"out_proj", uniform(64.0**-0.5 / math.sqrt(3.0))),
        (r"conv1d", uniform(0.5)),
    ]
    check(model, "mamba2", wanted)
    of_range = fastinit.plan(model, presets.mamba2(model, a_range=(2.0, 3.0))).rows
    assert LogOfUniform(2.0, 3.0) in {row.distribution for row in of_range}
    with pytest.raises(TypeError, match=r"^a_range: expected two numbers, got 3$"):
        presets.mamba2(a_range=3)  # type: ignore[arg-type]


def rwkv7_vectors(layer: int, layers: int, channels: int, head: int) -> list[tuple[str, Any]]:
    """The vectors of one layer, by the formulas of the published code."""
    fall, rise = 1.0 - layer / layers, layer / (layers - 1)
    share = torch.arange(channels, dtype=torch.float64) / channels
    ramp = torch.linspace(-0.5, 0.5, channels, dtype=torch.float64)
    zigzag = torch.linspace(-1.0, 1.0, head, dtype=torch.float64).repeat(channels // head)
    zigzag = zigzag * zigzag.abs()
    at = rf"blocks\.{layer}\.att"
    return [
        (rf"{at}\.x_[rg]$", 1.0 - share ** (0.2 * fall)),
        (rf"{at}\.x_[wa]$", 1.0 - share ** (0.9 * fall)),
        (rf"{at}\.x_[kv]$", 1.0 - share ** (0.7 * fall)),
        (rf"blocks\.{layer}\.ffn\.x_k$", 1.0 - share**fall**4),
        (rf"{at}\.w0$", -6.0 + 6.0 * (ramp + 0.5) ** (1.0 + rise**0.3) + 0.5 + 2.5 * zigzag),
        (rf"{at}\.a0$", -0.19 + 0.3 * zigzag + 0.4 * ramp),
        (rf"{at}\.v0$", 0.73 - 0.4 * ramp),
        (rf"{at}\.k_k$", 0.71 - 0.1 * ramp),
        (rf"{at}\.ln_x\.weight$", Constant(((layer + 1) / layers) ** 0.7)),
    ]


@pytest.mark.parametrize("head", [64, 32])
def test_rwkv7(head: int) -> None:
    width, layers, words, rank = 128, 3, 512, 32
    parts: dict[str, Any] = {"emb": nn.Embedding(words, width), "head": linear(width, words)}
    parts["ln_out"] = nn.LayerNorm(width)
    for layer in range(layers):
        at = f"blocks.{layer}"
        parts |= {f"{at}.ln1": nn.LayerNorm(width), f"{at}.att.ln_x": nn.GroupNorm(width // head, width)}
        parts |= {f"{at}.att.x_{each}": vector(1, 1, width) for each in "rwkvag"}
        parts |= {f"{at}.att.{each}0": vector(1, 1, width) for each in "wav"}
        parts |= {f"{at}.att.{each}1": vector(width, rank) for each in "wavg"}
        parts |= {f"{at}.att.{each}2": vector(rank, width) for each in "wavg"}
        parts |= {f"{at}.att.{each}": vector(1, 1, width) for each in ("k_k", "k_a")}
        parts |= {f"{at}.att.r_k": vector(width // head, head), f"{at}.ffn.x_k": vector(1, 1, width)}
        parts |= {f"{at}.att.{each}": linear(width, width) for each in ("receptance", "key", "value", "output")}
        parts |= {f"{at}.ffn.key": linear(width, 4 * width), f"{at}.ffn.value": linear(4 * width, width)}
    wanted = [law for layer in range(layers) for law in rwkv7_vectors(layer, layers, width, head)] + [
        (r"^emb\.", uniform(1e-4)),
        (r"^head\.", Orthogonal(0.5 * math.sqrt(words / width), width, words)),
        (r"ln\w*\.weight$", ONE),
        (r"ln\w*\.bias$", ZERO),
        (r"att\.output|ffn\.value|att\.\w1$", ZERO),
        (r"att\.\w2$", Orthogonal(0.1, rank, width)),
        (r"att\.key", Orthogonal(0.1, width, width)),
        (r"att\.(receptance|value)", Orthogonal(1.0, width, width)),
        (r"ffn\.key", Orthogonal(1.0, width, 4 * width)),
        (r"k_a$", Constant(1.02)),
        (r"r_k$", Constant(-0.04)),
    ]
    check(stand_in(parts), presets.rwkv7(stand_in(parts), head_size=head), wanted)


def test_rwkv7_of_few_words_and_of_a_wrong_head() -> None:
    model = stand_in({"head": linear(64, 32)})
    check(model, "rwkv7", [(r"head", Orthogonal(0.5, 32, 64))])
    with pytest.raises(ValueError, match=r"^head_size: expected head_size >= 2, got 1$"):
        presets.rwkv7(model, head_size=1)


def test_dit() -> None:
    width = 32
    parts: dict[str, Any] = {
        "x_embedder.proj": nn.Conv2d(4, width, 2, 2),
        "pos_embed": vector(1, 16, width, frozen=True),
    }
    parts |= {"t_embedder.mlp.0": linear(256, width, True), "t_embedder.mlp.2": linear(width, width, True)}
    parts |= {"y_embedder.embedding_table": nn.Embedding(11, width), "final_layer.linear": linear(width, 32, True)}
    parts["final_layer.adaLN_modulation.1"] = linear(width, 2 * width, True)
    for layer in range(2):
        at = f"blocks.{layer}"
        parts |= {f"{at}.attn.qkv": linear(width, 3 * width, True), f"{at}.attn.proj": linear(width, width, True)}
        parts |= {
            f"{at}.mlp.fc1": linear(width, 4 * width, True),
            f"{at}.adaLN_modulation.1": linear(width, 6 * width, True),
        }
    model = stand_in(parts)

    def xavier(inputs: int, outputs: int) -> Uniform:
        return uniform(math.sqrt(6.0 / (inputs + outputs)))

    wanted = [
        (r"pos_embed", None),
        (r"bias$|adaLN_modulation|final_layer", ZERO),
        (r"t_embedder|embedding_table", Normal(0.0, 0.02)),
        (r"x_embedder", xavier(4 * 2 * 2, width)),
        (r"qkv", xavier(width, 3 * width)),
        (r"attn\.proj", xavier(width, width)),
        (r"fc1", xavier(width, 4 * width)),
    ]
    check(model, "dit", wanted)
    assert (model.pos_embed == 7.0).all()  # type: ignore[union-attr]


def unet_blocks(at: str, width: int) -> dict[str, Any]:
    """A residual and an attention block of guided-diffusion."""
    return {
        f"{at}.0.in_layers.0": nn.GroupNorm(4, width), f"{at}.0.in_layers.2": nn.Conv2d(width, width, 3),
        f"{at}.0.emb_layers.1": linear(64, width, True), f"{at}.0.out_layers.0": nn.GroupNorm(4, width),
        f"{at}.0.out_layers.3": nn.Conv2d(width, width, 3), f"{at}.1.norm": nn.GroupNorm(4, width),
        f"{at}.1.qkv": nn.Conv1d(width, 3 * width, 1), f"{at}.1.proj_out": nn.Conv1d(width, width, 1),
    }  # fmt: skip


OF_UNET = [
    (r"(in_layers\.0|out_layers\.0|norm|out\.0)\.weight", ONE),
    (r"(in_layers\.0|out_layers\.0|norm|out\.0)\.bias", ZERO),
    (r"in_layers\.2", uniform((16 * 9) ** -0.5)),
    (r"emb_layers", uniform(64.0**-0.5)),
    (r"qkv", uniform(16.0**-0.5)),
]


def test_unet() -> None:
    parts: dict[str, Any] = {"time_embed.0": linear(16, 64, True), "label_emb": nn.Embedding(10, 64)}
    parts |= unet_blocks("input_blocks.1", 16) | unet_blocks("output_blocks.0", 16)
    parts |= {"out.0": nn.GroupNorm(4, 16), "out.2": nn.Conv2d(16, 3, 3)}
    wanted = [
        (r"out_layers\.3|proj_out|^out\.2", ZERO),
        (r"label_emb", Normal(0.0, 1.0)),
        (r"time_embed", uniform(0.25)),
        *OF_UNET,
    ]
    check(stand_in(parts), "unet", wanted)


def test_controlnet() -> None:
    parts: dict[str, Any] = {"input_blocks.0.0": nn.Conv2d(4, 16, 3), "middle_block_out.0": nn.Conv2d(16, 16, 1)}
    parts |= {f"zero_convs.{i}.0": nn.Conv2d(16, 16, 1) for i in range(2)}
    parts |= {f"input_hint_block.{i}": nn.Conv2d(16, 16, 3) for i in range(0, 16, 2)}
    parts |= unet_blocks("input_blocks.1", 16)
    wanted = [
        (r"zero_convs|middle_block_out|input_hint_block\.14", ZERO),
        (r"input_hint_block|out_layers\.3", uniform((16 * 9) ** -0.5)),
        (r"input_blocks\.0", uniform(1.0 / 6.0)),
        (r"proj_out", uniform(0.25)),
        *OF_UNET,
    ]
    check(stand_in(parts), "controlnet", wanted)


def test_dinov2_by_its_authors_names() -> None:
    parts: dict[str, Any] = {"cls_token": vector(1, 1, 32), "pos_embed": vector(1, 17, 32), "mask_token": vector(1, 32)}
    parts |= {"register_tokens": vector(1, 4, 32), "patch_embed.proj": nn.Conv2d(3, 32, 4, 4), "norm": nn.LayerNorm(32)}
    for layer in range(2):
        at = f"blocks.{layer}"
        parts |= {f"{at}.attn.qkv": linear(32, 96, True), f"{at}.mlp.w12": linear(32, 64, True)}
        parts |= {f"{at}.ls1.gamma": vector(32), f"{at}.ls2.gamma": vector(32)}
    model = stand_in(parts)

    def wanted(factor: float) -> list[tuple[str, Any]]:
        return [
            (r"cls_token|register_tokens", Normal(0.0, 1e-6)),
            (r"mask_token|norm\.bias|blocks.*bias", ZERO),
            (r"norm\.weight", ONE),
            (r"gamma", Constant(factor)),
            (r"patch_embed", uniform(48.0**-0.5)),
        ]

    rest = ("pos_embed|qkv|w12", fastinit.Normal(std=0.02).distribution(fastinit.Context((3, 3))))
    check(model, "dinov2", [*wanted(1e-5), rest])
    check(model, presets.dinov2(model, layer_scale=0.1), [*wanted(0.1), rest])


def test_the_check_notices_another_law() -> None:
    model = stand_in({"w": vector(4, 4)})
    check(model, fastinit.Recipe(fastinit.Normal(std=0.02)), [("w", Normal(0.0, 0.02))])
    for wrong in (Normal(0.0, 0.021), uniform(0.02), torch.zeros(4, 4), None, Chrono(1.0, 2.0, 1, (1,))):
        with pytest.raises(AssertionError):
            check(model, fastinit.Recipe(fastinit.Normal(std=0.02)), [("w", wrong)])
    with pytest.raises(AssertionError):  # a pattern of no use
        check(model, fastinit.Recipe(fastinit.Normal(std=0.02)), [("w", Normal(0.0, 0.02)), ("v", ZERO)])
