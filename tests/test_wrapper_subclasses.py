"""Wrapper subclasses: filled through their one inner tensor; kept and named, or refused, where that is packed.

The classes here are small stand-ins with the public protocol (`__tensor_flatten__`) that quantisation libraries use.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from conftest import needs_native
from torch import nn
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_map

import fastinit

pytestmark = needs_native


class Wrapper(torch.Tensor):
    """A tensor around others, which are in its attributes."""

    names: tuple[str, ...] = ("inner",)

    @staticmethod
    def __new__(cls: Any, shape: Any, dtype: torch.dtype, *inner: torch.Tensor) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=inner[0].device)  # type: ignore

    def __init__(self, shape: Any, dtype: torch.dtype, *inner: torch.Tensor) -> None:
        for name, each in zip(self.names, inner, strict=True):
            setattr(self, name, each)

    def __tensor_flatten__(self) -> Any:
        return list(self.names), None

    @classmethod
    def __tensor_unflatten__(cls, inner: Any, meta: Any, size: Any, stride: Any) -> Any:
        return cls(size, inner["inner"].dtype, *inner.values())

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Only for wrappers of one tensor of their own shape."""
        kwargs = kwargs or {}
        out = func(*tree_map(unwrapped, args), **tree_map(unwrapped, kwargs))
        wrapped = tree_map(
            lambda each: cls(each.shape, each.dtype, each) if isinstance(each, torch.Tensor) else each, out
        )
        return return_and_correct_aliasing(func, args, kwargs, wrapped)


def unwrapped(each: Any) -> Any:
    return each.inner if isinstance(each, Wrapper) else each


class Logged(Wrapper):
    """Around one tensor like itself."""


class Packed(Wrapper):
    """Four-bit numbers, two in a byte, with scales: an unpacked dtype to the outside."""

    names = ("packed", "scale")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(f"{func} of packed numbers")


def logged(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Logged:
    return Logged(shape, dtype, torch.full(shape, 7.0, dtype=dtype))


def packed(rows: int, columns: int) -> Packed:
    inner = torch.full((rows, columns // 2), 0x37, dtype=torch.uint8)
    return Packed((rows, columns), torch.bfloat16, inner, torch.ones(rows))


def model() -> Any:
    return nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 6), nn.Embedding(5, 6, padding_idx=2))


def wrapped() -> Any:
    made = model()
    for module in made:
        module.weight = nn.Parameter(logged(tuple(module.weight.shape)))
    return made


def test_one_inner_tensor_is_filled() -> None:
    for scheme in ("xavier_uniform", "orthogonal"):
        given, wanted = wrapped(), fastinit.init_model_(model(), scheme, seed=3)
        plan = fastinit.plan(given, scheme, seed=3)
        plan.run_()
        for module, expected in zip(given, wanted, strict=True):
            assert type(module.weight) is Logged
            assert torch.equal(module.weight.inner, expected.weight)
        assert fastinit.verify(given, plan) == ()
        assert fastinit.fingerprint(given) == fastinit.fingerprint(wanted)
        given[1].weight.inner[2, 1] += 1.0
        assert fastinit.verify(given, plan) == ("1.weight",)
        assert fastinit.fingerprint(given) != fastinit.fingerprint(wanted)


def test_wrappers_in_wrappers_and_single_tensors() -> None:
    inner = logged((6, 4), torch.bfloat16)
    outer = Logged((6, 4), torch.bfloat16, inner)
    wanted = torch.empty(6, 4, dtype=torch.bfloat16)
    fastinit.init_([outer], "normal", names=["w"], seed=1)
    fastinit.init_([wanted], "normal", names=["w"], seed=1)
    assert torch.equal(inner.inner, wanted)  # type: ignore[attr-defined]
    torch.manual_seed(0)
    fastinit.kaiming_normal_(outer)
    torch.manual_seed(0)
    fastinit.kaiming_normal_(wanted)
    assert torch.equal(inner.inner, wanted)  # type: ignore[attr-defined]


def test_a_plan_follows_the_inner_tensor() -> None:
    given = wrapped()
    plan = fastinit.plan(given, "xavier_uniform", seed=3)
    plan.run_()
    first = given[0].weight.inner
    given[0].weight.inner = torch.ones(4, 6)
    plan.run_()
    assert torch.equal(given[0].weight.inner, first)


def with_packed() -> Any:
    made = model()
    for module in made[:2]:
        module.weight = nn.Parameter(packed(*module.weight.shape), requires_grad=False)
    return made


def test_packed_ones_are_kept_and_named_in_one_warning() -> None:
    given = with_packed()
    before = given[0].weight.packed.clone()
    with pytest.warns(fastinit.KeptWarning) as caught:
        plan = fastinit.plan(given, "xavier_uniform", seed=3)
    assert len(caught) == 1
    assert str(caught[0].message).startswith("2 packed or quantised tensors are kept")
    assert "0.weight, 1.weight" in str(caught[0].message)
    rows = {row.name: row for row in plan.rows}
    assert rows["0.weight"].action == "keep"
    assert rows["0.weight"].reason == (
        "Packed around (4, 3) torch.uint8, (4,) torch.float32: packed or quantised: kept"
    )
    plan.run_()
    assert torch.equal(given[0].weight.packed, before)
    wanted = fastinit.init_model_(model(), "xavier_uniform", seed=3)
    assert torch.equal(given[2].weight, wanted[2].weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastinit.plan(given, "xavier_uniform", [("[01].weight", fastinit.KEEP)], seed=3)


def test_a_rule_that_reaches_a_packed_one_is_refused_by_name() -> None:
    given = with_packed()
    before = given[1].weight.packed.clone(), given[0].bias.detach().clone()
    with pytest.raises(
        fastinit.ParameterError, match=r"^1\.weight: expected a plain tensor, got Packed around \(6, 2\)"
    ):
        fastinit.init_model_(given, "xavier_uniform", [("1.weight", "normal")], seed=3)
    with pytest.raises(fastinit.ParameterError, match=r"^w: expected a plain tensor, got Packed"):
        fastinit.init_([given[1].weight], "normal", names=["w"], seed=3)
    assert torch.equal(given[1].weight.packed, before[0]) and torch.equal(given[0].bias, before[1])


def test_another_dtype_or_shape_inside_is_packed() -> None:
    for inner in (torch.zeros(4, 6, dtype=torch.float16), torch.zeros(6, 4), torch.zeros(4, 6, dtype=torch.int32)):
        given = Logged((4, 6), torch.float32, inner)
        with pytest.raises(fastinit.ParameterError, match=r"^w: expected a plain tensor, got Logged around"):
            fastinit.init_([given], "normal", names=["w"], seed=3)
        assert not inner.any()


def test_dummy_values_keep_what_is_packed() -> None:
    given = with_packed()
    with pytest.warns(fastinit.KeptWarning, match=r"0\.weight \(Packed around"):
        fastinit.dummy_(given)
    assert given[2].weight.abs().max() <= 1e-3
