"""The textbook experiment of docs/examples/hundred_layers.py: exploding, vanishing, level."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest

import fastinit

EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "hundred_layers.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hundred_layers", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def outcome(example: ModuleType, activation: str, scheme: fastinit.Scheme) -> tuple[list[float], list[float], float]:
    model = fastinit.init_model_(example.network(example.ACTIVATIONS[activation]), scheme, seed=0)
    signal, gradient, saturated = example.propagate(model)
    return signal, gradient, saturated


def growth(signal: list[float]) -> float:
    """The factor from layer to layer, over the last ninety."""
    return float((signal[-1] / signal[9]) ** (1 / 90))


@pytest.mark.slow
@pytest.mark.parametrize("std", [1.0, 0.5, 0.2])
def test_a_large_std_explodes_under_relu(example: ModuleType, std: float) -> None:
    signal, gradient, _ = outcome(example, "relu", fastinit.Normal(std=std))
    # Half of the second moment passes a ReLU (He et al. 2015): a factor of std sqrt(256 / 2) a layer.
    assert growth(signal) == pytest.approx(std * math.sqrt(128.0), rel=0.03)
    assert signal[-1] > 1e12 * signal[0] and gradient[0] > 1e12 * gradient[-1]


@pytest.mark.slow
def test_a_large_std_saturates_tanh_and_its_gradient_explodes(example: ModuleType) -> None:
    signal, gradient, saturated = outcome(example, "tanh", fastinit.Normal(std=1.0))
    assert signal[-1] > 0.95 and saturated > 0.8
    assert gradient[0] > 1e20 * gradient[-1]


@pytest.mark.slow
@pytest.mark.parametrize(("activation", "factor"), [("relu", 0.01 * math.sqrt(128.0)), ("tanh", 0.01 * 16.0)])
def test_a_small_std_vanishes(example: ModuleType, activation: str, factor: float) -> None:
    signal, gradient, _ = outcome(example, activation, fastinit.Normal(std=0.01))
    assert growth(signal) == pytest.approx(factor, rel=0.03)
    assert signal[-1] < 1e-70 and gradient[0] < 1e-70


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("scheme", ["kaiming_normal", "kaiming_uniform", "xavier_normal", "xavier_uniform"])
def test_kaiming_and_xavier_times_gain_stay_level(example: ModuleType, activation: str, scheme: str) -> None:
    if scheme.startswith("kaiming"):
        chosen = fastinit.scheme(scheme, nonlinearity=activation)
    else:
        chosen = fastinit.scheme(scheme, gain=fastinit.calculate_gain(activation))
    signal, _, saturated = outcome(example, activation, chosen)
    if activation == "tanh":
        assert all(0.6 < each < 0.8 for each in signal) and saturated < 0.1
        return
    # Under ReLU the logarithm of the second moment walks: mean zero for the moment itself, variance 5 / width a layer
    # (Hanin, Rolnick 2018, theorem 5). The std is its root.
    for layer, each in enumerate(signal[1:], 1):
        variance = 5.0 * layer / example.WIDTH
        assert abs(math.log(each / signal[0]) + 0.25 * variance) < 4.0 * 0.5 * math.sqrt(variance), layer


@pytest.mark.slow
def test_without_the_gain_relu_vanishes(example: ModuleType) -> None:
    signal, _, _ = outcome(example, "relu", fastinit.scheme("xavier_normal"))
    assert growth(signal) == pytest.approx(math.sqrt(0.5), rel=0.03)


@pytest.mark.slow
def test_the_example_prints_a_line_for_every_network(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    example.main()
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(("normal", "kaiming", "xavier")) for line in lines) == 8
