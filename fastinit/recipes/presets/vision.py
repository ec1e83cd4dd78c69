"""Presets of image models: transformers, residual nets, GANs."""

from __future__ import annotations

import math
import re
from typing import Literal

from torch import nn

from fastinit.recipes.files import Recipe, check_flag
from fastinit.recipes.presets.parts import (
    TORCH_BIAS,
    TORCH_WEIGHT,
    ZEROS,
    check_given,
    config_of,
    shape_of,
    torch_defaults,
)
from fastinit.rules.select import Rule, Where
from fastinit.schemes.base import check_choice
from fastinit.schemes.named import Constant, Normal, kaiming_normal, lecun_normal, xavier_uniform

ViTMode = Literal["", "jax", "jax_nlhb", "moco"]


def vit(model: nn.Module | None = None, *, mode: ViTMode = "") -> Recipe:
    """timm's modes; mode "" serves the ViT of transformers, too.

    "": N(0, 0.02^2), the patch embedding as torch has it. "jax" (Dosovitskiy et al. 2021, and its code):
    xavier_uniform, head zero, patch embedding lecun_normal, biases of MLPs N(0, 1e-6^2); "jax_nlhb": the head's bias
    -log(classes). "moco" (Chen, Xie, He 2021): xavier_uniform with q, k and v each by itself. Class and register
    tokens N(0, 1e-6^2), position embeddings N(0, 0.02^2). timm 1.0.31, models/vision_transformer.py:
    init_weights_vit_*. timm truncates at +-2, a hundred sigma, which changes nothing.
    """
    check_given(model)
    check_choice("mode", mode, ("", "jax", "jax_nlhb", "moco"))
    small = Normal(std=config_of(model, "initializer_range", 0.02))
    rules = [
        Rule(re.compile(r"(^|\.)(pos_embed|position_embeddings|embeddings\.cls_token)$"), small),
        Rule(re.compile(r"(^|\.)(cls|reg)_token$"), Normal(std=1e-6)),
        Rule(re.compile(r"(^|\.)mask_token$"), ZEROS),
    ]
    if mode in ("", "moco"):
        rules += torch_defaults("*patch_embed.proj")
    else:
        bias = ZEROS
        if mode == "jax_nlhb":
            shape = shape_of(model, r"(^|\.)head\.bias$")
            if shape is None:
                raise ValueError("vit: mode 'jax_nlhb': expected a model with head.bias, got none")
            bias = Constant(-math.log(shape[0]))
        rules += [Rule(re.compile(r"(^|\.)head\.weight$"), ZEROS), Rule(re.compile(r"(^|\.)head\.bias$"), bias)]
        rules += [Rule("*patch_embed.proj.weight", lecun_normal()), Rule("*mlp*.bias", Normal(std=1e-6))]
    if mode == "moco":
        rules.append(Rule("*.qkv.weight", xavier_uniform(), fan="module", split=3))
    return Recipe(
        xavier_uniform() if mode else small,
        rules,
        name=f"vit_{mode}" if mode else "vit",
        source="timm, models/vision_transformer.py: init_weights_vit_*; transformers, modeling_vit.py",
    )


def resnet(model: nn.Module | None = None, *, zero_init_residual: bool = True) -> Recipe:
    """Convolutions kaiming_normal by fan_out, and zero for the last normalisation of every residual branch.

    He et al. 2015; Goyal et al. 2017, section 5.1, for the zeros (torchvision: zero_init_residual, off there by
    default; timm: zero_init_last, on). The classifier is as torch has it. Names of torchvision and timm (bn2, bn3) and
    of transformers.

    Raises:
        ValueError: zero_init_residual without a model, or with one that has no blocks of these names.
    """
    check_given(model)
    check_flag("zero_init_residual", zero_init_residual)
    rules = [
        Rule(Where(type="Conv2d", dims=4), kaiming_normal(mode="fan_out", nonlinearity="relu")),
        Rule(Where(type="Linear", dims=2), TORCH_WEIGHT),
        Rule(Where(type="Linear", dims=1), TORCH_BIAS, fan="weight"),
    ]
    if zero_init_residual:
        last = next((pattern for pattern in LAST_NORMS if shape_of(model, pattern) is not None), None)
        if last is None:
            raise ValueError(
                "resnet: zero_init_residual: expected a model with blocks that have bn3 or bn2 (torchvision, timm) or "
                "normalization (transformers), found none"
            )
        rules.insert(0, Rule(re.compile(last), ZEROS))
    return Recipe(
        kaiming_normal(mode="fan_out", nonlinearity="relu"),
        rules,
        name="resnet" if zero_init_residual else "resnet_plain",
        source="He et al. 2015; Goyal et al. 2017, section 5.1; torchvision, models/resnet.py",
    )


LAST_NORMS = (
    r"\.bn3\.weight$",
    r"layer\d+\.\d+\.bn2\.weight$",
    r"\.layers\.\d+\.layer\.2\.normalization\.weight$",
    r"\.layers\.\d+\.layer\.1\.normalization\.weight$",
)


def dcgan(model: nn.Module | None = None) -> Recipe:
    """Weights N(0, 0.02^2), those of batch normalisation N(1, 0.02^2) (Radford, Metz, Chintala 2016, section 4;
    pytorch/examples)."""
    check_given(model)
    return Recipe(
        Normal(std=0.02),
        [(Where(regex=r"(^|\.)weight$", type="_BatchNorm"), Normal(1.0, 0.02))],
        name="dcgan",
        source="Radford, Metz, Chintala 2016, section 4; pytorch/examples, dcgan/main.py",
    )
