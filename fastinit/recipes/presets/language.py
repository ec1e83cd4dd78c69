"""Presets of language models: transformers."""

from __future__ import annotations

import re
from dataclasses import replace

from torch import nn

from fastinit.recipes.files import Recipe
from fastinit.recipes.presets.parts import check_given, check_positive, config_of, normal_of, shape_of
from fastinit.rules.select import Rule
from fastinit.schemes.fans import FanAxes
from fastinit.schemes.named import Constant, DepthScaled, Normal, Scaled, TruncNormal, Uniform, VarianceScaling
from fastinit.schemes.ramps import Ramp


def gpt2(model: nn.Module | None = None, *, std: float | None = None) -> Recipe:
    """N(0, 0.02^2), and 0.02 / sqrt(2 L) for the projections that end a residual branch, L being the number of layers.

    Radford et al. 2019, section 2.3; transformers 5.23, models/gpt2/modeling_gpt2.py (Conv1D), and nanoGPT's names.

    Raises:
        TypeError, ValueError: the model is no module, or std is no finite number >= 0.
    """
    check_given(model)
    normal = normal_of(model, std)
    return Recipe(
        normal,
        [("*c_proj.weight", DepthScaled(normal))],
        name="gpt2",
        source="Radford et al. 2019, section 2.3; transformers, modeling_gpt2.py",
    )


def nanogpt(model: nn.Module | None = None, *, std: float | None = None) -> Recipe:
    """As `gpt2`: N(0, 0.02^2), and 0.02 / sqrt(2 L) for the projections that end a residual branch.

    karpathy/nanoGPT, model.py: GPT.__init__ and _init_weights.

    Raises:
        TypeError, ValueError: the model is no module, or std is no finite number >= 0.
    """
    return replace(gpt2(model, std=std), name="nanogpt", source="karpathy/nanoGPT, model.py: GPT._init_weights")


def modded_nanogpt(model: nn.Module | None = None) -> Recipe:
    """Linear maps U[-c, c] of std 0.5 / sqrt(inputs); zero for the projections that end a branch and for the head;
    embeddings N(0, 1); scalars of the residual stream as published.

    KellerJordan/modded-nanogpt, train_gpt.py of January 2025: CastedLinear, CausalSelfAttention (qkv_w, a stack of
    three maps; lambdas 0.5, 0.5), Block (lambdas 1, 0), GPT (skip_weights 1).

    Raises:
        TypeError: the model is no module.
    """
    check_given(model)
    half = VarianceScaling(0.25, "fan_in", "uniform")
    rules = [
        Rule(re.compile(r"(^|\.)(c_proj|lm_head)\.weight$"), Constant(0.0)),
        Rule(re.compile(r"\.qkv_w$"), half, fan=FanAxes(-1, -2, 0)),
        Rule(re.compile(r"(^|\.)(embed|value_embeds\.\d+)\.weight$"), Normal()),
        Rule(re.compile(r"\.attn\.lambdas$"), Constant(0.5)),
        Rule(re.compile(r"(^|\.)blocks\.\d+\.lambdas$"), Ramp(1.0, 0.0)),
        Rule(re.compile(r"(^|\.)skip_weights$"), Constant(1.0)),
    ]
    return Recipe(half, rules, name="modded_nanogpt", source="KellerJordan/modded-nanogpt, train_gpt.py, January 2025")


def nanochat(model: nn.Module | None = None) -> Recipe:
    """q, k, v and value embeddings U[-c, c] of std 1 / sqrt(n_embd), c_fc 0.4 times that; zero for c_proj; tokens
    N(0, 0.8^2), head N(0, 0.001^2); gates U[0, 0.02]; the factors of the residual stream fall with the layers: 1.15 to
    1.05, and 0.2 to 0.05 for those of the first embedding.

    karpathy/nanochat, nanochat/gpt.py: GPT.init_weights. The width of value embeddings is that of all heads; it is
    n_embd unless several queries share a key.

    Raises:
        TypeError: the model is no module.
    """
    check_given(model)
    by_inputs = VarianceScaling(1.0, "fan_in", "uniform")
    width = shape_of(model, r"(^|\.)wte\.weight$")
    bound = None if width is None else (3.0 / width[1]) ** 0.5
    rules = [
        Rule(re.compile(r"\.c_proj\.weight$|(^|\.)smear_lambda$"), Constant(0.0)),
        Rule(re.compile(r"\.c_fc\.weight$"), VarianceScaling(0.16, "fan_in", "uniform")),
        Rule(re.compile(r"(^|\.)wte\.weight$"), Normal(std=0.8)),
        Rule(re.compile(r"(^|\.)lm_head\.weight$"), Normal(std=0.001)),
        Rule(re.compile(r"(^|\.)value_embeds\.\d+\.weight$"), by_inputs if bound is None else Uniform(-bound, bound)),
        Rule(re.compile(r"(^|\.)(ve_gate|smear_gate)\.weight$"), Uniform(0.0, 0.02)),
        Rule(re.compile(r"(^|\.)resid_lambdas$"), Ramp(1.15, 1.05)),
        Rule(re.compile(r"(^|\.)x0_lambdas$"), Ramp(0.2, 0.05)),
        Rule(re.compile(r"(^|\.)backout_lambda$"), Constant(0.2)),
    ]
    return Recipe(by_inputs, rules, name="nanochat", source="karpathy/nanochat, nanochat/gpt.py: GPT.init_weights")


def llama(model: nn.Module | None = None, *, std: float | None = None) -> Recipe:
    """N(0, 0.02^2) for every matrix (transformers 5.23, models/llama; the papers do not say).

    Raises:
        TypeError, ValueError: the model is no module, or std is no finite number >= 0.
    """
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


# Routers, and experts that lie in one parameter. A scheme for the rest of a model would reach them, too; here they are
# named, so that nothing that is said of routers or of stacks elsewhere takes them from the preset.
_ROUTER_OR_EXPERTS = re.compile(r"\.(gate|router)\.weight$|\.experts\.\w+$")


def mixtral(model: nn.Module | None = None, *, std: float | None = None) -> Recipe:
    """N(0, 0.02^2) for every matrix, routers and experts included (transformers 5.24, models/mixtral; Jiang et al. 2024
    do not say).

    Raises:
        TypeError, ValueError: the model is no module, or std is no finite number >= 0.
    """
    check_given(model)
    normal = normal_of(model, std)
    return Recipe(normal, [(_ROUTER_OR_EXPERTS, normal)], name="mixtral", source="transformers, modeling_mixtral.py")


def qwen_moe(model: nn.Module | None = None, *, std: float | None = None) -> Recipe:
    """N(0, 0.02^2) for every matrix, routers, experts and the gate of the shared expert included; the padding row zero
    (transformers 5.24, models/qwen2_moe and qwen3_moe; the reports do not say).

    Raises:
        TypeError, ValueError: the model is no module, or std is no finite number >= 0.
    """
    check_given(model)
    normal = normal_of(model, std)
    rules = [(_ROUTER_OR_EXPERTS, normal), (re.compile(r"\.shared_expert_gate\.weight$"), normal)]
    return Recipe(normal, rules, name="qwen_moe", source="transformers, modeling_qwen2_moe.py, modeling_qwen3_moe.py")


def deepseek_v3(model: nn.Module | None = None, *, std: float | None = None) -> Recipe:
    """N(0, 0.006^2) for every matrix, routers and experts included; the routers' corrections zero.

    DeepSeek-AI 2024, "DeepSeek-V3 Technical Report", section 4.2. With a model of transformers the std is its config's
    initializer_range, 0.02 there by default (5.24, models/deepseek_v3/modeling_deepseek_v3.py).

    Raises:
        TypeError, ValueError: the model is no module, or std is no finite number >= 0.
    """
    check_given(model)
    normal = normal_of(model, std, default=0.006)
    return Recipe(
        normal,
        [(_ROUTER_OR_EXPERTS, normal), (re.compile(r"\.e_score_correction_bias$"), Constant(0.0))],
        name="deepseek_v3",
        source="DeepSeek-V3 Technical Report, section 4.2; transformers, modeling_deepseek_v3.py",
    )


def bert(model: nn.Module | None = None, *, std: float | None = None) -> Recipe:
    """N(0, 0.02^2) for every matrix, the padding row zero (transformers 5.23, models/bert).

    Devlin et al. 2019's own code truncates at two sigma, transformers does not.

    Raises:
        TypeError, ValueError: the model is no module, or std is no finite number >= 0.
    """
    check_given(model)
    normal = normal_of(model, std)
    return Recipe(normal, name="bert", source="transformers, modeling_bert.py")


def t5(
    model: nn.Module | None = None, *, d_model: int | None = None, d_kv: int | None = None, factor: float | None = None
) -> Recipe:
    """std 1 / sqrt(fan_in), and 1 / sqrt(d_model d_kv) for q, for attention is not scaled; embeddings and the
    classifier of tokens N(0, 1). All times `factor`.

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
        Rule(re.compile(r"(^|\.)classifier\.weight$"), Normal(std=factor)),  # of T5ForTokenClassification
    ]
    return Recipe(by_fan_in, rules, name="t5", source="transformers, modeling_t5.py: T5PreTrainedModel._init_weights")
