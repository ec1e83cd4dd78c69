"""Presets of image models: transformers, convolutional nets, GANs, fields of sines."""

from __future__ import annotations

import math
import re
from typing import Literal

from torch import nn

from fastinit.recipes.files import Recipe, check_flag, of_model
from fastinit.recipes.presets.parts import (
    TORCH_BIAS,
    TORCH_WEIGHT,
    ZEROS,
    check_given,
    check_positive,
    config_of,
    normal_of,
    shape_of,
    torch_defaults,
)
from fastinit.rules.select import Rule
from fastinit.rules.where import Where, exact_glob
from fastinit.run.names import named_modules
from fastinit.schemes.base import check_choice
from fastinit.schemes.named import (
    Constant,
    Normal,
    Uniform,
    VarianceScaling,
    kaiming_normal,
    lecun_normal,
    xavier_uniform,
)

ViTMode = Literal["", "jax", "jax_nlhb", "moco"]


def vit(model: nn.Module | None = None, *, mode: ViTMode = "") -> Recipe:
    """timm's modes; mode "" serves the ViT of transformers, too.

    "": N(0, 0.02^2), the patch embedding as torch has it. "jax" (Dosovitskiy et al. 2021, and its code):
    xavier_uniform, head zero, patch embedding lecun_normal, biases of MLPs N(0, 1e-6^2); "jax_nlhb": the head's bias
    -log(classes). "moco" (Chen, Xie, He 2021): xavier_uniform with q, k and v each by itself. Class and register
    tokens N(0, 1e-6^2), position embeddings and distillation tokens N(0, 0.02^2). timm 1.0.31,
    models/vision_transformer.py: init_weights_vit_*. timm truncates at +-2, a hundred sigma, which changes nothing.

    Raises:
        TypeError: the model is no module.
        ValueError: the mode is unknown.
    """
    check_given(model)
    check_choice("mode", mode, ("", "jax", "jax_nlhb", "moco"))
    small = Normal(std=config_of(model, "initializer_range", 0.02))
    rules = [
        Rule(re.compile(r"(^|\.)(pos_embed|dist_token|position_embeddings|embeddings\.cls_token)$"), small),
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
        rules.append(Rule(re.compile(r"(^|\.)head(_dist)?\.weight$"), ZEROS))
        rules.append(Rule(re.compile(r"(^|\.)head(_dist)?\.bias$"), bias))
        rules += [Rule("*patch_embed.proj.weight", lecun_normal()), Rule("*mlp*.bias", Normal(std=1e-6))]
    if mode == "moco":
        rules.append(Rule("*.qkv.weight", xavier_uniform(), fan="module", split=3))
    return Recipe(
        xavier_uniform() if mode else small,
        rules,
        name=f"vit_{mode}" if mode else "vit",
        source="timm, models/vision_transformer.py: init_weights_vit_*; transformers, modeling_vit.py",
    )


def deit(model: nn.Module | None = None) -> Recipe:
    """As `vit` for timm's names, N(0, 0.02^2) for the distillation token. For transformers' names all matrices are
    N(0, 0.02^2), and all tokens and position embeddings zero.

    Touvron et al. 2021; timm 1.0.31, models/deit.py; transformers 5.24, models/deit/modeling_deit.py.

    Raises:
        TypeError: the model is no module.
    """
    tokens = r"(^|\.)embeddings\.(cls_token|distillation_token|position_embeddings)$"
    like = vit(model)
    return Recipe(
        like.scheme,
        [(re.compile(tokens), ZEROS), *like.rules],
        name="deit",
        source="Touvron et al. 2021; timm, models/deit.py; transformers, modeling_deit.py",
    )


def dinov2(model: nn.Module | None = None, *, layer_scale: float | None = None) -> Recipe:
    """As `vit`; the factors of LayerScale are `layer_scale`, mask tokens zero.

    The authors (dinov2/models/vision_transformer.py; LayerScale in configs/ssl_default_config.yaml) and timm: factors
    1e-5, register tokens N(0, 1e-6^2), the patch embedding as torch has it. transformers 5.24
    (models/dinov2/modeling_dinov2.py): factors of the config's layerscale_value, 1, as for a checkpoint that is loaded
    next; register tokens zero; class token and patch embedding N(0, 0.02^2).

    Oquab et al. 2023; Darcet et al. 2023.

    Raises:
        TypeError: the model is no module, or layer_scale is no number.
    """
    like = vit(model)
    factor = Constant(layer_scale if layer_scale is not None else 1e-5)
    of_config = Constant(layer_scale if layer_scale is not None else config_of(model, "layerscale_value", 1.0))
    rules = [
        Rule(re.compile(r"\.ls[12]\.gamma$"), factor),
        Rule(re.compile(r"\.layer_scale[12]\.lambda1$"), of_config),
        Rule(re.compile(r"(^|\.)embeddings\.register_tokens$"), ZEROS),
        Rule(re.compile(r"(^|\.)register_tokens$"), Normal(std=1e-6)),
        *like.rules,
    ]
    return Recipe(
        like.scheme,
        rules,
        name="dinov2",
        source="dinov2, models/vision_transformer.py; timm, vision_transformer.py; transformers, modeling_dinov2.py",
    )


def convnext(model: nn.Module | None = None, *, std: float | None = None, layer_scale: float | None = None) -> Recipe:
    """N(0, 0.02^2) for all convolutions and linear maps; LayerScale 1e-6; ConvNeXt V2: both vectors of the global
    response normalisation zero.

    Liu et al. 2022 (facebookresearch/ConvNeXt, models/convnext.py), Woo et al. 2023, section 3; timm 1.0.31,
    models/convnext.py; transformers 5.24, models/convnext and convnextv2, whose config's layer_scale_init_value is
    used. The authors and timm truncate at +-2, a hundred sigma, which changes nothing.

    Raises:
        TypeError, ValueError: the model is no module, std is no finite number >= 0, or layer_scale is no number.
    """
    check_given(model)
    normal = normal_of(model, std)
    factor = layer_scale if layer_scale is not None else config_of(model, "layer_scale_init_value", 1e-6)
    return Recipe(
        normal,
        [
            (re.compile(r"\.(dwconv|conv_dw)\.weight$"), normal),
            (re.compile(r"\.grn\.(weight|bias|gamma|beta)$"), ZEROS),
            (re.compile(r"\.(gamma|layer_scale_parameter)$"), Constant(factor)),
        ],
        name="convnext",
        source="Liu et al. 2022; Woo et al. 2023; timm, models/convnext.py; transformers, modeling_convnext*.py",
    )


def swin(model: nn.Module | None = None, *, std: float | None = None) -> Recipe:
    """N(0, 0.02^2) for all linear maps; temperatures of Swin V2 log 10.

    The authors (microsoft/Swin-Transformer, models/swin_transformer.py), timm 1.0.31 (models/swin_transformer*.py) and
    torchvision: tables of relative positions N(0, 0.02^2), the patch embedding as torch has it; in V2 (not
    torchvision's) the normalisations that end a branch are zero. transformers 5.24 (models/swin, swinv2): the patch
    embedding N(0, 0.02^2), tables of positions zero. Truncations at +-2, a hundred sigma, change nothing.

    Liu et al. 2021; Liu et al. 2022, "Swin Transformer V2", section 3.

    Raises:
        TypeError, ValueError: the model is no module, or std is no finite number >= 0.
    """
    check_given(model)
    normal = normal_of(model, std)
    rules = [
        Rule(re.compile(r"\.relative_position_bias\.relative_position_bias_table$"), ZEROS),
        Rule(re.compile(r"(^|\.)(position_embeddings|mask_token)$"), ZEROS),
        Rule(re.compile(r"\.relative_position_bias_table$"), normal),
        Rule(re.compile(r"\.logit_scale$"), Constant(math.log(10.0))),
        Rule(re.compile(r"\.attn\.(q_bias|v_bias)$"), ZEROS),
        *torch_defaults("*patch_embed.proj"),
        *torch_defaults("features.0.0"),
    ]
    if shape_of(model, r"blocks\.\d+\.attn\.logit_scale$") is not None:
        rules.append(Rule(re.compile(r"\.blocks\.\d+\.norm[12]\.weight$"), ZEROS))
    return Recipe(
        normal,
        rules,
        name="swin",
        source="Swin-Transformer, models/swin_transformer*.py; timm; torchvision; transformers, modeling_swin*.py",
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
    pytorch/examples).

    Raises:
        TypeError: the model is no module.
    """
    check_given(model)
    return Recipe(
        Normal(std=0.02),
        [(Where(regex=r"(^|\.)weight$", type="_BatchNorm"), Normal(1.0, 0.02))],
        name="dcgan",
        source="Radford, Metz, Chintala 2016, section 4; pytorch/examples, dcgan/main.py",
    )


def siren(model: nn.Module | None = None, *, omega: float = 30.0) -> Recipe:
    """A network of sines sin(omega (W x + b)): U[-1 / n, 1 / n] for the first layer of n inputs, U[-c, c] with
    c = sqrt(6 / n) / omega for all others; biases as torch has them, U(+-1 / sqrt(n)).

    Sitzmann et al. 2020, sections 3.2 and 1.5 of the supplement; vsitzmann/siren, modules.py: first_layer_sine_init,
    sine_init. The first layer is the first linear map that the model registers.

    Raises:
        TypeError, ValueError: omega is no number > 0, or there is no model, or one without linear maps.
    """
    check_given(model)
    check_positive("omega", omega)
    maps = []
    for each in [] if model is None else named_modules(model):
        if isinstance(each.module, nn.Linear):
            maps.append((each.names_of("weight")[0], each.module.in_features))
    if not maps:
        raise ValueError("siren: expected a model with linear maps, whose first layer has another bound, got none")
    name, inputs = maps[0]
    return Recipe(
        VarianceScaling(2.0 / omega**2, "fan_in", "uniform"),
        [
            *of_model([Rule(exact_glob(name), Uniform(-1.0 / inputs, 1.0 / inputs))]),
            Rule(Where(type="Linear", dims=1), TORCH_BIAS, fan="weight"),
        ],
        name="siren",
        source="Sitzmann et al. 2020, section 3.2, supplement 1.5; vsitzmann/siren, modules.py",
    )
