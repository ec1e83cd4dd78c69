"""Which parameters are called as biases are. Rules and roles ask it; it looks at names alone, and not at values."""

from __future__ import annotations

import re
from functools import lru_cache

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
    if own_name in SHIFTS:
        return not SCALES.isdisjoint(module._parameters)
    return _is_bias_name(own_name)


@lru_cache(maxsize=4096)
def _is_bias_name(own_name: str) -> bool:
    return _BIAS.search(own_name) is not None
