"""DepthScaled and Scaled: which layer a parameter lies in, and what a factor does to every distribution."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import astuple
from typing import Any

import pytest
import torch
from torch import nn

import fastinit
from fastinit import DepthScaled, Scaled
from fastinit.rules.depths import Depths, check_layers
from fastinit.schemes import distributions
from fastinit.schemes.base import Scheme


def stack_of(layers: int, prefix: str = "h") -> nn.Module:
    return nn.ModuleDict({prefix: nn.ModuleList(nn.Linear(6, 4) for _ in range(layers))})


def stds(model: nn.Module, scheme: str | Scheme | fastinit.Recipe) -> dict[str, float]:
    rows = fastinit.plan(model, scheme).rows
    return {row.name: row.distribution.std() for row in rows if row.distribution is not None and row.tensor.dim() > 1}


@pytest.mark.parametrize("layers", [1, 2, 12])
def test_by_depth_every_layer_has_sigma_over_the_root_of_twice_the_depth(layers: int) -> None:
    found = stds(stack_of(layers), DepthScaled(fastinit.Normal(std=0.02)))
    assert len(found) == layers
    assert list(found.values()) == pytest.approx([0.02 / math.sqrt(2 * layers)] * layers, rel=1e-12)


def test_by_layer_each_has_sigma_over_the_root_of_its_own_number() -> None:
    found = stds(stack_of(5), DepthScaled(fastinit.Normal(std=0.02), by="layer"))
    for layer in range(5):
        assert found[f"h.{layer}.weight"] == pytest.approx(0.02 / math.sqrt(2 * (layer + 1)), rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "factor"),
    [
        ({"branches": 1.0}, 6**-0.5),
        ({"branches": 3.0}, 18**-0.5),
        ({"exponent": 0.25}, 12**-0.25),
        ({"exponent": 1.0, "branches": 1.0}, 1 / 6),
        ({"exponent": 0.0}, 1.0),
        ({"coefficient": 0.67, "branches": 1.0, "exponent": 0.25}, 0.67 * 6**-0.25),
        ({"coefficient": 0.0}, 0.0),
        ({"layers": 24}, 48**-0.5),
        ({"layers": 24, "exponent": 0.25, "branches": 9.0}, (9 * 24) ** -0.25),
    ],
    ids=str,
)
def test_numbers_of_depth_scaling(arguments: dict[str, float], factor: float) -> None:
    scheme = DepthScaled(fastinit.Normal(std=0.5), **arguments)  # type: ignore[arg-type]
    assert stds(stack_of(6), scheme)["h.3.weight"] == pytest.approx(0.5 * factor, rel=1e-12, abs=0.0)


def test_a_scheme_with_fans_keeps_them_under_depth_scaling() -> None:
    found = stds(stack_of(8), DepthScaled("xavier_uniform"))
    assert found["h.7.weight"] == pytest.approx(math.sqrt(2.0 / 10) / 4, rel=1e-12)


def test_depth_scaling_within_depth_scaling_and_scaled() -> None:
    inner = DepthScaled(Scaled(fastinit.Normal(), 3.0), by="layer", branches=1.0)
    found = stds(stack_of(4), DepthScaled(inner, branches=1.0))
    assert found["h.2.weight"] == pytest.approx(3.0 / math.sqrt(3) / 2, rel=1e-12)


def test_stacks_are_counted_apart() -> None:
    model = nn.ModuleDict({"encoder": stack_of(8, "block"), "decoder": stack_of(2, "block")})
    found = stds(model, DepthScaled(fastinit.Normal()))
    assert found["encoder.block.1.weight"] == pytest.approx(1 / 4, rel=1e-12)
    assert found["decoder.block.1.weight"] == pytest.approx(1 / 2, rel=1e-12)


def test_the_first_number_in_a_name_counts() -> None:
    model = nn.ModuleDict({"block": nn.ModuleList(stack_of(5, "experts") for _ in range(2))})
    by_depth, by_layer = (stds(model, DepthScaled(fastinit.Normal(), by=by)) for by in ("depth", "layer"))  # type: ignore[arg-type]
    assert by_depth["block.1.experts.4.weight"] == pytest.approx(1 / 2, rel=1e-12)
    assert by_layer["block.1.experts.4.weight"] == pytest.approx(1 / 2, rel=1e-12)
    assert by_layer["block.0.experts.4.weight"] == pytest.approx(2**-0.5, rel=1e-12)


def test_wrappers_change_no_depth() -> None:
    wrapped = nn.ModuleDict({"_orig_mod": nn.DataParallel(stack_of(8))})
    assert stds(wrapped, DepthScaled(fastinit.Normal())) == stds(stack_of(8), DepthScaled(fastinit.Normal()))


NAMES = ["h.0.weight", "h.0.bias", "h.2", "h.1.weight", "h2.0.weight", "0.weight", "conv1.weight", "x.0.y.0.z.1"]


@pytest.mark.parametrize(
    ("name", "layer", "layers"),
    [("h.0.weight", 0, 3), ("h.1.more.5.weight", 1, 3), ("h.2", 2, 3), ("h2.0.weight", 0, 1), ("0.weight", 0, 1)],
)
def test_layers_of_names(name: str, layer: int, layers: int) -> None:
    depths = Depths(NAMES)
    assert (depths.layer(name), depths.layers(name)) == (layer, layers)


@pytest.mark.parametrize("name", ["conv1.weight", "layer4x.weight", "weight", "h2d.weight"])
def test_names_without_a_number_have_no_layer(name: str) -> None:
    for layers in (None, 4, {"h": 3}):
        depths = Depths(NAMES, layers)
        for ask in (depths.layer, depths.layers):
            with pytest.raises(
                ValueError, match="expected a parameter in a stack of layers, whose name has its number"
            ):
                ask(name)


def test_two_numbers_side_by_side_need_a_prefix() -> None:
    names = ["h.0.0.weight", "h.0.1.weight", "h.1.0.weight"]
    message = r"expected one number that counts layers, got 0 and 1; pass layers= .* such as layers={'h\.': \.\.\.}"
    for layers in (None, {"g": 3}):
        with pytest.raises(ValueError, match=message):
            Depths(names, layers).layer("h.0.1.weight")
    outer, inner = Depths(names, {"h": 4}), Depths(names, {"h.0.": 7})
    assert (outer.layer("h.0.1.weight"), outer.layers("h.0.1.weight")) == (0, 4)
    assert (inner.layer("h.0.1.weight"), inner.layers("h.0.1.weight")) == (1, 7)
    root = Depths(["0.1.weight"], {"": 5})
    assert (root.layer("0.1.weight"), root.layers("0.1.weight")) == (0, 5)


@pytest.mark.parametrize(
    ("numbers", "shown"), [((1, 2), "1, 2"), ((0, 2), "0, 2"), ((3, 1, 2, 5, 4), "1, 2, 3, 4, ..."), ((24,), "24")]
)
def test_numbers_that_are_not_all_below_their_count_leave_the_length_open(numbers: tuple[int, ...], shown: str) -> None:
    names = [f"h.{number}.weight" for number in numbers]
    message = rf"expected layers h\.0, h\.1, \.\.\., found the numbers {re.escape(shown)}; pass layers="
    with pytest.raises(ValueError, match=message):
        Depths(names).layers(names[0])
    assert Depths(names).layer(names[0]) == numbers[0]
    for given in (48, {"h": 48}, {"h.": 48}):
        assert Depths(names, given).layers(names[0]) == 48


def test_a_part_of_a_model_does_not_tell_the_length() -> None:
    part = Depths(NAMES, of_part=True)
    assert part.layer("h.1.weight") == 1
    with pytest.raises(ValueError, match=r"with names=, .* pass layers=, how many layers h\.0, h\.1, \.\.\. the whole"):
        part.layers("h.1.weight")
    assert Depths(NAMES, 5, of_part=True).layers("h.1.weight") == 5


def test_the_longest_prefix_counts() -> None:
    depths = Depths((), {"x": 2, "x.0.y.0.z.": 9})
    assert (depths.layer("x.0.y.0.z.1"), depths.layers("x.0.y.0.z.1")) == (1, 9)
    assert (depths.layer("x.1.y.0.z.1"), depths.layers("x.1.y.0.z.1")) == (1, 2)


def test_names_are_read_once_and_only_if_asked() -> None:
    read: list[str] = []

    def names() -> Iterator[str]:
        for name in NAMES:
            read.append(name)
            yield name

    depths = Depths(names(), {"h": 3})
    assert depths.layers("h.1.weight") == 3 and not read
    assert depths.layers("h2.0.weight") == 1 and depths.layers("0.weight") == 1 and read == NAMES
    assert depths.stacks == {"h.": {0, 1, 2}, "h2.": {0}, "": {0}, "x.": {0}}


@pytest.mark.parametrize("prefix", ["typo.", "typo", "h.1", "h.0.weight", "conv1", ""])
def test_prefixes_that_begin_no_name_are_refused(prefix: str) -> None:
    names = ["h.0.weight", "h.1.weight", "conv1.weight"]
    message = rf"^layers: expected what stands before a number .*, got '{re.escape(prefix)}\.?'; found 'h\.'$"
    with pytest.raises(ValueError, match=message):
        Depths(names, {"h": 2, prefix: 48}).check_prefixes()
    Depths(names, {"h": 2}).check_prefixes()
    Depths(names, 3).check_prefixes()
    Depths(names, {prefix: 48}, of_part=True).check_prefixes()
    with pytest.raises(ValueError, match=r"found no numbers$"):
        Depths(["weight"], {"h": 2}).check_prefixes()


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        ("h", TypeError, "expected an int, a mapping of prefixes to ints, or None, got 'h'"),
        (True, TypeError, "expected an int, .* got True"),
        (2.0, TypeError, "expected an int, .* got 2.0"),
        ({"h": 2.0}, TypeError, "expected an int, a mapping"),
        ({3: 2}, TypeError, "expected a mapping of prefixes to ints, got {3: 2}"),
        ({"h": 2, "h.": 3}, ValueError, "expected every prefix once, with a dot at its end or without"),
        (0, ValueError, "expected layers >= 1, got 0"),
        ({"h": -1}, ValueError, "expected layers >= 1"),
    ],
    ids=str,
)
def test_layers_are_checked(layers: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^layers: {message}"):
        fastinit.plan(stack_of(2), "normal", layers=layers)
    for right in (None, 3, {"h": 2}, {"h": 2, "g.": 3}, {}):
        check_layers(right)


@pytest.mark.parametrize("by", ["depth", "layer"])
def test_a_parameter_outside_of_any_stack_is_named(by: str) -> None:
    model = nn.ModuleDict({"head": nn.Linear(3, 3), "h": stack_of(2)})
    with pytest.raises(ValueError, match=r"^head\.weight: .*expected a parameter in a stack of layers"):
        fastinit.plan(model, DepthScaled("normal", by=by))  # type: ignore[arg-type]
    recipe = fastinit.Recipe("normal", [("h.*.weight", DepthScaled("normal", by=by))])  # type: ignore[arg-type]
    assert stds(model, recipe)["head.weight"] == 1.0


def test_layers_given_serve_a_parameter_outside_of_any_stack() -> None:
    found = stds(nn.ModuleDict({"head": nn.Linear(3, 3)}), DepthScaled(fastinit.Normal(), layers=8))
    assert found["head.weight"] == pytest.approx(1 / 4, rel=1e-12)


def test_a_pipeline_stage_gets_the_values_of_the_whole_model() -> None:
    whole, stage = stack_of(6), stack_of(6)
    module_list = stage.get_submodule("h")
    for layer in (0, 1, 2, 5):
        del module_list._modules[str(layer)]
    scheme = DepthScaled("normal", layers=6)
    fastinit.init_model_(whole, scheme, seed=1)
    fastinit.init_model_(stage, scheme, seed=1)
    assert next(name for name, _ in stage.named_parameters()) == "h.3.weight"
    assert all(torch.equal(each, whole.get_parameter(name)) for name, each in stage.named_parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"by": "layers"}, r"by: got 'layers', did you mean 'layer'\? expected one of depth, layer"),
        ({"branches": 0.0}, "branches, coefficient: expected branches > 0"),
        ({"coefficient": -1.0}, "branches, coefficient: expected"),
        ({"exponent": math.nan}, "exponent: expected a finite number"),
        ({"layers": 0}, "layers: expected layers >= 1, got 0"),
        ({"layers": True}, "layers: expected layers >= 1, got True"),
    ],
    ids=str,
)
def test_arguments_of_depth_scaling_are_checked(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DepthScaled("normal", **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("factor", [-1.0, math.nan, math.inf])
def test_the_factor_is_checked(factor: float) -> None:
    with pytest.raises(ValueError, match="factor: expected"):
        Scaled("normal", factor)


SQUARE, KERNEL = (8, 8), (8, 4, 3)

# A scheme, a shape, and the distribution of half its values.
HALVED: list[tuple[Scheme, tuple[int, ...], distributions.Distribution]] = [
    (fastinit.Constant(3.0), SQUARE, distributions.Constant(1.5)),
    (fastinit.Uniform(-1.0, 4.0), SQUARE, distributions.Uniform(-0.5, 2.0)),
    (fastinit.Normal(2.0, 6.0), SQUARE, distributions.Normal(1.0, 3.0)),
    (fastinit.TruncNormal(1.0, 2.0, (-3.0, 4.0)), SQUARE, distributions.TruncNormal(0.5, 1.0, -1.5, 2.0)),
    (fastinit.TruncNormal(1.0, 2.0, (-2.0, 1.0), "sigma"), SQUARE, distributions.TruncNormal(0.5, 1.0, -1.5, 1.5)),
    (fastinit.VarianceScaling(8.0, "fan_in", "normal"), SQUARE, distributions.Normal(0.0, 0.5)),
    (fastinit.Eye(), SQUARE, distributions.Diagonal(0.5, 0, 9, 8, 64)),
    (fastinit.Dirac(), KERNEL, distributions.Diagonal(0.5, 1, 15, 4, 96)),
    (fastinit.Orthogonal(3.0), SQUARE, distributions.Orthogonal(1.5, 8, 8)),
    (fastinit.DeltaOrthogonal(3.0), KERNEL, distributions.DeltaOrthogonal(1.5, 8, 4, 3)),
    (fastinit.Spectral((4.0, 2.0)), (2, 8), distributions.Spectral((2.0, 1.0), 2, 8)),
    (fastinit.IdentityPlusOrthogonal(2.0, 0.5), SQUARE, distributions.IdentityPlus(1.0, 0.25, 8)),
    (fastinit.Sparse(0.25, 0.5), SQUARE, distributions.Sparse(0.25, 2, 8)),
    (fastinit.ZerO(), (16, 8), distributions.Hadamard(0.125, 1)),
]


@pytest.mark.parametrize(("scheme", "shape", "expected"), HALVED, ids=lambda each: type(each).__name__)
def test_scaled_halves_every_number_of_a_distribution(
    scheme: Scheme, shape: tuple[int, ...], expected: distributions.Distribution
) -> None:
    context = fastinit.Context(shape, fans=fastinit.Fans(shape[1], shape[0]))
    found = Scaled(scheme, 0.5).distribution(context)
    assert type(found) is type(expected)
    for number, half in zip(astuple(found), astuple(expected), strict=True):  # type: ignore[call-overload]
        assert number == (half if half is None else pytest.approx(half, rel=1e-15))
    whole = scheme.distribution(context)
    assert (found.mean(), found.std()) == pytest.approx((0.5 * whole.mean(), 0.5 * whole.std()), rel=1e-12)


@pytest.mark.parametrize(("scheme", "shape"), [each[:2] for each in HALVED], ids=lambda each: type(each).__name__)
def test_the_values_of_half_a_scheme_are_half_the_values(scheme: Scheme, shape: tuple[int, ...]) -> None:
    half, whole = torch.empty(shape, dtype=torch.float64), torch.empty(shape, dtype=torch.float64)
    fastinit.init_([half], Scaled(scheme, 0.5), names=["same"], seed=0)
    fastinit.init_([whole], scheme, names=["same"], seed=0)
    assert torch.allclose(half, 0.5 * whole, rtol=1e-12, atol=0.0)


def test_scaled_serves_split_parameters_and_padding_rows() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(10, 6, padding_idx=3), "qkv": nn.Linear(6, 18)})
    rule = fastinit.Rule("qkv.weight", ("normal", Scaled("normal", 0.5), Scaled("ones", 2.0)), split=3)
    fastinit.init_model_(model, Scaled("normal", 0.0), rules=[rule], seed=0)
    assert not model["embed"].weight.any()
    _, second, third = model["qkv"].weight.detach().chunk(3)
    assert 0.3 < second.std() < 0.7 and (third == 2.0).all()


@pytest.mark.parametrize("scheme", [fastinit.TimeStep(), fastinit.LogRange()], ids=["TimeStep", "LogRange"])
def test_values_that_mean_something_are_not_scaled(scheme: Scheme) -> None:
    model = nn.ModuleDict({"mixer": nn.Linear(4, 4)})
    kept = model["mixer"].bias.clone()
    for scaled in (Scaled(scheme, 0.5), DepthScaled(scheme, layers=2)):
        with pytest.raises(ValueError, match=r"^mixer\.bias: .*log.* cannot be scaled"):
            fastinit.init_model_(model, "normal", rules=[("mixer.bias", scaled)])
    assert torch.equal(model["mixer"].bias, kept)
