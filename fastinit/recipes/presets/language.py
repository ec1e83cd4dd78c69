"""Presets of language models: transformers."""

from __future__ import annotations

import re

from torch import nn

from fastinit.recipes.files import Recipe
from fastinit.recipes.presets.parts import check_given, check_positive, config_of, normal_of, shape_of
from fastinit.rules.select import Rule
from fastinit.schemes.named import Constant, DepthScaled, Normal, Scaled, TruncNormal, VarianceScaling


def gpt2(model: nn.Module | None = None, *, std: float | None = None) -> Recipe:
    """N(0, 0.02^2), and 0.02 / sqrt(2 L) for the projections that end a residual branch, L being the number of layers.

    Radford et al. 2019, section 2.3; transformers 5.23, models/gpt2/modeling_gpt2.py (Conv1D), and nanoGPT's names.
    """
    check_given(model)
    normal = normal_of(model, std)
    return Recipe(
        normal,
        [("*c_proj.weight", DepthScaled(normal))],
        name="gpt2",
        source="Radford et al. 2019, section 2.3; transformers, modeling_gpt2.py",
    )


def llama(model: nn.Module | None = None, *, std: float | None = None) -> Recipe:
    """N(0, 0.02^2) for every matrix (transformers 5.23, models/llama; the papers do not say)."""
    check_given(model)
    normal = normal_of(model, std)
    return Recipe(normal, name="llama", source="transformers, modeling_utils.py: PreTrainedModel._init_weights")


_EMBEDDING = r"(^|\.)(tok_embeddings|embed_tokens)\.weight$"


def llama_depth(model: nn.Module | None = None, *, std: float = 0.02) -> Recipe:
    """torchtitan's Llama 3: N(0, 0.02^2); wo, w2 and w3 with 0.02 / sqrt(2 (l + 1)) in layer l from zero; embeddings
    N(0, 1); the output N(0, 1 / width) cut at three sigma.

    torchtitan, models/llama3: init_weights with depth_init; names of torchtitan and of transformers. It truncates the
    others at +-2, a hundred sigma, which changes nothing.

    Raises:
        ValueError: no model, or one without output and embeddings, whose width decides the output's std.
    """
    check_given(model)
    normal = Normal(std=std)
    deep = DepthScaled(normal, by="layer")
    pattern = r"(^|\.)(output|lm_head)\.weight$"
    shape = shape_of(model, pattern) or shape_of(model, _EMBEDDING)
    if shape is None:
        raise ValueError("llama_depth: expected a model with output.weight, lm_head.weight or embeddings, got none")
    output = TruncNormal(std=shape[1] ** -0.5, bounds=(-3.0, 3.0), unit="sigma")
    rules = [Rule(re.compile(_EMBEDDING), Normal()), Rule(re.compile(pattern), output)]
    rules.append(Rule(re.compile(r"\.(wo|w2|w3|o_proj|down_proj|up_proj)\.weight$"), deep))
    return Recipe(normal, rules, name="llama_depth", source="torchtitan, models/llama3: init_weights, depth_init=True")


def bert(model: nn.Module | None = None, *, std: float | None = None) -> Recipe:
    """N(0, 0.02^2) for every matrix, the padding row zero (transformers 5.23, models/bert).

    Devlin et al. 2019's own code truncates at two sigma, transformers does not.
    """
    check_given(model)
    normal = normal_of(model, std)
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
    check_given(model)
    for key, given in (("d_model", d_model), ("d_kv", d_kv), ("factor", factor)):
        if given is not None:
            check_positive(key, given)
    d_model = d_model if d_model is not None else config_of(model, "d_model", None)
    d_kv = d_kv if d_kv is not None else config_of(model, "d_kv", None)
    if d_model is None or d_kv is None:
        lacking = "d_model (the width)" if d_model is None else "d_kv (the width of a head)"
        raise ValueError(f"t5: expected {lacking}, as an argument or in the model's config, got neither")
    factor = factor if factor is not None else float(config_of(model, "initializer_factor", 1.0))
    by_fan_in = VarianceScaling(factor * factor, "fan_in", "normal")
    rules = [
        Rule("*Attention.q.weight", Scaled(by_fan_in, d_kv**-0.5)),
        Rule(re.compile(r"(^|\.)(shared|embed_tokens|lm_head)\.weight$"), Normal(std=factor)),
        Rule("*layer_norm.weight", Constant(factor)),
        Rule("*.relative_attention_bias.weight", Normal(std=factor * d_model**-0.5)),
    ]
    return Recipe(by_fan_in, rules, name="t5", source="transformers, modeling_t5.py: T5PreTrainedModel._init_weights")
