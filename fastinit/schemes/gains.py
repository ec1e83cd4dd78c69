"""By how much a nonlinearity shrinks the signal: the factor on the std of the weights that makes up for it."""

from __future__ import annotations

import difflib

from fastinit import _torch

# 1 / sqrt(E f(z)^2), z ~ N(0, 1): the weights' gain that keeps the second moment of the signal level (He et al. 2015,
# section 2.2, where it gives sqrt(2) for ReLU). By quadrature, tests/test_gains.py. gelu is the exact one, through erf;
# elu has alpha = 1. They differ from those of Brock, De, Smith 2021 (1 / std f(z), for signals made mean-free).
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
    """1 / sqrt(E f(z)^2) with z ~ N(0, 1): the factor on the weights' std that keeps the signal level through f.

    gelu, gelu_tanh, silu (swish), mish, elu and softplus have this gain. The others have that of torch's table: sqrt(2)
    for relu, 5/3 for tanh, 3/4 for selu, 1 for sigmoid and linear maps.

    Args:
        nonlinearity: its name.
        param: the slope of "leaky_relu" for negative inputs, 0.01 if None; the others ignore it.

    Raises:
        ValueError: an unknown nonlinearity (the message has the nearest one), or a slope that is no number.

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
