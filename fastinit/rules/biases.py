"""Which parameters are called as biases are. Rules and roles ask it; it looks at names and shapes, never at values."""

from __future__ import annotations

import re
from functools import lru_cache

import torch
from torch import nn

# Names of torch (bias, bias_ih_l0, in_proj_bias, bias_k), of transformers (gate_up_proj_bias) and of others (b_q).
_BIAS = re.compile(r"(^|_)bias$|^bias_|^b_[qkvo]$")
# Names for the summand and for the factor of a normalisation in torch, transformers, TensorFlow's ports, the Annotated
# Transformer and Glow. A name of the summand counts only beside one of the factor: a `beta` alone is the slope of
# Swish.
SHIFTS = frozenset({"beta", "shift", "b_2", "loc"})
SCALES = frozenset({"weight", "gamma", "scale", "g", "a_2"})


def is_bias(own_name: str, module: nn.Module) -> bool:
    """Whether `own_name`, the name of a parameter in its module, is that of a bias or of a normalisation's shift."""
    if own_name in SHIFTS:  # a vector beside one as long: neurons have scalars of these names
        shift = module._parameters.get(own_name)
        shape = _shape(shift)
        return (
            shape is not None
            and len(shape) > 0
            and any(_shape(module._parameters.get(each)) == shape for each in SCALES)
        )
    return _is_bias_name(own_name)


def _shape(parameter: torch.Tensor | None) -> torch.Size | None:
    return None if parameter is None or nn.parameter.is_lazy(parameter) else parameter.shape


@lru_cache(maxsize=4096)
def _is_bias_name(own_name: str) -> bool:
    return _BIAS.search(own_name) is not None
