"""Distributions of a parameter's values. The rows of a plan hold them, and a run writes values from them.

A distribution is plain data, without fans. A `Sampled` distribution computes every element from that element's random
words alone; the native code fills all such tensors in one pass. The others need the whole tensor, and run/composed.py
has a writer for each. `Blocks`, `Stack` and `ZeroRow` combine other distributions.
"""

from fastinit.schemes.distributions.base import Distribution, Needs, Sampled, Split, check_not_negative, check_order
from fastinit.schemes.distributions.compound import Blocks, Stack, ZeroRow, check_distribution
from fastinit.schemes.distributions.matrices import (
    DeltaOrthogonal,
    Hadamard,
    IdentityPlus,
    Orthogonal,
    Sparse,
    Spectral,
)
from fastinit.schemes.distributions.ranges import check_range, range_warning
from fastinit.schemes.distributions.sampled import (
    ZERO,
    Constant,
    Diagonal,
    Normal,
    TruncNormal,
    Uniform,
    truncated_std,
)
from fastinit.schemes.distributions.sequences import (
    Chrono,
    LogOfUniform,
    LogRange,
    Series,
    TimeStep,
    check_logs,
    check_time_steps,
    inverse_softplus,
)

__all__ = [
    "ZERO",
    "Blocks",
    "Chrono",
    "Constant",
    "DeltaOrthogonal",
    "Diagonal",
    "Distribution",
    "Hadamard",
    "IdentityPlus",
    "LogOfUniform",
    "LogRange",
    "Needs",
    "Normal",
    "Orthogonal",
    "Sampled",
    "Series",
    "Sparse",
    "Spectral",
    "Split",
    "Stack",
    "TimeStep",
    "TruncNormal",
    "Uniform",
    "ZeroRow",
    "check_distribution",
    "check_logs",
    "check_not_negative",
    "check_order",
    "check_range",
    "check_time_steps",
    "inverse_softplus",
    "range_warning",
    "truncated_std",
]
