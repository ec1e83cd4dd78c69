"""Recipes for deep residual networks: how much smaller, or zero, the ends of their branches begin."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from fastinit.depths import Depths
from fastinit.recipe import Recipe
from fastinit.registry import Scheme, as_scheme
from fastinit.rules import Rule, Where
from fastinit.schemes import Constant, Normal, Scaled, VarianceScaling, kaiming_normal, xavier_normal, xavier_uniform
from fastinit.streams import canonical_name
from fastinit.structured import ZerO

_ZEROS = Constant(0.0)

# Names in torch.nn.Transformer, fairseq, transformers (BERT, GPT-2, Llama, T5, ViT), timm and torchtitan.
QUERY = ("*.q_proj.weight", "*.query.weight", "*Attention.q.weight", "*.wq.weight", "*.q_proj_weight")
KEY = ("*.k_proj.weight", "*.key.weight", "*Attention.k.weight", "*.wk.weight", "*.k_proj_weight")
VALUE = ("*.v_proj.weight", "*.value.weight", "*Attention.v.weight", "*.wv.weight", "*.v_proj_weight")
FUSED_QKV = ("*.in_proj_weight", "*.qkv.weight", "*.attn.c_attn.weight")
ATTENTION_OUT = (
    "*.out_proj.weight", "*.o_proj.weight", "*.attn.proj.weight", "*.attn.c_proj.weight", "*Attention.o.weight",
    "*.attention.output.dense.weight", "*.attention.wo.weight",
)  # fmt: skip
MLP_IN = (
    "*.linear1.weight", "*.fc1.weight", "*.mlp.c_fc.weight", "*.gate_proj.weight", "*.up_proj.weight",
    "*.intermediate.dense.weight", "*.DenseReluDense.wi*.weight", "*.feed_forward.w1.weight",
    "*.feed_forward.w3.weight",
)  # fmt: skip
MLP_OUT = (
    "*.linear2.weight", "*.fc2.weight", "*.mlp.c_proj.weight", "*.down_proj.weight", "*.output.dense.weight",
    "*.DenseReluDense.wo.weight", "*.feed_forward.w2.weight",
)  # fmt: skip
LAST_NORM = (r"\.bn3\.weight$", r"layer\d+\.\d+\.bn2\.weight$")


def _names(model: nn.Module) -> list[str]:
    return [canonical_name(name) for name, _ in model.named_parameters()]


def _any_of(model: nn.Module, where: Where) -> bool:
    return any(
        where.matches(canonical_name(f"{prefix}.{own_name}" if prefix else own_name), module, parameter)
        for prefix, module in model.named_modules()
        for own_name, parameter in module._parameters.items()
        if parameter is not None
    )


def _check_found(model: nn.Module, recipe: str, **roles: Sequence[str]) -> None:
    for role, globs in roles.items():
        if not globs or not _any_of(model, Where(name=tuple(globs))):
            raise ValueError(f"{recipe}: {role}: expected parameters of these names, found none: {', '.join(globs)}")


def _coders(model: nn.Module) -> dict[str, int]:
    """How many layers the encoder and the decoder have; a model of one stack is "" alone, of its longest stack."""
    lengths: dict[str, int] = {}
    for prefix, layers in Depths(_names(model)).stacks.items():
        for coder in ("encoder", "decoder"):
            if re.search(rf"(^|\.){coder}\.", prefix):
                lengths[coder] = max(lengths.get(coder, 0), len(layers))
        lengths[""] = max(lengths.get("", 0), len(layers))
    if not lengths:
        raise ValueError("expected a model with a stack of numbered layers, found none")
    return {coder: lengths[coder] for coder in ("encoder", "decoder")} if len(lengths) == 3 else {"": lengths[""]}


def _within(coder: str, globs: Sequence[str]) -> Where:
    return Where(name=tuple(globs), regex=rf"(^|\.){coder}\." if coder else None)


def deepnorm(
    model: nn.Module,
    *,
    value: Sequence[str] = VALUE,
    fused: Sequence[str] = FUSED_QKV,
    out: Sequence[str] = ATTENTION_OUT,
    mlp: Sequence[str] = (*MLP_IN, *MLP_OUT),
) -> Recipe:
    """DeepNorm: xavier_normal, with gain beta for values, attention outputs and MLPs, 1 for queries and keys.

    beta = (8 L)^-1/4 for a model of L layers with an encoder or a decoder alone; with N and M layers of both, 0.87
    (N^4 M)^-1/16 in the encoder and (12 M)^-1/4 in the decoder (Wang et al. 2022, "DeepNet", figure 2). The alpha of
    the residual connections is the model's to apply. Biases are zero.

    Args:
        model: its layers are counted, and it must have parameters of these names.
        value, fused, out, mlp: globs for those matrices; fused ones are q, k and v in this order.

    Raises:
        ValueError: no stack of layers, or no parameters of the names.
    """
    _check_found(model, "deepnorm", out=out, mlp=mlp, value=(*value, *fused))
    coders = _coders(model)
    if "" in coders:
        betas = {"": (8.0 * coders[""]) ** -0.25}
    else:
        encoder, decoder = coders["encoder"], coders["decoder"]
        betas = {"encoder": 0.87 * (encoder**4 * decoder) ** (-1 / 16), "decoder": (12.0 * decoder) ** -0.25}
    rules = []
    for coder, beta in betas.items():
        plain, scaled = xavier_normal(), xavier_normal(beta)
        rules.append(Rule(_within(coder, fused), (plain, plain, scaled), fan="module", split=3))
        rules.append(Rule(_within(coder, (*value, *out, *mlp)), scaled, fan="module"))
    return Recipe(xavier_normal(), rules, name="deepnorm", source="Wang et al. 2022, DeepNet, figure 2")


def t_fixup(
    model: nn.Module,
    *,
    value: Sequence[str] = VALUE,
    fused: Sequence[str] = FUSED_QKV,
    out: Sequence[str] = ATTENTION_OUT,
    mlp: Sequence[str] = (*MLP_IN, *MLP_OUT),
) -> Recipe:
    """T-Fixup: xavier_uniform; values, attention outputs and MLPs times 0.67 N^-1/4 in an encoder of N layers, times
    (9 M)^-1/4 in a decoder of M; embeddings N(0, 1 / width), times (9 N)^-1/4 (Huang, Perez, Ba, Volkovs, ICML 2020,
    section 3.2).

    For transformers without layer normalisation and without warm-up. A model of one stack counts as an encoder unless
    its names say decoder. The arguments and errors are those of `deepnorm`.
    """
    _check_found(model, "t_fixup", out=out, mlp=mlp, value=(*value, *fused))
    coders = _coders(model)
    if "" in coders and any(re.search(r"(^|\.)decoder\.", name) for name in _names(model)):
        coders = {"decoder": coders[""]}
    rules = []
    for coder, layers in coders.items():
        factor = (9.0 * layers) ** -0.25 if coder == "decoder" else 0.67 * layers**-0.25
        plain, scaled = xavier_uniform(), Scaled(xavier_uniform(), factor)
        rules.append(Rule(_within(coder, fused), (plain, plain, scaled), fan="module", split=3))
        rules.append(Rule(_within(coder, (*value, *out, *mlp)), scaled, fan="module"))
        embedding = Scaled(VarianceScaling(1.0, "fan_in", "normal"), (9.0 * layers) ** -0.25)
        coder_regex = rf"(^|\.){coder}\." if coder else None
        rules.append(Rule(Where(regex=coder_regex, type=nn.Embedding), embedding, fan="module"))
    longest = max(coders.values())
    shared = Scaled(VarianceScaling(1.0, "fan_in", "normal"), (9.0 * longest) ** -0.25)
    rules.append(Rule(nn.Embedding, shared, fan="module"))
    return Recipe(xavier_uniform(), rules, name="t_fixup", source="Huang, Perez, Ba, Volkovs, ICML 2020, section 3.2")


def fixup(model: nn.Module) -> Recipe:
    """Fixup: the last convolution of every residual branch and the classifier zero; the others of a branch of m
    convolutions kaiming_normal by fan_out, times L^(-1 / (2 m - 2)), L being the number of branches.

    Multipliers (`scale`) begin at one, scalar biases (`bias1a` ...) at zero (Zhang, Dauphin, Ma, ICLR 2019, section
    3). For networks without normalisation. A branch is a module with convolutions conv1, conv2 and perhaps conv3; the
    classifier is the last nn.Linear.

    Raises:
        ValueError: no such branch.
    """
    branches: dict[str, int] = {}  # the module's name -> convolutions in it
    classifier = None
    for name, module in model.named_modules():
        convolutions = [
            each for each in ("conv1", "conv2", "conv3") if isinstance(getattr(module, each, None), nn.Conv2d)
        ]
        if len(convolutions) >= 2:
            branches[canonical_name(name)] = len(convolutions)
        if isinstance(module, nn.Linear):
            classifier = canonical_name(name)
    if not branches:
        raise ValueError("fixup: expected residual branches with convolutions conv1 and conv2, found none")
    he = kaiming_normal(mode="fan_out", nonlinearity="relu")
    rules = [Rule(Where(name=tuple(f"{name}.conv{last}.weight" for name, last in branches.items())), _ZEROS)]
    for convolutions_in_branch in sorted(set(branches.values())):
        factor = len(branches) ** (-1.0 / (2 * convolutions_in_branch - 2))
        inner = tuple(
            f"{name}.conv{position}.weight"
            for name, last in branches.items()
            if last == convolutions_in_branch
            for position in range(1, last)
        )
        rules.append(Rule(Where(name=inner), Scaled(he, factor)))
    if classifier is not None:
        rules.append(Rule(f"{classifier}.weight", _ZEROS))
    rules.append(Rule(re.compile(r"(^|\.)scale$"), Constant(1.0)))
    rules.append(Rule(re.compile(r"(^|\.)bias\d[ab]?$"), _ZEROS))
    return Recipe(he, rules, name="fixup", source="Zhang, Dauphin, Ma, ICLR 2019, section 3")


def zer_o(model: nn.Module, *, embedding: str | Scheme = Normal(std=0.02)) -> Recipe:  # noqa: B008 (immutable)
    """ZerO: every matrix the partial identity, or Hadamard's where it widens; keys and values of attention zero.

    Nothing but the embeddings is random (Zhao, Schäfer, Anandkumar, TMLR 2022: algorithms 1 and 2, and section 4 for
    transformers, whose embeddings it leaves as they are). The scale of the Hadamard matrix is 2^(-m/2), as in the
    authors' code; the paper prints 2^(-(m-1)/2).
    """
    zero_o = ZerO()
    rules = [Rule(nn.Embedding, as_scheme(embedding)), Rule(Where(name=(*KEY, *VALUE)), _ZEROS)]
    rules.append(Rule(Where(name=FUSED_QKV), (zero_o, _ZEROS, _ZEROS), fan="module", split=3))
    return Recipe(zero_o, rules, name="zer_o", source="Zhao, Schäfer, Anandkumar, TMLR 2022, algorithms 1 and 2")


def residual_zeros(
    model: nn.Module,
    scheme: str | Scheme,
    *,
    last: Sequence[str] = (*ATTENTION_OUT, *MLP_OUT),
    last_norm: Sequence[str] = LAST_NORM,
) -> Recipe:
    """`scheme`, but zero for what ends a residual branch, so that every branch begins as the identity.

    In convolutional networks the weight of the branch's last normalisation (Goyal et al. 2017, section 5.1), elsewhere
    the last projection (Zhang, Dauphin, Ma 2019, section 3; the idea of ReZero and SkipInit without their scalars).

    Args:
        model: must have parameters of these names.
        last: globs for the last projections. last_norm: regular expressions for the last normalisations; where the
            first of them matches, it alone is used.

    Raises:
        ValueError: no parameters of the names.
    """
    norm = next((each for each in last_norm if any(re.search(each, name) for name in _names(model))), None)
    if norm is not None:
        return Recipe(
            scheme, [Rule(re.compile(norm), _ZEROS)], name="residual_zeros", source="Goyal et al. 2017, section 5.1"
        )
    _check_found(model, "residual_zeros", last=last)
    return Recipe(scheme, [Rule(Where(name=tuple(last)), _ZEROS)], name="residual_zeros", source="Zhang et al. 2019")
