"""Every scheme against the formula of its paper: bounds and moments of ten million values, in four dtypes.

The formulas are written out here by hand; nothing of them is asked of the package.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import DTYPES, needs_native
from scipy import integrate, stats

import fastinit
from fastinit.rules.lists import plan_tensors
from fastinit.schemes import distributions
from fastinit.schemes.base import Scheme
from fastinit.schemes.fans import FanConvention

FAN_IN, FAN_OUT = 2000, 5000
MATRIX = (FAN_OUT, FAN_IN)  # ten million elements
KERNEL = (400, 1000, 5, 5)  # fan_in 25000, fan_out 10000
SQRT_3 = math.sqrt(3.0)
WITHIN_TWO_SIGMA = 0.87962566103423978  # std of a standard normal within two sigma: JAX, jax.nn.initializers


# sigma with which a normal between -1 and 3 sigma has the std 0.02.
ONE_SIDED = 0.02 / float(stats.truncnorm.std(-1.0, 3.0))


def uniform(bound: float) -> Any:
    return stats.uniform(-bound, 2.0 * bound)


def normal(std: float, mean: float = 0.0) -> Any:
    return stats.norm(mean, std)


def truncated(sigma: float, low: float, high: float, mean: float = 0.0) -> Any:
    """A normal of this sigma before truncation, within absolute bounds."""
    return stats.truncnorm((low - mean) / sigma, (high - mean) / sigma, loc=mean, scale=sigma)


def two_sigma(std: float) -> Any:
    """Truncated at two of its own sigma, with `std` afterwards."""
    sigma = std / WITHIN_TWO_SIGMA
    return truncated(sigma, -2.0 * sigma, 2.0 * sigma)


class Case(NamedTuple):
    scheme: str | Scheme
    wanted: Any  # a frozen scipy distribution
    shape: tuple[int, ...] = MATRIX
    fan: FanConvention = "torch"
    name: str = "w"


@dataclass(frozen=True)
class at_layer:
    """What a scheme that looks at the depth gives layer 3 of 12."""

    scheme: Scheme

    def distribution(self, context: fastinit.Context) -> distributions.Distribution:
        return self.scheme.distribution(fastinit.Context(context.shape, layer=3, layers=12))


variance_scaling = fastinit.VarianceScaling
CASES: dict[str, Case] = {
    # torch.nn.init
    "uniform": Case(fastinit.Uniform(-0.3, 0.9), stats.uniform(-0.3, 1.2)),
    "uniform by name": Case("uniform", stats.uniform(0.0, 1.0)),
    "normal": Case(fastinit.Normal(0.2, 0.7), normal(0.7, 0.2)),
    "normal by name": Case("normal", normal(1.0)),
    "trunc_normal by name": Case("trunc_normal", truncated(1.0, -2.0, 2.0)),
    "trunc_normal": Case(fastinit.TruncNormal(0.1, 0.5, (-0.4, 1.3)), truncated(0.5, -0.4, 1.3, 0.1)),
    "trunc_normal, one side": Case(fastinit.TruncNormal(0.0, 2.0, (0.5, math.inf)), truncated(2.0, 0.5, math.inf)),
    "xavier_uniform": Case("xavier_uniform", uniform(math.sqrt(6.0 / (FAN_IN + FAN_OUT)))),
    "xavier_uniform, gain": Case(
        fastinit.scheme("xavier_uniform", gain=5 / 3), uniform(5 / 3 * math.sqrt(6.0 / (FAN_IN + FAN_OUT)))
    ),
    "xavier_uniform, kernel": Case("xavier_uniform", uniform(math.sqrt(6.0 / 35000)), KERNEL),
    "xavier_normal": Case("xavier_normal", normal(math.sqrt(2.0 / (FAN_IN + FAN_OUT)))),
    "kaiming_uniform": Case("kaiming_uniform", uniform(math.sqrt(6.0 / FAN_IN))),
    "kaiming_uniform, a": Case(fastinit.scheme("kaiming_uniform", a=math.sqrt(5.0)), uniform(1.0 / math.sqrt(FAN_IN))),
    "kaiming_normal": Case("kaiming_normal", normal(math.sqrt(2.0 / FAN_IN))),
    "kaiming_normal, fan_out": Case(
        fastinit.scheme("kaiming_normal", mode="fan_out", nonlinearity="relu"), normal(math.sqrt(2.0 / 10000)), KERNEL
    ),
    "kaiming_normal, leaky": Case(
        fastinit.scheme("kaiming_normal", a=0.2, nonlinearity="leaky_relu"), normal(math.sqrt(2.0 / 1.04 / FAN_IN))
    ),
    "kaiming_normal, tanh": Case(
        fastinit.scheme("kaiming_normal", nonlinearity="tanh"), normal(5.0 / 3.0 / math.sqrt(FAN_IN))
    ),
    "kaiming_normal, selu": Case(
        fastinit.scheme("kaiming_normal", nonlinearity="selu"), normal(0.75 / math.sqrt(FAN_IN))
    ),
    # E gelu(z)^2 = 1/3 + 1 / (2 sqrt(3) pi)
    "kaiming_normal, gelu": Case(
        fastinit.scheme("kaiming_normal", nonlinearity="gelu"),
        normal(1.0 / math.sqrt((1.0 / 3.0 + 1.0 / (2.0 * SQRT_3 * math.pi)) * FAN_IN)),
    ),
    # JAX and Keras
    "lecun_uniform": Case("lecun_uniform", uniform(math.sqrt(3.0 / FAN_IN))),
    "lecun_normal": Case("lecun_normal", two_sigma(1.0 / math.sqrt(FAN_IN))),
    "variance_scaling by name": Case("variance_scaling", normal(1.0 / math.sqrt(FAN_IN))),
    **{
        f"variance_scaling, {mode}, {shape}": Case(
            variance_scaling(1.7, mode, shape),  # type: ignore[arg-type]
            of(math.sqrt(1.7 / fan)),
        )
        for mode, fan in {
            "fan_in": FAN_IN,
            "fan_out": FAN_OUT,
            "fan_avg": 0.5 * (FAN_IN + FAN_OUT),
            "fan_geo_avg": math.sqrt(FAN_IN * FAN_OUT),
        }.items()
        for shape, of in {
            "uniform": lambda std: uniform(SQRT_3 * std),
            "normal": normal,
            "truncated_normal": two_sigma,
        }.items()
    },
    # (5, 5, in, out) kernels, and a leading axis that counts for neither.
    "JAX's axes": Case(
        variance_scaling(1.0, "fan_in", "truncated_normal"), two_sigma(1 / 50), (5, 5, 100, 4000), fastinit.FanAxes()
    ),
    "JAX's batch axis": Case(
        variance_scaling(1.0, "fan_out", "normal"),
        normal(1.0 / 40),
        (25, 250, 1600),
        fastinit.FanAxes(in_axis=-2, out_axis=-1, batch_axis=0),
    ),
    "Keras' vector": Case(
        variance_scaling(3.0, "fan_avg", "uniform"), uniform(3e-3 / math.sqrt(10.0)), (10**7,), "keras"
    ),
    "in sigma, std after": Case(
        fastinit.TruncNormal(0.0, 0.02, (-2.0, 2.0), unit="sigma", std_is="after"), two_sigma(0.02)
    ),
    "in sigma, to one side, std after": Case(
        fastinit.TruncNormal(0.0, 0.02, (-1.0, 3.0), unit="sigma", std_is="after"),
        truncated(ONE_SIDED, -1.0 * ONE_SIDED, 3.0 * ONE_SIDED),
    ),
    "absolute, std after": Case(
        fastinit.TruncNormal(0.0, 0.5, (-2.0, 2.0), std_is="after"), truncated(0.5, -2.0, 2.0)
    ),
    # Depth
    "scaled": Case(fastinit.Scaled(fastinit.Normal(0.1, 0.5), 0.25), normal(0.125, 0.025)),
    "scaled, truncated": Case(
        fastinit.Scaled(fastinit.TruncNormal(0.0, 1.0, (-1.0, 2.0)), 0.01), truncated(0.01, -0.01, 0.02)
    ),
    "depth_scaled, GPT-2": Case(
        at_layer(fastinit.DepthScaled(fastinit.Normal(std=0.02))), normal(0.02 / math.sqrt(24))
    ),
    "depth_scaled, by layer": Case(
        at_layer(fastinit.DepthScaled(fastinit.Normal(std=0.02), by="layer")), normal(0.02 / math.sqrt(8))
    ),
    "depth_scaled, DeepNorm": Case(
        at_layer(fastinit.DepthScaled(fastinit.scheme("xavier_normal"), branches=8.0, exponent=0.25)),
        normal(math.sqrt(2.0 / (FAN_IN + FAN_OUT)) / 96**0.25),
    ),
}  # fmt: skip

# Those whose values are not independent draws of one distribution have tests of their own.
ELSEWHERE = {
    "constant", "zeros", "ones", "eye", "dirac", "orthogonal", "delta_orthogonal", "svd",
    "identity_plus_orthogonal", "sparse", "zer_o", "log_range",
    "time_step", "scaled", "depth_scaled", "own", "chrono", "forget_bias", "log_of_uniform", "ramp", "rwkv7_mix",
    "rwkv7_ramp", "rwkv7_scale",
    "glorot_uniform", "glorot_normal", "he_uniform", "he_normal",  # other names of xavier_* and kaiming_*
}  # fmt: skip


def test_every_registered_scheme_is_here() -> None:
    by_name = {name for name in fastinit.scheme_names() if not name.startswith("test_")} - ELSEWHERE
    assert by_name <= {case.scheme for case in CASES.values() if isinstance(case.scheme, str)}


@cache
def ten_million(dtype: torch.dtype) -> torch.Tensor:
    """Memory for all cases: what is fresh costs more than the values."""
    return torch.empty(10**7, dtype=dtype)


def central_moments(values: torch.Tensor, mean: float) -> list[float]:
    """The means of (x - mean)^k for k = 1 to 4, summed in float64."""
    sums = np.zeros(4)
    for chunk in values.flatten().split(2**16):  # which stay in the cache
        deviation = chunk.double().sub_(mean)
        square = deviation * deviation
        each = deviation.sum(), square.sum(), torch.dot(square, deviation), torch.dot(square, square)
        sums += [float(one) for one in each]
    return list(sums / values.numel())


def wanted_moments(of: Any) -> tuple[list[float], list[float]]:
    """Central moments 1 to 4, and the standard deviations of (x - mean)^k, by quadrature in units of the std."""
    mean, std = float(of.mean()), float(of.std())
    low, high = ((each - mean) / std for each in of.support())

    def moment(k: int) -> float:
        return float(integrate.quad(lambda z: z**k * of.pdf(mean + z * std) * std, max(low, -12.0), min(high, 12.0))[0])

    moments = [moment(k) for k in range(9)]
    spreads = [math.sqrt(moments[2 * k] - moments[k] ** 2) for k in range(1, 5)]
    return [moments[k] * std**k for k in range(1, 5)], [spread * std**k for k, spread in enumerate(spreads, 1)]


@pytest.mark.slow
@needs_native  # torch's uniform and normal are not right in bfloat16
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_ten_million_values_have_the_moments_and_bounds_of_the_formula(case: Case) -> None:
    mean, std = float(case.wanted.mean()), float(case.wanted.std())
    low, high = case.wanted.support()
    wanted, spreads = wanted_moments(case.wanted)
    for dtype in DTYPES:
        tensor = ten_million(dtype).view(case.shape)
        fastinit.init_([tensor], case.scheme, names=[case.name], fan=case.fan, seed=20)
        least, greatest = tensor.min().item(), tensor.max().item()
        assert low * (1 + math.copysign(1e-15, -low)) <= least, dtype
        assert greatest <= high * (1 + math.copysign(1e-15, high)), dtype
        # What lies within a thousandth of the range from a finite bound is not empty: the bounds are no wider.
        reach = 1e-3 * (min(high, mean + 9 * std) - max(low, mean - 9 * std)) + torch.finfo(dtype).eps * abs(high)
        assert math.isinf(high) or greatest > high - reach, dtype
        for k, (found, moment, spread) in enumerate(
            zip(central_moments(tensor, mean), wanted, spreads, strict=True), 1
        ):
            # Rounding once moves the k-th moment by the order of (epsilon / 2)^2 / 12 relative to std^k.
            rounding = k * torch.finfo(dtype).eps ** 2 * (std + abs(mean)) ** k / 12
            assert abs(found - moment) < 4.0 * spread / math.sqrt(10**7) + rounding, (dtype, k)


@pytest.mark.slow
@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moments_of_orthogonal_matrices(dtype: torch.dtype) -> None:
    tensor = torch.empty(10_000, 1_000, dtype=dtype)
    fastinit.init_([tensor], fastinit.Orthogonal(gain=2.0), seed=3)
    values = tensor.double()
    # Columns of norm 2: the second moment is no sample, but a sum of squares that is 4 in every column.
    assert values.square().mean().sqrt().item() == pytest.approx(2.0 / 100.0, rel=torch.finfo(dtype).eps)
    assert abs(values.mean().item()) < 4.0 * 0.02 / math.sqrt(10**7)
    # An entry of a unit vector in n dimensions has fourth moment 3 / (n (n + 2)); its spread is nearly a normal's.
    fourth = values.pow(4).mean().item() / 16.0
    tolerance = 4.0 * math.sqrt(96.0 / 9.0 / 10**7) + 4 * torch.finfo(dtype).eps ** 2
    assert fourth == pytest.approx(3.0 / (1e4 * 10_002), rel=tolerance)


@pytest.mark.slow
@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moments_of_sparse_matrices(dtype: torch.dtype) -> None:
    tensor = torch.empty(1_000, 10_000, dtype=dtype)
    fastinit.init_([tensor], fastinit.Sparse(sparsity=0.7, std=0.5), seed=3)
    assert ((tensor == 0).sum(0) == 700).all()
    kept = tensor[tensor != 0].double()
    assert kept.square().mean().item() == pytest.approx(0.25, rel=4.0 * math.sqrt(2.0 / 3e6))
    assert abs(kept.mean().item()) < 4.0 * 0.5 / math.sqrt(3e6)
    # Every row is as often chosen: hypergeometric, 10 000 columns, chance 0.7.
    zeros_in_row = (tensor == 0).sum(1).double()
    assert ((zeros_in_row - 7000).abs() < 5.0 * math.sqrt(10_000 * 0.7 * 0.3)).all()


@pytest.mark.slow
@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moments_of_time_steps(dtype: torch.dtype) -> None:
    tensor = torch.empty(10**6, dtype=dtype)  # computed one by one in Python
    fastinit.init_([tensor], fastinit.TimeStep(1e-3, 1e-1, 1e-4), seed=3)
    logs = torch.nn.functional.softplus(tensor.double()).log()
    wanted = stats.uniform(math.log(1e-3), math.log(100.0))
    n, epsilon = 10**6, torch.finfo(dtype).eps
    assert abs(logs.mean().item() - wanted.mean()) < 4.0 * wanted.std() / math.sqrt(n) + epsilon**2
    assert logs.std().item() == pytest.approx(wanted.std(), rel=4.0 * math.sqrt(0.8 / 4.0 / n) + 4.0 * epsilon**2)


def test_structured_schemes_have_the_mean_and_std_that_the_plan_says() -> None:
    cases: list[tuple[Scheme, tuple[int, ...], float]] = [
        (fastinit.Eye(), (40, 30), 1e-12),
        (fastinit.Dirac(), (8, 8, 3, 3), 1e-12),
        (fastinit.ZerO(), (30, 40), 1e-12),
        (fastinit.LogRange(), (100, 16), 1e-12),
        (fastinit.Constant(0.3), (10, 10), 1e-12),
        (fastinit.ZerO(), (64, 32), 0.02),  # the plan takes the corner of a Hadamard matrix for balanced
    ]
    for scheme, shape, tolerance in cases:
        tensor = torch.empty(shape, dtype=torch.float64)
        fastinit.init_([tensor], scheme, seed=0)
        distribution = plan_tensors([tensor], scheme).rows[0].distribution
        assert distribution is not None
        assert distribution.std() == pytest.approx(tensor.std(correction=0).item(), rel=tolerance, abs=1e-15), scheme
        assert distribution.mean() == pytest.approx(tensor.mean().item(), rel=tolerance, abs=tolerance), scheme
