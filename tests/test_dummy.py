"""fastinit.dummy_: weights to measure with, in every floating-point tensor of a model."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import DTYPES, FLOAT8_DTYPES, needs_native
from torch import nn

import fastinit

pytestmark = needs_native


class Quantised(nn.Module):
    """A weight of 8 bits with its scale, and a packed one."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(64, 100, dtype=dtype), requires_grad=False)
        self.register_buffer("scale", torch.zeros(64, 1))
        self.packed = nn.Parameter(torch.ones(8, 8, dtype=torch.int32), requires_grad=False)
        self.norm = nn.BatchNorm1d(5)


@pytest.mark.parametrize("dtype", [*DTYPES, *FLOAT8_DTYPES], ids=str)
def test_every_floating_tensor_is_drawn_and_nothing_else(dtype: torch.dtype) -> None:
    model = Quantised(dtype)
    assert fastinit.dummy_(model) is model
    weight = model.weight.double()
    reach = max(1e-3, torch.finfo(dtype).smallest_normal) if dtype.itemsize == 1 else 1e-3
    assert weight.abs().max() <= reach
    assert abs(weight.std() / (reach / math.sqrt(3)) - 1) < (0.05 if dtype.itemsize > 1 else 0.15)
    assert len(weight.unique()) >= 15
    for each in (model.scale, model.norm.running_var, model.norm.weight, model.norm.bias):
        assert 0 < each.abs().max() <= 1e-3
    assert (model.packed == 1).all() and model.norm.num_batches_tracked == 0


def test_values_are_those_of_the_names() -> None:
    model = fastinit.dummy_(nn.Sequential(nn.Linear(30, 20), nn.BatchNorm1d(4)), -0.5, 0.25, seed=3)
    for name, given in [("0.weight", model[0].weight), ("1.running_mean", model[1].running_mean)]:
        wanted = torch.empty_like(given)
        fastinit.init_([wanted], fastinit.Uniform(-0.5, 0.25), names=[name], seed=3)
        assert torch.equal(given, wanted)


def test_shared_tensors_are_written_once_and_kept_ones_are_named() -> None:
    model = nn.Module()
    model.one = model.two = nn.Linear(4, 4)
    model.register_buffer("powers", torch.ones(3).to(torch.float8_e8m0fnu))
    with pytest.warns(fastinit.KeptWarning, match=r"powers \(torch.float8_e8m0fnu\)"):
        fastinit.dummy_(model)
    assert (model.powers.float() == 1).all()
    wanted = torch.empty(4, 4)
    fastinit.init_([wanted], fastinit.Uniform(-1e-3, 1e-3), names=["one.weight"], seed=0)
    assert torch.equal(model.one.weight, wanted)


def test_bad_input_is_refused_by_name_and_nothing_is_written() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    before = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match=r"1.weight: is on the meta device"):
        fastinit.dummy_(model)
    with pytest.raises(ValueError, match="high"):
        fastinit.dummy_(model[0], 1.0, 0.0)
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got Tensor"):
        fastinit.dummy_(torch.empty(3))  # type: ignore[type-var]
    assert torch.equal(model[0].weight, before)
