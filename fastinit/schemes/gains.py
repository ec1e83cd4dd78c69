"""Gains: factors on the std of the weights that make up for how much a nonlinearity shrinks the signal."""

from __future__ import annotations

import difflib

from fastinit import _torch

# The gain 1 / sqrt(E f(z)^2), z ~ N(0, 1), keeps the second moment of the signal level (He et al. 2015, section 2.2,
# with sqrt(2) for ReLU). The numbers come from the quadrature in tests/test_gains.py. "gelu" is the exact function,
# through erf; "elu" has alpha = 1. Brock, De, Smith 2021 have other gains, 1 / std f(z), for signals made mean-free.
MEASURED_GAINS = {
    "gelu": 1.5335304411955353,
    "gelu_tanh": 1.533580521666147,
    "silu": 1.676532470331091,
    "mish": 1.486847581273208,
    "elu": 1.2451983007007066,
    "softplus": 1.0418668355353018,
}
TORCH_NONLINEARITIES = (
    "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "sigmoid", "tanh", "relu", "leaky_relu", "selu",
)  # fmt: skip


def calculate_gain(nonlinearity: str, param: int | float | None = None) -> float:
    """The factor on the weights' std that keeps the signal level through f: 1 / sqrt(E f(z)^2) with z ~ N(0, 1).

    gelu, gelu_tanh, silu (swish), mish, elu and softplus have this gain. The others have the gain of torch's table:
    sqrt(2) for relu, 5/3 for tanh, 3/4 for selu, 1 for sigmoid and linear maps.

    Args:
        nonlinearity: the name of f.
        param: the slope of "leaky_relu" for negative inputs, 0.01 if None. The others ignore it.

    Raises:
        ValueError: the nonlinearity is unknown (the message has the nearest one), or the slope is no number.

    He, Zhang, Ren, Sun, "Delving deep into rectifiers", ICCV 2015, section 2.2.

    >>> calculate_gain("relu")
    1.4142135623730951
    """
    name = "silu" if nonlinearity == "swish" else nonlinearity
    known = (*TORCH_NONLINEARITIES, *MEASURED_GAINS)
    if name not in known:
        nearest = difflib.get_close_matches(str(name).lower(), known, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"Unsupported nonlinearity {nonlinearity}; expected one of {', '.join(known)}{hint}")
    if name in MEASURED_GAINS:
        return MEASURED_GAINS[name]
    return float(_torch.calculate_gain(name, param))
