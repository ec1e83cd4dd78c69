"""Presets of models of images and text, and of speech."""

from __future__ import annotations

import math
import re

from torch import nn

from fastinit.recipes.files import Recipe
from fastinit.recipes.presets.parts import check_given, check_positive, config_of, normal_of, shape_of
from fastinit.rules.select import Rule
from fastinit.rules.where import Where
from fastinit.schemes.base import Scheme
from fastinit.schemes.named import (
    Constant,
    DepthScaled,
    Normal,
    Own,
    Scaled,
    VarianceScaling,
    lecun_normal,
    xavier_uniform,
)


def clip(model: nn.Module | None = None, *, factor: float | None = None) -> Recipe:
    """Both towers of width d and L layers: q, k, v and fc2 std 1 / sqrt(2 L d); the attention's output 1 / sqrt(d); fc1
    1 / sqrt(2 d); class embedding 1 / sqrt(d); tokens, positions and patches 0.02; projections 1 / sqrt(inputs). All
    times `factor`. The temperature log(1 / 0.07).

    Radford et al. 2021, section 2.5; transformers 5.24, models/clip/modeling_clip.py, by whose names it goes. The
    factors, the std of patches and their positions and the temperature come from the configs of the model and of its
    towers.

    Raises:
        TypeError, ValueError: factor is no number > 0.
    """
    check_given(model)
    if factor is not None:
        check_positive("factor", factor)
    whole = factor if factor is not None else float(config_of(model, "initializer_factor", 1.0))
    rules = [Rule("*logit_scale", Constant(config_of(model, "logit_scale_init_value", math.log(1.0 / 0.07))))]
    for tower in ("text", "vision"):
        config = config_of(model, f"{tower}_config", None)
        of_tower = factor if factor is not None else float(getattr(config, "initializer_factor", whole))
        spread = getattr(config, "initializer_range", config_of(model, "initializer_range", 0.02))
        rules += _clip_tower(f"{tower}_model", of_tower, of_tower * (0.02 if tower == "text" else spread))
        shape = shape_of(model, rf"(^|\.){tower}_model\..*\.class_embedding$")
        if shape is not None:
            rules.append(Rule("*.class_embedding", Normal(std=of_tower * shape[0] ** -0.5)))
    return Recipe(
        VarianceScaling(whole * whole, "fan_in", "normal"),
        rules,
        name="clip",
        source="Radford et al. 2021, section 2.5; transformers, modeling_clip.py",
    )


def _clip_tower(name: str, factor: float, std: float) -> list[Rule]:
    """Rules for one tower, whose embeddings have this std."""

    def rule(end: str, scheme: Scheme) -> Rule:
        return Rule(re.compile(rf"(^|\.){name}\..*\.{end}\.weight$"), scheme)

    by_inputs = VarianceScaling(factor * factor, "fan_in", "normal")
    return [
        rule("(token|patch|position)_embedding", Normal(std=std)),
        rule("[qkv]_proj", DepthScaled(by_inputs)),
        rule("out_proj", by_inputs),
        rule("fc1", Scaled(by_inputs, 0.5**0.5)),
        # The width of the tower, as for q, k and v, and not the inputs of fc2.
        rule("fc2", DepthScaled(VarianceScaling(factor * factor, "fan_out", "normal"))),
    ]


def siglip(model: nn.Module | None = None, *, logit_scale: float = math.log(10.0), logit_bias: float = -10.0) -> Recipe:
    """xavier_uniform in attention and MLPs, biases of MLPs N(0, 1e-6^2); tokens and positions N(0, 1 / width);
    lecun_normal for patches and heads; the logits' temperature log 10 and bias -10.

    Zhai et al. 2023, section 3.2; transformers 5.24, models/siglip and siglip2, by whose names it goes. Two things are
    otherwise there: temperature and bias are zero, as for a checkpoint that is loaded next, and its lecun_normal_ does
    not truncate, so that its std is 1.137 times the formula's.

    Raises:
        TypeError: the model is no module, or logit_scale or logit_bias is no number.
    """
    check_given(model)
    by_inputs = VarianceScaling(1.0, "fan_in", "normal")
    rules = [
        Rule(re.compile(r"\.(token|position)_embedding\.weight$"), by_inputs),
        Rule(re.compile(r"\.((self_attn\.)?[qkv]_proj|self_attn\.out_proj|fc[12])\.weight$"), xavier_uniform()),
        Rule(re.compile(r"\.attention\.in_proj_weight$|\.head\.probe$"), xavier_uniform()),
        Rule(re.compile(r"\.fc[12]\.bias$"), Normal(std=1e-6)),
        Rule(re.compile(r"(^|\.)classifier\.weight$"), by_inputs),
        Rule(re.compile(r"(^|\.)logit_scale$"), Constant(logit_scale)),
        Rule(re.compile(r"(^|\.)logit_bias$"), Constant(logit_bias)),
    ]
    return Recipe(
        lecun_normal(), rules, name="siglip", source="Zhai et al. 2023, section 3.2; transformers, modeling_siglip*.py"
    )


def whisper(model: nn.Module | None = None, *, std: float | None = None) -> Recipe:
    """N(0, 0.02^2) for all maps and tables, the padding row zero; the encoder's sinusoids as its code computes them;
    the weights of a sum over layers all equal.

    transformers 5.24, models/whisper/modeling_whisper.py, whose config's init_std is used. Radford et al. 2022 do not
    say.

    Raises:
        TypeError, ValueError: the model is no module, or std is no finite number >= 0.
    """
    check_given(model)
    normal = normal_of(model, std, "init_std")
    rules = [Rule(Where(regex=r"(^|\.)encoder\.embed_positions\.weight$", requires_grad=False), Own())]
    shape = shape_of(model, r"(^|\.)layer_weights$")
    if shape is not None:
        rules.append(Rule(re.compile(r"(^|\.)layer_weights$"), Constant(1.0 / shape[0])))
    return Recipe(normal, rules, name="whisper", source="transformers, modeling_whisper.py")
