"""Schemes against torch's formulas, and values against the schemes."""

from __future__ import annotations

import inspect
import math
from dataclasses import astuple
from typing import Any

import pytest
import torch
from conftest import DTYPES
from torch import nn

import fastinit
from fastinit.schemes import base, distributions
from fastinit.schemes.base import describe
from fastinit.schemes.fans import torch_fans
from fastinit.schemes.named import STD_WITHIN_TWO_SIGMA

SHARED = [
    "uniform_", "normal_", "trunc_normal_", "constant_", "ones_", "zeros_",
    "xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_",
]  # fmt: skip

FAN_CASES: list[tuple[str, dict[str, Any]]] = [
    ("xavier_uniform_", {}),
    ("xavier_uniform_", {"gain": 5 / 3}),
    ("xavier_normal_", {"gain": 0.3}),
    ("kaiming_uniform_", {}),
    ("kaiming_uniform_", {"a": math.sqrt(5)}),
    ("kaiming_normal_", {"mode": "fan_out", "nonlinearity": "relu"}),
    ("kaiming_normal_", {"nonlinearity": "tanh"}),
    ("kaiming_normal_", {"a": 0.2, "nonlinearity": "leaky_relu"}),
    ("kaiming_uniform_", {"nonlinearity": "selu", "mode": "fan_out"}),
]


@pytest.mark.parametrize("name", SHARED)
def test_functions_have_torchs_signature(name: str) -> None:
    ours = inspect.signature(getattr(fastinit, name)).parameters
    theirs = inspect.signature(getattr(nn.init, name)).parameters
    assert list(ours) == list(theirs)
    assert {key: value.default for key, value in ours.items()} == {key: value.default for key, value in theirs.items()}


@pytest.mark.parametrize("shape", [(30, 20), (8, 3, 5, 5), (7, 11, 3)], ids=str)
@pytest.mark.parametrize(("name", "arguments"), FAN_CASES, ids=str)
def test_fan_schemes_have_torchs_numbers_to_the_last_bit(
    name: str, arguments: dict[str, Any], shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[tuple[float, float]] = []

    def record(tensor: torch.Tensor, first: float, second: float, generator: object = None) -> torch.Tensor:
        used.append((first, second))
        return tensor

    monkeypatch.setattr(torch.Tensor, "uniform_", record)
    monkeypatch.setattr(torch.Tensor, "normal_", record)
    getattr(nn.init, name)(torch.empty(shape), **arguments)
    scheme = fastinit.scheme(name.removesuffix("_"), **arguments)
    assert used == [astuple(scheme.distribution(fastinit.Context(shape)))]


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("glorot_uniform", "xavier_uniform"),
        ("glorot_normal", "xavier_normal"),
        ("he_uniform", "kaiming_uniform"),
        ("he_normal", "kaiming_normal"),
    ],
)
def test_aliases_are_the_same_schemes_and_are_shown_by_their_first_name(alias: str, name: str) -> None:
    assert fastinit.scheme(alias) == fastinit.scheme(name)
    assert (
        fastinit.plan(nn.Linear(3, 3), alias).rows[0].distribution
        == fastinit.plan(nn.Linear(3, 3), name).rows[0].distribution
    )
    assert describe(fastinit.scheme(alias)) == name and alias in fastinit.scheme_names()


@pytest.mark.parametrize("shape", [(4, 3), (8, 3, 5, 5), (1, 1), (2, 3, 0)], ids=str)
def test_fans_are_torchs(shape: tuple[int, ...]) -> None:
    assert torch_fans(shape) == nn.init._calculate_fan_in_and_fan_out(torch.empty(shape))


@pytest.mark.parametrize(("a", "b"), [(-2, 2), (-1, 3), (0, math.inf), (-math.inf, 1), (1, 2), (-3, -1), (4, 6)])
def test_truncated_std_is_the_analytic_one(a: float, b: float) -> None:
    from scipy.stats import truncnorm

    expected = float(truncnorm.std(a, b))
    found = distributions.TruncNormal(0.0, 1.0, a, b)
    assert found.std() == pytest.approx(expected, rel=2e-4)
    assert found.mean() == pytest.approx(float(truncnorm.mean(a, b)), rel=1e-9, abs=1e-12)


def test_narrowly_truncated_std_is_that_of_the_uniform() -> None:
    assert distributions.TruncNormal(0.0, 1.0, -1e-5, 1e-5).std() == pytest.approx(1e-5 / math.sqrt(3.0), rel=1e-6)


def test_constant_of_two_sigma_is_right() -> None:
    assert distributions.TruncNormal(0.0, 1.0, -2.0, 2.0).std() == pytest.approx(STD_WITHIN_TWO_SIGMA, rel=1e-14)
    lecun = fastinit.scheme("lecun_normal").distribution(fastinit.Context((10, 16)))
    assert lecun.std() == pytest.approx(0.25, rel=1e-12)


def test_functions_take_lists_and_return_their_argument() -> None:
    tensors = [torch.empty(5, 5), torch.empty(5, 5)]
    assert fastinit.normal_(tensors) is tensors
    assert not torch.equal(tensors[0], tensors[1])
    assert fastinit.zeros_(tensors[0]) is tensors[0] and (tensors[0] == 0).all()


def test_functions_draw_a_seed_a_call() -> None:
    tensor = torch.empty(100)
    torch.manual_seed(0)
    first, second = fastinit.normal_(tensor).clone(), fastinit.normal_(tensor).clone()
    torch.manual_seed(0)
    assert torch.equal(fastinit.normal_(tensor), first) and not torch.equal(first, second)
    generator = torch.Generator().manual_seed(3)
    third = fastinit.normal_(tensor, generator=generator).clone()
    assert torch.equal(fastinit.normal_(tensor, generator=torch.Generator().manual_seed(3)), third)


STRUCTURED = {
    "square": ((5, 5), "eye", torch.nn.init.eye_, {}),
    "tall": ((70, 33), "eye", torch.nn.init.eye_, {}),
    "wide": ((3, 300), "eye", torch.nn.init.eye_, {}),
    "one column": ((9, 1), "eye", torch.nn.init.eye_, {}),
    "one row": ((1, 9), "eye", torch.nn.init.eye_, {}),
    "conv1d": ((8, 6, 5), "dirac", torch.nn.init.dirac_, {}),
    "conv2d": ((6, 8, 3, 4), "dirac", torch.nn.init.dirac_, {}),
    "conv3d": ((4, 4, 3, 2, 5), "dirac", torch.nn.init.dirac_, {}),
    "groups": ((12, 3, 3, 3), "dirac", torch.nn.init.dirac_, {"groups": 4}),
    "depthwise": ((16, 1, 3, 3), "dirac", torch.nn.init.dirac_, {"groups": 16}),
}


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "name", "torch_function", "arguments"), STRUCTURED.values(), ids=STRUCTURED)
def test_structured_schemes_give_what_torch_gives(
    shape: tuple[int, ...], name: str, torch_function: Any, arguments: dict[str, int], dtype: torch.dtype, backend: str
) -> None:
    scheme = fastinit.scheme(name, **arguments)
    wanted = torch_function(torch.empty(shape), **arguments).to(dtype)
    given = torch.full(shape, torch.nan, dtype=dtype)
    strided = torch.full((*shape, 2), torch.nan, dtype=dtype)[..., 1]
    backwards = torch.full(shape[::-1], torch.nan, dtype=dtype).permute(*range(len(shape))[::-1])
    fastinit.init_([given, strided, backwards], scheme, seed=0, backend=backend)
    for tensor in (given, strided, backwards):
        assert torch.equal(tensor, wanted)


def test_structured_functions_and_their_errors() -> None:
    assert torch.equal(fastinit.eye_(torch.empty(3, 4)), torch.eye(3, 4))
    weight = torch.empty(4, 2, 3)
    assert torch.equal(fastinit.dirac_(weight, groups=2), torch.nn.init.dirac_(torch.empty(4, 2, 3), groups=2))
    with pytest.raises(ValueError, match="eye: expected 2 dimensions"):
        fastinit.eye_(torch.empty(3))
    with pytest.raises(ValueError, match="expected 3, 4 or 5 dimensions"):
        fastinit.dirac_(torch.empty(3, 3))
    with pytest.raises(ValueError, match="divisible by groups, got 4 and 3"):
        fastinit.dirac_(weight, groups=3)
    with pytest.raises(ValueError, match="groups >= 1"):
        fastinit.Dirac(0)


@pytest.mark.parametrize("mean", [0.0, 0.3, -3.0])
@pytest.mark.parametrize("bounds", [(-2.0, 2.0), (-0.1, 0.5), (0.0, math.inf)])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_std_after_truncation_within_absolute_bounds_is_the_one_wanted(
    mean: float, bounds: tuple[float, float], share: float
) -> None:
    largest = (bounds[1] - bounds[0]) / math.sqrt(12.0)  # that of the uniform
    std = share * min(largest, 1.0)
    if mean == -3.0 and bounds == (-0.1, 0.5) and share < 0.5:
        with pytest.raises(ValueError, match="within six sigma"):  # it would take a sigma of 0.24
            fastinit.TruncNormal(mean, std, bounds, std_is="after")
        return
    scheme = fastinit.TruncNormal(mean, std, bounds, std_is="after")
    assert scheme.distribution(fastinit.Context(())).std() == pytest.approx(std, rel=1e-6)


def test_std_after_truncation_that_no_normal_has_is_refused() -> None:
    with pytest.raises(ValueError, match=r"std: expected less than 1\.1547, that of the uniform .*got 1\.2"):
        fastinit.TruncNormal(0.0, 1.2, (-2.0, 2.0), std_is="after")
    with pytest.raises(ValueError, match="bounds: expected a range"):
        fastinit.TruncNormal(0.0, 1.0, (1.0, 1.0), unit="sigma", std_is="after")


def _broken() -> Any:
    return 1 / 0


def _refusing() -> Any:
    raise ValueError("not today")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (_broken, ValueError, "^scheme 'mine': ZeroDivisionError: division by zero"),
        (_refusing, ValueError, "^scheme 'mine': not today"),
        (lambda given: given, ValueError, "^scheme 'mine': .* missing 1 required positional argument: 'given'"),
        (lambda: None, TypeError, "^scheme 'mine': expected a scheme from what it was registered with, got None"),
        (lambda: 3, TypeError, "^scheme 'mine': expected a scheme .*, got 3"),
        (lambda: fastinit.Normal, TypeError, "^scheme 'mine': expected a scheme .*, got the class Normal"),
    ],
)
def test_a_registered_scheme_that_fails_is_named(
    make: Any, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_MAKERS", dict(base._MAKERS))
    fastinit.register_scheme("mine", make)
    for use in (
        lambda: fastinit.init_model_(nn.Linear(2, 2), "mine"),
        lambda: fastinit.init_([torch.empty(2, 2)], "mine"),
        lambda: fastinit.scheme("mine"),
    ):
        with pytest.raises(error, match=message):
            use()


@pytest.mark.parametrize("make", [3, None, fastinit.Normal(std=0.02)])
def test_what_makes_no_schemes_is_not_registered(make: Any) -> None:
    with pytest.raises(TypeError, match=r"^make: expected a function or a class that makes the scheme 'zz', got "):
        fastinit.register_scheme("zz", make)
    assert "zz" not in fastinit.scheme_names()
