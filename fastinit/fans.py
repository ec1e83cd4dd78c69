"""fan_in and fan_out of a parameter: how many inputs meet in an output, and how many outputs an input reaches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Fans(NamedTuple):
    fan_in: int
    fan_out: int


def torch_fans(shape: Sequence[int]) -> Fans:
    """The fans that `torch.nn.init` computes: dimension 1 is in, dimension 0 is out, the rest is the receptive field.

    fan_in = shape[1] * prod(shape[2:]), fan_out = shape[0] * prod(shape[2:]).

    Raises:
        ValueError: fewer than two dimensions.

    >>> torch_fans((64, 3, 7, 7))
    Fans(fan_in=147, fan_out=3136)
    """
    if len(shape) < 2:
        raise ValueError(f"fans need at least 2 dimensions, got shape {tuple(shape)}")
    receptive_field = math.prod(shape[2:])
    return Fans(shape[1] * receptive_field, shape[0] * receptive_field)
