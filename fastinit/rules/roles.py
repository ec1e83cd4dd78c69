"""The role of a parameter, and its default treatment where no rule matches: one list of cases, the first decides."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import nn

from fastinit._torch import BATCH_NORMS
from fastinit.capture.own import Author
from fastinit.rules.select import KEEP, Rule
from fastinit.schemes.base import Scheme
from fastinit.schemes.named import Constant, Normal, kaiming_uniform
from fastinit.schemes.structured import LogRange, TimeStep


class Treatment(NamedTuple):
    """The decision about a parameter. `scheme` None: it keeps its values. `covered`: a rule or a role decided."""

    scheme: Scheme | tuple[Scheme, ...] | None
    reason: str
    covered: bool = True
    zero_row: int | None = None  # the index along dimension 0 that becomes zero
    rule: Rule | None = None


_TORCH_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, *BATCH_NORMS)
_NORM_NAME = re.compile(r"Norm(Gated|\dd|\dP)?$")
# Names for the factor and the summand of a normalisation in torch, transformers, TensorFlow's ports, the Annotated
# Transformer and Glow. The shape may have axes of length 1 for broadcasting: (1, channels, 1, 1).
_SCALE_NAMES = frozenset({"weight", "gamma", "scale", "g", "a_2"})
_SHIFT_NAMES = frozenset({"bias", "beta", "shift", "b_2", "loc"})

# These normalisations compute x * (1 + weight), so their weight starts at zero. The names are those of the classes in
# transformers 5.23 that have `1.0 + self.weight`.
_ZERO_CENTERED_NORM = re.compile(
    r"^((T5|Vault|Recurrent)?Gemma[23]?|T5Gemma2|Qwen3Next|Qwen3_5(Moe)?|Qwen4ExpText|Step3p7|MiniMaxM3VL"
    r"|MuseSparkText(Centered|InputScaled))RMSNorm$|^VideoPrismLayerNorm$|LayerNorm1P$"
)

_BIAS_NAME = re.compile(r"(^|_)bias$|^bias_(ih|hh)(_l\d+)?(_reverse)?$|^b_(q|k|v|o)$")

# LoRA adapters of PEFT and loralib. B is zero, so the update B A starts at zero (Hu et al. 2021, section 4.1). A gets
# the kaiming_uniform with a = sqrt(5) of both libraries. Adapters of an embedding have A zero and B N(0, 1) instead.
_LORA_ZERO = re.compile(r"(^|\.)(lora_B|lora_embedding_A)(\.|$)")
_LORA_A_NAME = re.compile(r"(^|\.)lora_A(\.|$)")
_LORA_EMBEDDING_B = re.compile(r"(^|\.)lora_embedding_B(\.|$)")

_ZEROS = Constant(0.0)
_ONES = Constant(1.0)
_STANDARD_NORMAL = Normal()
_LORA_A = kaiming_uniform(a=5.0**0.5)
_LOG_RANGE = LogRange()
_TIME_STEP = TimeStep()


@lru_cache(maxsize=4096)
def own_type(module_type: type) -> type:
    """The class as its author wrote it: the base of what fully_shard, replicate and parametrizations derive from it."""
    while module_type.__name__.endswith(module_type.__bases__[-1].__name__):
        first, made_from = module_type.__bases__[0], module_type.__bases__[-1]
        sharded = len(module_type.__bases__) == 2 and first.__module__.startswith("torch.distributed.")
        if not sharded and module_type.__name__ != f"Parametrized{made_from.__name__}":
            break
        module_type = made_from
    return module_type


def kind_of(module: nn.Module) -> str:
    """The name of a module's class, as its author wrote it."""
    module_type: Any = type(module)  # mypy takes the types of modules for unhashable
    return own_type(module_type).__name__


@lru_cache(maxsize=4096)
def _is_norm(module_type: type) -> bool:
    author: Any = module_type
    return issubclass(module_type, _TORCH_NORMS) or _NORM_NAME.search(own_type(author).__name__) is not None


def _is_zero_centered(module: nn.Module) -> bool:
    # TransformerEngine's norms have the switch zero_centered_gamma.
    return bool(_ZERO_CENTERED_NORM.search(kind_of(module)) or getattr(module, "zero_centered_gamma", False))


@lru_cache(maxsize=4096)
def _is_bias(parameter_name: str) -> bool:
    return _BIAS_NAME.search(parameter_name) is not None


def _long_axes(shape: Sequence[int]) -> int:
    """The number of axes longer than one. A tensor of shape (1, C, 1, 1) counts as a vector."""
    return sum(size != 1 for size in shape)


def default_treatment(
    name: str, module: nn.Module, own_name: str, parameter: torch.Tensor, dimensions: int, scheme: Scheme
) -> Treatment:
    """The treatment of a parameter that no rule matches. `own_name` is the parameter's name in `module`.

    Biases get zeros, normalisation weights ones (zeros where the module computes 1 + w), and matrices the scheme. LoRA
    adapters, Mamba's state space, slopes of PReLU and LayerScale get their published values. Any other vector is kept,
    and counts as not covered. So does an integer tensor, which holds packed or quantised values.
    """
    if not (parameter.dtype.is_floating_point or parameter.dtype.is_complex):
        return Treatment(None, f"{parameter.dtype}: not sampled", covered=False)
    if own_name == "bias" and not name.endswith("dt_proj.bias"):
        return Treatment(_ZEROS, "bias")
    special = _special_treatment(name, module, own_name, dimensions)
    if special is not None:
        return special
    if _is_bias(own_name):
        return Treatment(_ZEROS, "bias")
    module_type: Any = type(module)  # mypy takes the types of modules for unhashable
    if _is_norm(module_type) and (isinstance(module, _TORCH_NORMS) or _long_axes(parameter.shape) < 2):
        return _of_norm(module, own_name)
    if dimensions >= 2:
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.padding_idx is not None:
            return Treatment(scheme, f"embedding, padding row {module.padding_idx} zero", zero_row=module.padding_idx)
        return Treatment(scheme, "matrix")
    return Treatment(None, f"{dimensions}-d, neither bias nor normalisation weight: no rule", covered=False)


def _of_norm(module: nn.Module, own_name: str) -> Treatment:
    if own_name in _SHIFT_NAMES:
        return Treatment(_ZEROS, "normalisation shift")
    if own_name not in _SCALE_NAMES:
        return Treatment(None, f"neither scale nor shift of {kind_of(module)}: no rule", covered=False)
    if _is_zero_centered(module):
        return Treatment(_ZEROS, f"{kind_of(module)} computes 1 + weight")
    return Treatment(_ONES, "normalisation weight")


def _special_treatment(name: str, module: nn.Module, own_name: str, dimensions: int) -> Treatment | None:
    """The treatment of parameters whose values have a special meaning; None for all others."""
    if "lora_" in name:
        if _LORA_ZERO.search(name):
            return Treatment(_ZEROS, "LoRA: the update starts at zero")
        if _LORA_A_NAME.search(name) and dimensions >= 2:
            return Treatment(_LORA_A, "LoRA: kaiming_uniform, a = sqrt(5)")
        if _LORA_EMBEDDING_B.search(name):
            return Treatment(_STANDARD_NORMAL, "LoRA of an embedding: N(0, 1)")
    if own_name == "A_log":
        return Treatment(_LOG_RANGE, "state space: log(1 ... n)")
    if own_name == "D" and "A_log" in module._parameters:  # without A_log, D may be any matrix
        return Treatment(_ONES, "state space: skip connection")
    if own_name == "dt_bias" or name.endswith("dt_proj.bias"):
        return Treatment(_TIME_STEP, "state space: time steps 0.001 to 0.1")
    if isinstance(module, nn.PReLU):
        return Treatment(Constant(float(module.init)), "PReLU: its initial slope")
    if dimensions == 1:
        initial = getattr(module, "init_values", None)  # timm's LayerScale
        if isinstance(initial, (int, float)):
            return Treatment(Constant(float(initial)), f"{kind_of(module)}: its init_values")
    return None


def own_treatment(author: Author, scheme: Scheme) -> Treatment:
    """The treatment under "own": what the module's own code gives, or else none."""
    if author.distribution is None:
        return Treatment(None, f"{author.reason}: kept", covered=False)
    return Treatment(scheme, f"own: {author.reason}")


def ruled_treatment(rule: Rule, module: nn.Module) -> Treatment:
    """The treatment that `rule` gives. The padding row of an embedding stays zero under any scheme."""
    if rule.scheme is KEEP:
        return Treatment(None, f"{rule}: kept", rule=rule)
    row = rule.zero_row
    if row is None and isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        row = module.padding_idx
    return Treatment(rule.scheme, str(rule), zero_row=row, rule=rule)  # type: ignore[arg-type]


def lora_rules(a: str | Scheme = _LORA_A) -> list[Rule]:
    """Rules for LoRA adapters: the scheme `a` for A, zeros for B (Hu et al. 2021, section 4.1, with a normal A).

    The default is PEFT's kaiming_uniform. Every plan applies that one without any rule. PEFT's "gaussian" is
    Normal(std=1 / rank).
    """
    return [
        Rule(_LORA_ZERO, "zeros"),
        Rule(_LORA_A_NAME, a),
        Rule(_LORA_EMBEDDING_B, "normal"),
    ]
