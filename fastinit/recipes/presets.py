"""How published models are initialised. Every preset is a recipe for a model, whose sizes and config it looks at."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from numbers import Real
from typing import Any, Literal

from torch import nn

from fastinit.recipes.files import Recipe, check_flag, check_model
from fastinit.rules.select import Rule, Where
from fastinit.run.names import named_parameters, unwrapped
from fastinit.schemes.base import Scheme, as_scheme, check_choice, scheme_names
from fastinit.schemes.named import (
    Constant,
    DepthScaled,
    Normal,
    Scaled,
    TruncNormal,
    VarianceScaling,
    kaiming_normal,
    kaiming_uniform,
    lecun_normal,
    xavier_uniform,
)
from fastinit.schemes.structured import TimeStep

_ZEROS = Constant(0.0)

# What torch.nn.Linear and the convolutions do by themselves: weight and bias U(+-1 / sqrt(fan_in)).
_TORCH_WEIGHT = kaiming_uniform(a=math.sqrt(5.0))
_TORCH_BIAS = VarianceScaling(1.0 / 3.0, "fan_in", "uniform")


def _torch_defaults(name: str) -> list[Rule]:
    return [Rule(f"{name}.weight", _TORCH_WEIGHT), Rule(f"{name}.bias", _TORCH_BIAS, fan="weight")]


def _check_given(model: object) -> None:
    """Raise TypeError unless `model` is a module or None."""
    if model is not None:
        check_model(model)


def _check_positive(name: str, given: object) -> None:
    if isinstance(given, bool) or not isinstance(given, Real):
        raise TypeError(f"{name}: expected a number, got {given!r}")
    if not 0.0 < float(given) < math.inf:
        raise ValueError(f"{name}: expected {name} > 0, got {given!r}")


def _config(model: nn.Module | None, key: str, default: Any) -> Any:
    """A field of a transformers model's config, else the default."""
    value = None if model is None else getattr(getattr(unwrapped(model), "config", None), key, None)
    return default if value is None else value


def _shape(model: nn.Module | None, pattern: str) -> tuple[int, ...] | None:
    """The shape of the first parameter whose canonical name has the pattern."""
    for name, _, parameter in named_parameters(model) if model is not None else ():
        if re.search(pattern, name):
            return tuple(parameter.shape)
    return None


def gpt2(model: nn.Module | None = None, *, std: float | None = None) -> Recipe:
    """N(0, 0.02^2), and 0.02 / sqrt(2 L) for the projections that end a residual branch, L being the number of layers.

    Radford et al. 2019, section 2.3; transformers 5.23, models/gpt2/modeling_gpt2.py (Conv1D), and nanoGPT's names.
    """
    _check_given(model)
    normal = Normal(std=std if std is not None else _config(model, "initializer_range", 0.02))
    return Recipe(
        normal,
        [("*c_proj.weight", DepthScaled(normal))],
        name="gpt2",
        source="Radford et al. 2019, section 2.3; transformers, modeling_gpt2.py",
    )


def llama(model: nn.Module | None = None, *, std: float | None = None) -> Recipe:
    """N(0, 0.02^2) for every matrix (transformers 5.23, models/llama; the papers do not say)."""
    _check_given(model)
    normal = Normal(std=std if std is not None else _config(model, "initializer_range", 0.02))
    return Recipe(normal, name="llama", source="transformers, modeling_utils.py: PreTrainedModel._init_weights")


def llama_depth(model: nn.Module | None = None, *, std: float = 0.02) -> Recipe:
    """torchtitan's Llama 3: N(0, 0.02^2); wo, w2 and w3 with 0.02 / sqrt(2 (l + 1)) in layer l from zero; embeddings
    N(0, 1); the output N(0, 1 / width) cut at three sigma.

    torchtitan, models/llama3: init_weights with depth_init; names of torchtitan and of transformers. It truncates the
    others at +-2, a hundred sigma, which changes nothing.

    Raises:
        ValueError: no model, or one without output and embeddings, whose width decides the output's std.
    """
    _check_given(model)
    normal = Normal(std=std)
    deep = DepthScaled(normal, by="layer")
    pattern = r"(^|\.)(output|lm_head)\.weight$"
    shape = _shape(model, pattern) or _shape(model, _EMBEDDING)
    if shape is None:
        raise ValueError("llama_depth: expected a model with output.weight, lm_head.weight or embeddings, got none")
    output = TruncNormal(std=shape[1] ** -0.5, bounds=(-3.0, 3.0), unit="sigma")
    rules = [Rule(re.compile(_EMBEDDING), Normal()), Rule(re.compile(pattern), output)]
    rules.append(Rule(re.compile(r"\.(wo|w2|w3|o_proj|down_proj|up_proj)\.weight$"), deep))
    return Recipe(normal, rules, name="llama_depth", source="torchtitan, models/llama3: init_weights, depth_init=True")


_EMBEDDING = r"(^|\.)(tok_embeddings|embed_tokens)\.weight$"

ViTMode = Literal["", "jax", "jax_nlhb", "moco"]


def vit(model: nn.Module | None = None, *, mode: ViTMode = "") -> Recipe:
    """timm's modes; mode "" serves the ViT of transformers, too.

    "": N(0, 0.02^2), the patch embedding as torch has it. "jax" (Dosovitskiy et al. 2021, and its code):
    xavier_uniform, head zero, patch embedding lecun_normal, biases of MLPs N(0, 1e-6^2); "jax_nlhb": the head's bias
    -log(classes). "moco" (Chen, Xie, He 2021): xavier_uniform with q, k and v each by itself. Class and register
    tokens N(0, 1e-6^2), position embeddings N(0, 0.02^2). timm 1.0.31, models/vision_transformer.py:
    init_weights_vit_*. timm truncates at +-2, a hundred sigma, which changes nothing.
    """
    _check_given(model)
    check_choice("mode", mode, ("", "jax", "jax_nlhb", "moco"))
    small = Normal(std=_config(model, "initializer_range", 0.02))
    rules = [
        Rule(re.compile(r"(^|\.)(pos_embed|position_embeddings|embeddings\.cls_token)$"), small),
        Rule(re.compile(r"(^|\.)(cls|reg)_token$"), Normal(std=1e-6)),
        Rule(re.compile(r"(^|\.)mask_token$"), _ZEROS),
    ]
    if mode in ("", "moco"):
        rules += _torch_defaults("*patch_embed.proj")
    else:
        bias = _ZEROS
        if mode == "jax_nlhb":
            shape = _shape(model, r"(^|\.)head\.bias$")
            if shape is None:
                raise ValueError("vit: mode 'jax_nlhb': expected a model with head.bias, got none")
            bias = Constant(-math.log(shape[0]))
        rules += [Rule(re.compile(r"(^|\.)head\.weight$"), _ZEROS), Rule(re.compile(r"(^|\.)head\.bias$"), bias)]
        rules += [Rule("*patch_embed.proj.weight", lecun_normal()), Rule("*mlp*.bias", Normal(std=1e-6))]
    if mode == "moco":
        rules.append(Rule("*.qkv.weight", xavier_uniform(), fan="module", split=3))
    return Recipe(
        xavier_uniform() if mode else small,
        rules,
        name=f"vit_{mode}" if mode else "vit",
        source="timm, models/vision_transformer.py: init_weights_vit_*; transformers, modeling_vit.py",
    )


def bert(model: nn.Module | None = None, *, std: float | None = None) -> Recipe:
    """N(0, 0.02^2) for every matrix, the padding row zero (transformers 5.23, models/bert).

    Devlin et al. 2019's own code truncates at two sigma, transformers does not.
    """
    _check_given(model)
    normal = Normal(std=std if std is not None else _config(model, "initializer_range", 0.02))
    return Recipe(normal, name="bert", source="transformers, modeling_bert.py")


def t5(
    model: nn.Module | None = None, *, d_model: int | None = None, d_kv: int | None = None, factor: float | None = None
) -> Recipe:
    """std 1 / sqrt(fan_in), and 1 / sqrt(d_model d_kv) for q, for attention is not scaled; embeddings N(0, 1). All
    times `factor`.

    Raffel et al. 2020; Mesh TensorFlow; transformers 5.23, models/t5/modeling_t5.py. `d_model`, the width, `d_kv`, that
    of a head, and the factor come from the model's config unless given.

    Raises:
        ValueError: neither the model nor the call says how wide the model or a head is.
    """
    _check_given(model)
    for key, given in (("d_model", d_model), ("d_kv", d_kv), ("factor", factor)):
        if given is not None:
            _check_positive(key, given)
    d_model = d_model if d_model is not None else _config(model, "d_model", None)
    d_kv = d_kv if d_kv is not None else _config(model, "d_kv", None)
    if d_model is None or d_kv is None:
        lacking = "d_model (the width)" if d_model is None else "d_kv (the width of a head)"
        raise ValueError(f"t5: expected {lacking}, as an argument or in the model's config, got neither")
    factor = factor if factor is not None else float(_config(model, "initializer_factor", 1.0))
    by_fan_in = VarianceScaling(factor * factor, "fan_in", "normal")
    rules = [
        Rule("*Attention.q.weight", Scaled(by_fan_in, d_kv**-0.5)),
        Rule(re.compile(r"(^|\.)(shared|embed_tokens|lm_head)\.weight$"), Normal(std=factor)),
        Rule("*layer_norm.weight", Constant(factor)),
        Rule("*.relative_attention_bias.weight", Normal(std=factor * d_model**-0.5)),
    ]
    return Recipe(by_fan_in, rules, name="t5", source="transformers, modeling_t5.py: T5PreTrainedModel._init_weights")


def mamba(model: nn.Module | None = None, *, std: float | None = None) -> Recipe:
    """A_log = log(1 ... n), D = 1, time steps log-uniform in [0.001, 0.1]; matrices N(0, 0.1^2), out_proj as torch has
    it.

    Gu, Dao 2023, section 3.6; transformers 5.23, models/mamba/modeling_mamba.py, whose config's fields are used:
    time_step_*, rescale_prenorm_residual (out_proj / sqrt(L)), initializer_range.
    """
    _check_given(model)
    normal = Normal(std=std if std is not None else _config(model, "initializer_range", 0.1))
    low, high = float(_config(model, "time_step_min", 1e-3)), float(_config(model, "time_step_max", 1e-1))
    scale = float(_config(model, "time_step_scale", 1.0))
    steps = TimeStep(low, high, float(_config(model, "time_step_floor", 1e-4)))
    rescaled = bool(_config(model, "rescale_prenorm_residual", False))
    out: Scheme = DepthScaled(_TORCH_WEIGHT, branches=1.0) if rescaled else _TORCH_WEIGHT
    dt_proj: Scheme = VarianceScaling(scale * scale / 3.0, "fan_in", "uniform")
    if _config(model, "time_step_init_scheme", "random") == "constant":
        dt_proj = Constant(_config(model, "time_step_rank", 1) ** -0.5 * scale)
    return Recipe(
        normal,
        [
            ("*.dt_proj.weight", dt_proj),
            (re.compile(r"\.(dt_proj\.bias|dt_bias)$"), steps),
            ("*.conv1d.weight", _TORCH_WEIGHT),
            ("*.out_proj.weight", out),
        ],
        name="mamba",
        source="Gu, Dao 2023, section 3.6; transformers, modeling_mamba.py",
    )


def resnet(model: nn.Module | None = None, *, zero_init_residual: bool = True) -> Recipe:
    """Convolutions kaiming_normal by fan_out, and zero for the last normalisation of every residual branch.

    He et al. 2015; Goyal et al. 2017, section 5.1, for the zeros (torchvision: zero_init_residual, off there by
    default; timm: zero_init_last, on). The classifier is as torch has it. Names of torchvision and timm (bn2, bn3) and
    of transformers.

    Raises:
        ValueError: zero_init_residual without a model, or with one that has no blocks of these names.
    """
    _check_given(model)
    check_flag("zero_init_residual", zero_init_residual)
    rules = [
        Rule(Where(type="Conv2d", dims=4), kaiming_normal(mode="fan_out", nonlinearity="relu")),
        Rule(Where(type="Linear", dims=2), _TORCH_WEIGHT),
        Rule(Where(type="Linear", dims=1), _TORCH_BIAS, fan="weight"),
    ]
    if zero_init_residual:
        last = next((pattern for pattern in LAST_NORMS if _shape(model, pattern) is not None), None)
        if last is None:
            raise ValueError(
                "resnet: zero_init_residual: expected a model with blocks that have bn3 or bn2 (torchvision, timm) or "
                "normalization (transformers), found none"
            )
        rules.insert(0, Rule(re.compile(last), _ZEROS))
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
    _check_given(model)
    return Recipe(
        Normal(std=0.02),
        [(Where(regex=r"(^|\.)weight$", type="_BatchNorm"), Normal(1.0, 0.02))],
        name="dcgan",
        source="Radford, Metz, Chintala 2016, section 4; pytorch/examples, dcgan/main.py",
    )


def _mode(mode: ViTMode) -> Callable[[nn.Module | None], Recipe]:
    return lambda model: vit(model, mode=mode)


def _resnet_plain(model: nn.Module | None) -> Recipe:
    return resnet(model, zero_init_residual=False)


_PRESETS: dict[str, Callable[[nn.Module | None], Recipe]] = {
    "gpt2": gpt2,
    "llama": llama,
    "llama_depth": llama_depth,
    "vit": vit,
    "vit_jax": _mode("jax"),
    "vit_jax_nlhb": _mode("jax_nlhb"),
    "vit_moco": _mode("moco"),
    "bert": bert,
    "t5": t5,
    "mamba": mamba,
    "resnet": resnet,
    "resnet_plain": _resnet_plain,
    "dcgan": dcgan,
}


def preset_names() -> tuple[str, ...]:
    """The names of the presets."""
    return tuple(_PRESETS)


def preset(name: str, model: nn.Module | None = None) -> Recipe:
    """The preset `name` for a model, to look at, to save or to extend.

    `fastinit.presets` has the presets as functions, with their arguments.

    Raises:
        TypeError: no model.
        ValueError: unknown name, or a model that lacks what the preset must know.

    >>> print(preset("gpt2").to_toml().splitlines()[2])
    scheme = { name = "normal", std = 0.02 }
    """
    check_choice("preset", name, preset_names())
    return _PRESETS[name](model)


def as_recipe(given: str | Scheme | Recipe, model: nn.Module | None) -> Recipe:
    """A recipe as it is; the preset of that name; or a recipe of the scheme, or of the scheme of that name, alone."""
    if isinstance(given, Recipe):
        return given
    if isinstance(given, str) and given not in scheme_names():
        check_choice("scheme", given, (*scheme_names(), *preset_names()))
        return preset(given, model)
    return Recipe(as_scheme(given))
