"""Gains: torch's table, and those of smooth nonlinearities against quadrature."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
import torch
from conftest import needs_native
from torch import nn

import fastinit
from fastinit.schemes.gains import MEASURED_GAINS, TORCH_NONLINEARITIES
from fastinit.schemes.named import VarianceScaling

SMOOTH: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": nn.functional.gelu,
    "gelu_tanh": lambda z: nn.functional.gelu(z, approximate="tanh"),
    "silu": nn.functional.silu,
    "swish": nn.functional.silu,
    "mish": nn.functional.mish,
    "elu": nn.functional.elu,
    "softplus": nn.functional.softplus,
}


@pytest.mark.parametrize("name", TORCH_NONLINEARITIES)
def test_the_gains_that_torch_has_are_torchs(name: str) -> None:
    assert fastinit.calculate_gain(name) == nn.init.calculate_gain(name)  # type: ignore[arg-type]
    assert isinstance(fastinit.calculate_gain(name), float)


def test_the_table_of_torch_is_whole() -> None:
    from typing import get_args

    assert set(get_args(nn.init._NonlinearityType)) == set(TORCH_NONLINEARITIES)


@pytest.mark.parametrize("slope", [0, 1, 0.0, 0.2, -0.5, math.sqrt(5), None])
def test_the_slope_of_leaky_relu_is_read_as_torch_does(slope: float | None) -> None:
    assert fastinit.calculate_gain("leaky_relu", slope) == nn.init.calculate_gain("leaky_relu", slope)


@pytest.mark.parametrize("slope", [True, "0.1", [0.1]])
def test_slopes_that_are_no_numbers_are_refused_as_torch_does(slope: object) -> None:
    for module in (fastinit, nn.init):
        with pytest.raises(ValueError, match="not a valid number"):
            module.calculate_gain("leaky_relu", slope)  # type: ignore[attr-defined]


def test_every_measured_gain_is_tested_here() -> None:
    assert set(MEASURED_GAINS) == set(SMOOTH) - {"swish"}


def second_moment(f: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """E f(z)^2, z ~ N(0, 1): Gauss-Legendre on pieces that end where elu has its kink, at zero."""
    nodes, weights = (torch.from_numpy(each) for each in np.polynomial.legendre.leggauss(40))
    edges = torch.linspace(-14.0, 14.0, 29, dtype=torch.float64)  # beyond, the density is below 1e-42
    total = 0.0
    for low, high in itertools.pairwise(edges):
        z = 0.5 * (low + high) + 0.5 * (high - low) * nodes
        density = torch.exp(-0.5 * z**2) / math.sqrt(2.0 * math.pi)
        total += float((0.5 * (high - low) * weights * density * f(z) ** 2).sum())
    return total


def test_the_quadrature_is_right() -> None:
    assert second_moment(lambda z: z) == pytest.approx(1.0, rel=1e-14)
    assert second_moment(torch.relu) == pytest.approx(0.5, rel=1e-14)


@pytest.mark.parametrize("name", SMOOTH)
def test_measured_gains_keep_the_second_moment_of_torchs_functions(name: str) -> None:
    expected = 1.0 / math.sqrt(second_moment(SMOOTH[name]))
    # Softplus of torch is z itself above 20, exactly what it rounds to.
    assert fastinit.calculate_gain(name) == pytest.approx(expected, rel=2e-15)


def test_the_gain_of_gelu_is_the_closed_form() -> None:
    # E (z Phi(z))^2 = 1/3 + 1 / (2 pi sqrt(3)): Stein's lemma twice, and arcsin(1/2) for E Phi(z)^2 = 1/3.
    mpmath.mp.dps = 30
    moment = mpmath.mpf(1) / 3 + 1 / (2 * mpmath.pi * mpmath.sqrt(3))
    assert fastinit.calculate_gain("gelu") == pytest.approx(float(1 / mpmath.sqrt(moment)), rel=1e-15)


@pytest.mark.parametrize("name", ["gelu_tanh", "silu", "mish", "elu", "softplus"])
def test_measured_gains_agree_with_mpmath(name: str) -> None:
    mpmath.mp.dps = 25
    functions = {
        "gelu_tanh": lambda z: z / 2 * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (z + 0.044715 * z**3))),
        "silu": lambda z: z / (1 + mpmath.exp(-z)),
        "mish": lambda z: z * mpmath.tanh(mpmath.log1p(mpmath.exp(z))),
        "elu": lambda z: z if z > 0 else mpmath.expm1(z),
        "softplus": lambda z: mpmath.log1p(mpmath.exp(z)),
    }
    f = functions[name]
    moment = mpmath.quad(lambda z: f(z) ** 2 * mpmath.npdf(z), range(-14, 15, 2))
    assert fastinit.calculate_gain(name) == pytest.approx(float(1 / mpmath.sqrt(moment)), rel=1e-14)


@pytest.mark.parametrize(
    ("given", "nearest"),
    [("gellu", "gelu"), ("leaky-relu", "leaky_relu"), ("Relu", "relu"), ("gelu_tan", "gelu_tanh"), ("tahn", "tanh")],
)
def test_unknown_names_give_the_nearest(given: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=rf"Unsupported nonlinearity {given}; .*did you mean '{nearest}'\?"):
        fastinit.calculate_gain(given)
    with pytest.raises(ValueError, match=f"did you mean '{nearest}'"):
        fastinit.kaiming_normal_(torch.empty(3, 3), nonlinearity=given)


@pytest.mark.parametrize("given", ["qwertz", None, 3, ["relu"], ("relu",)])
def test_what_resembles_nothing_gives_the_list_alone(given: object) -> None:
    with pytest.raises(ValueError, match=r"Unsupported nonlinearity .* expected one of linear, .*, softplus"):
        fastinit.calculate_gain(given)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SMOOTH)
def test_kaiming_uses_the_measured_gain(name: str) -> None:
    scheme = fastinit.scheme("kaiming_uniform", nonlinearity=name, mode="fan_out")
    assert isinstance(scheme, VarianceScaling)
    assert scheme.scale == pytest.approx(fastinit.calculate_gain(name) ** 2, rel=1e-15)
    torch.manual_seed(0)
    weight = torch.empty(50, 4000, dtype=torch.float64)
    fastinit.kaiming_uniform_(weight, nonlinearity=name, mode="fan_out")
    bound = fastinit.calculate_gain(name) * math.sqrt(3.0 / 50)
    assert (1 - 1e-4) * bound < weight.abs().max() <= bound


def moments_through(nonlinearity: str, seed: int) -> list[float]:
    """Second moments of the signal before the gelu of a network whose weights are kaiming_normal's, layer by layer."""
    weight = torch.empty(2048, 2048)
    scheme = fastinit.scheme("kaiming_normal", nonlinearity=nonlinearity)
    signal = torch.randn(64, 2048, generator=torch.Generator().manual_seed(seed))
    moments = []
    for layer in range(20):
        fastinit.init_([weight], scheme, names=[f"{layer}.weight"], seed=seed)
        signal = nn.functional.gelu(signal) @ weight.t()
        moments.append(float((signal**2).mean()))
    return moments


@pytest.mark.slow
@needs_native  # for the speed
def test_twenty_layers_of_gelu_keep_their_second_moment() -> None:
    # Level is an unstable fixed point: d log E' / d log E = 1.14 there, so that deviations grow 14-fold in 20 layers.
    last = [math.log(moments_through("gelu", seed)[-1]) for seed in range(8)]
    error = statistics.stdev(last) / math.sqrt(len(last))
    assert error < 0.25 and abs(statistics.mean(last)) < 4.0 * error
    # The gains of others do not.
    assert moments_through("relu", 0)[-1] < 0.01 and moments_through("silu", 0)[-1] > 50.0
