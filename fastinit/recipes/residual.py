"""Recipes for deep residual networks. They make the ends of the branches smaller, or zero, at the start."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from fastinit._torch import CONVOLUTIONS
from fastinit.distributed.held import global_shape
from fastinit.recipes.files import Recipe, check_model, of_model
from fastinit.recipes.presets import LAST_NORMS, as_recipe
from fastinit.rules.depths import Depths
from fastinit.rules.finder import RuleFinder
from fastinit.rules.roles import Roles
from fastinit.rules.select import Rule
from fastinit.rules.where import Where, exact_glob
from fastinit.run.names import named_modules, named_parameters
from fastinit.schemes.base import Scheme, as_scheme, check_choice, scheme_names
from fastinit.schemes.fans import module_geometry
from fastinit.schemes.named import (
    Constant,
    Normal,
    Scaled,
    VarianceScaling,
    kaiming_normal,
    xavier_normal,
    xavier_uniform,
)
from fastinit.schemes.structured import Dirac, ZerO

_ZEROS = Constant(0.0)

# Names in torch.nn.Transformer, fairseq, transformers (BERT, GPT-2, Llama, T5, ViT), timm and torchtitan.
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
LAST_NORM = LAST_NORMS


def _names(model: nn.Module) -> list[str]:
    return [name for name, _, _ in named_parameters(model)]


def _matching(model: nn.Module, globs: Sequence[str]) -> list[str]:
    """The names of the parameters that any of the globs matches."""
    where = _within("", globs)
    found = []
    for each in named_modules(model):
        for own_name, parameter in each.module._parameters.items():
            name, _ = each.names_of(own_name)
            if parameter is not None and where.matches(name, each.module, parameter):
                found.append(name)
    return found


def _check_globs(**roles: Sequence[str]) -> None:
    """Raise TypeError unless every argument is a sequence of strings."""
    for role, globs in roles.items():
        if not isinstance(globs, (tuple, list)) or not all(isinstance(each, str) for each in globs):
            raise TypeError(f"{role}: expected a sequence of strings, got {globs!r}")


def _check_found(model: nn.Module, recipe: str, **roles: Sequence[str]) -> None:
    for role, globs in roles.items():
        if not globs or not _matching(model, globs):
            raise ValueError(f"{recipe}: {role}: expected parameters of these names, found none: {', '.join(globs)}")


def _coders(model: nn.Module, recipe: str, out: Sequence[str]) -> dict[str, int]:
    """How many layers with attention the encoder and the decoder have. Their names say which is which.

    A model that has one of them alone has one entry: "decoder", or "" for any other.
    """
    lengths: dict[str, int] = {}
    for prefix, layers in Depths(_matching(model, out)).stacks.items():
        coder = next((each for each in ("encoder", "decoder") if re.search(rf"(^|\.){each}\.", prefix)), "")
        lengths[coder] = max(lengths.get(coder, 0), len(layers))
    if not lengths:
        raise ValueError(f"{recipe}: expected a model with a stack of numbered layers, found none")
    if "encoder" in lengths and "decoder" in lengths:
        return {coder: lengths[coder] for coder in ("encoder", "decoder")}
    return {"decoder" if set(lengths) == {"decoder"} else "": max(lengths.values())}


def _within(coder: str, globs: Sequence[str]) -> Where:
    """The globs within the encoder, within the decoder or ("") anywhere. "*.fc1.weight" means "fc1.weight", too."""
    at_the_root = (each[2:] for each in globs if each.startswith("*."))
    return Where(name=(*globs, *at_the_root), regex=rf"(^|\.){coder}\." if coder else None)


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
    the residual connections is the model's to apply. Every other matrix, embeddings too, is xavier_normal with gain 1;
    biases are zero.

    Args:
        model: its layers with attention are counted, and it must have parameters of these names. It must be the whole
            model and no part of it.
        value, fused, out, mlp: globs for those matrices; fused ones are q, k and v in this order.

    Raises:
        TypeError: no model, or no globs.
        ValueError: no stack of layers, or no parameters of the names.

    >>> from fastinit import plan
    >>> layer = torch.nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=16)
    >>> model = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    >>> made = plan(model, deepnorm(model))
    >>> [f"{row.distribution.std():.4f}" for row in made.filter("layers.0.linear1.weight").rows]  # 2^-1 / sqrt(12)
    ['0.1443']
    """
    check_model(model)
    _check_globs(value=value, fused=fused, out=out, mlp=mlp)
    _check_found(model, "deepnorm", out=out, mlp=mlp, value=(*value, *fused))
    coders = _coders(model, "deepnorm", out)
    if len(coders) == 1:
        betas = {"": (8.0 * max(coders.values())) ** -0.25}
    else:
        encoder, decoder = coders["encoder"], coders["decoder"]
        betas = {"encoder": 0.87 * (encoder**4 * decoder) ** (-1 / 16), "decoder": (12.0 * decoder) ** -0.25}
    rules = []
    for coder, beta in betas.items():
        plain, scaled = xavier_normal(), xavier_normal(beta)
        rules.append(Rule(_within(coder, fused), (plain, plain, scaled), fan="module", split=3))
        rules.append(Rule(_within(coder, (*value, *out, *mlp)), scaled, fan="module"))
    return Recipe(xavier_normal(), of_model(rules), name="deepnorm", source="Wang et al. 2022, DeepNet, figure 2")


def t_fixup(
    model: nn.Module,
    *,
    value: Sequence[str] = VALUE,
    fused: Sequence[str] = FUSED_QKV,
    out: Sequence[str] = ATTENTION_OUT,
    mlp: Sequence[str] = (*MLP_IN, *MLP_OUT),
) -> Recipe:
    """T-Fixup: xavier_uniform; values, attention outputs and MLPs times 0.67 N^-1/4 in an encoder of N layers, times
    (9 M)^-1/4 in a decoder of M; embeddings N(0, 1 / width), times (9 N)^-1/4, those in the decoder (9 M)^-1/4 (Huang,
    Perez, Ba, Volkovs, ICML 2020, section 3.2).

    For transformers without layer normalisation and without warm-up. A model of one stack counts as an encoder unless
    its names say decoder. The arguments and errors are those of `deepnorm`.
    """
    check_model(model)
    _check_globs(value=value, fused=fused, out=out, mlp=mlp)
    _check_found(model, "t_fixup", out=out, mlp=mlp, value=(*value, *fused))
    coders = _coders(model, "t_fixup", out)
    rules = []
    for coder, layers in coders.items():
        factor = (9.0 * layers) ** -0.25 if coder == "decoder" else 0.67 * layers**-0.25
        within = coder if len(coders) == 2 else ""
        plain, scaled = xavier_uniform(), Scaled(xavier_uniform(), factor)
        rules.append(Rule(_within(within, fused), (plain, plain, scaled), fan="module", split=3))
        rules.append(Rule(_within(within, (*value, *out, *mlp)), scaled, fan="module"))
    if len(coders) == 2:
        in_decoder = Where(regex=r"(^|\.)decoder\.", type=nn.Embedding)
        rules.append(Rule(in_decoder, _t_fixup_embedding(coders["decoder"]), fan="module"))
    # Shared and encoder's embeddings; of a model of one stack, all.
    rules.append(Rule(nn.Embedding, _t_fixup_embedding(next(iter(coders.values()))), fan="module"))
    source = "Huang, Perez, Ba, Volkovs, ICML 2020, section 3.2"
    return Recipe(xavier_uniform(), of_model(rules), name="t_fixup", source=source)


def _t_fixup_embedding(layers: int) -> Scheme:
    return Scaled(VarianceScaling(1.0, "fan_in", "normal"), (9.0 * layers) ** -0.25)


def fixup(model: nn.Module) -> Recipe:
    """Fixup: the last convolution of every residual branch and the classifier zero; the others of a branch of m
    convolutions kaiming_normal by fan_out, times L^(-1 / (2 m - 2)), L being the number of branches.

    Multipliers (`scale`) begin at one, scalar biases (`bias1a` ...) at zero (Zhang, Dauphin, Ma, ICLR 2019, section
    3). For networks without normalisation. A branch is a module with convolutions conv1, conv2 and perhaps conv3; the
    classifier is the last nn.Linear.

    Raises:
        TypeError: no model.
        ValueError: no such branch.

    >>> from fastinit import plan
    >>> block = torch.nn.Module()
    >>> block.conv1, block.conv2 = (torch.nn.Conv2d(8, 8, 3, bias=False) for _ in range(2))
    >>> for row in plan(block, fixup(block)).rows:
    ...     print(row.name, row.distribution)
    conv1.weight N(0, 0.166667^2)
    conv2.weight 0
    """
    check_model(model)
    branches: dict[str, int] = {}  # what stands before its parameters' names -> convolutions in it
    classifier = None
    for _, name, module in named_modules(model):
        convolutions = [
            each for each in ("conv1", "conv2", "conv3") if isinstance(getattr(module, each, None), nn.Conv2d)
        ]
        if len(convolutions) >= 2:
            branches[f"{name}." if name else ""] = len(convolutions)
        if isinstance(module, nn.Linear):
            classifier = name
    if not branches:
        raise ValueError("fixup: expected residual branches with convolutions conv1 and conv2, found none")
    he = kaiming_normal(mode="fan_out", nonlinearity="relu")
    rules = [Rule(Where(name=tuple(exact_glob(f"{name}conv{last}.weight") for name, last in branches.items())), _ZEROS)]
    for convolutions_in_branch in sorted(set(branches.values())):
        factor = len(branches) ** (-1.0 / (2 * convolutions_in_branch - 2))
        inner = tuple(
            exact_glob(f"{name}conv{position}.weight")
            for name, last in branches.items()
            if last == convolutions_in_branch
            for position in range(1, last)
        )
        rules.append(Rule(Where(name=inner), Scaled(he, factor)))
    if classifier is not None:
        rules.append(Rule(exact_glob(f"{classifier}.weight"), _ZEROS))
    rules.append(Rule(re.compile(r"(^|\.)scale$"), Constant(1.0)))
    rules.append(Rule(re.compile(r"(^|\.)bias\d[ab]?$"), _ZEROS))
    return Recipe(he, of_model(rules), name="fixup", source="Zhang, Dauphin, Ma, ICLR 2019, section 3")


def zer_o(model: nn.Module, *, embedding: str | Scheme = Normal(std=0.02)) -> Recipe:  # noqa: B008 (immutable)
    """ZerO: every matrix the partial identity, or Hadamard's where it widens; keys and values of attention zero.

    Nothing is random but embeddings, which the paper leaves as they are, and what is no map: position embeddings,
    tokens, stacks of experts; `embedding` is for those (Zhao, Schäfer, Anandkumar, TMLR 2022: algorithms 1 and 2, and
    section 4 for transformers). The scale of the Hadamard matrix is 2^(-m/2), as in the authors' code; the paper prints
    2^(-(m-1)/2). Every group of a convolution, and every gate of an LSTM, has a matrix of its own.

    Raises:
        TypeError, ValueError: no model, or no scheme; naming the argument.

    >>> from fastinit import plan
    >>> model = torch.nn.Linear(2, 4, bias=False)
    >>> print(plan(model, zer_o(model)).rows[0].distribution)
    0.5 x Hadamard
    """
    check_model(model)
    if isinstance(embedding, str):
        check_choice("embedding", embedding, scheme_names())
    elif isinstance(embedding, type) or not isinstance(embedding, Scheme):
        raise TypeError(f"embedding: expected the name of a scheme or a scheme, got {embedding!r}")
    zero_o = ZerO()
    random = as_scheme(embedding)
    tables = Where(type=(nn.Embedding, nn.EmbeddingBag))
    rules = [Rule(tables, random), Rule(_within("", (*KEY, *VALUE)), _ZEROS)]
    rules.append(Rule(_within("", FUSED_QKV), (zero_o, _ZEROS, _ZEROS), fan="module", split=3))
    rules += [Rule(Where(regex=_TABLE_NAME, dims=dims), random) for dims in (2, 3, 4)]
    stacks: list[str] = []
    roles = Roles(model, zero_o)
    for each in named_modules(model):
        module = each.module
        for own_name, parameter in module._parameters.items():
            if parameter is None or len(global_shape(parameter)) < 2:
                continue
            name, _ = each.names_of(own_name)
            if roles.treatment(name, module, own_name, parameter).scheme is not zero_o:
                continue
            geometry = module_geometry(module, own_name, global_shape(parameter))
            if isinstance(module, CONVOLUTIONS) or len(global_shape(parameter)) == 2:
                own_scheme = ZerO(transposed=geometry.in_dim == 0)
                if geometry.groups > 1 and geometry.fans.fan_out <= geometry.fans.fan_in:
                    rules.append(Rule(exact_glob(name), Dirac(geometry.groups)))
                elif geometry.groups > 1:
                    rules.append(Rule(exact_glob(name), own_scheme, split=geometry.groups, split_dim=0))
                elif own_scheme.transposed:
                    rules.append(Rule(exact_glob(name), own_scheme))
            else:
                stacks.append(exact_glob(name))
    if stacks:
        rules.append(Rule(Where(name=tuple(stacks)), random))
    rules = [each for each in rules if RuleFinder([each]).finds_any(model)]  # a plan warns if a recipe's match nothing
    source = "Zhao, Schäfer, Anandkumar, TMLR 2022, algorithms 1 and 2"
    return Recipe(zero_o, of_model(rules), fan="module", name="zer_o", source=source)


# Learned tables that are parameters by themselves: pos_embed, cls_token, position_embeddings ...
_TABLE_NAME = r"(^|\.)[^.]*(embed|token|position)[^.]*$"


def residual_zeros(
    model: nn.Module,
    scheme: str | Scheme | Recipe,
    *,
    last: Sequence[str] = (*ATTENTION_OUT, *MLP_OUT),
    last_norm: Sequence[str] = LAST_NORM,
) -> Recipe:
    """`scheme`, but zero for what ends a residual branch, so that every branch adds nothing at the start.

    In convolutional networks the weight of the branch's last normalisation (Goyal et al. 2017, section 5.1), elsewhere
    the last projection (Zhang, Dauphin, Ma 2019, section 3; the idea of ReZero and SkipInit without their scalars).

    Args:
        model: must have parameters of these names.
        scheme: a scheme, a preset or a recipe.
        last: globs for the last projections. last_norm: regular expressions for the last normalisations; where the
            first of them matches, it alone is used.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: no parameters of the names.
    """
    check_model(model)
    _check_globs(last=last, last_norm=last_norm)
    recipe = as_recipe(scheme, model)
    norm = next((each for each in last_norm if any(re.search(each, name) for name in _names(model))), None)
    if norm is not None:
        rule, source = Rule(re.compile(norm), _ZEROS), "Goyal et al. 2017, section 5.1"
    else:
        _check_found(model, "residual_zeros", last=last)
        rule, source = Rule(_within("", last), _ZEROS), "Zhang, Dauphin, Ma, ICLR 2019, section 3"
    return Recipe(recipe.scheme, [*of_model([rule]), *recipe.rules], recipe.fan, "residual_zeros", source)
