"""Fans by every convention: torch's, JAX's and Keras' formulas, and what modules compute, counted."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import fastinit
from fastinit.schemes.base import Scheme
from fastinit.schemes.distributions import Blocks, Normal
from fastinit.schemes.fans import (
    FAN_NAMES,
    FanAxes,
    FanConvention,
    Fans,
    axes_fans,
    geometry_of,
    keras_fans,
    module_geometry,
    torch_fans,
    weight_geometry,
)


class Conv1D(nn.Module):
    """Like its namesake in transformers: y = x weight + bias, weight (in, out)."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.empty(nx, nf))
        self.bias = nn.Parameter(torch.empty(nf))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


class Experts(nn.Module):
    """Stacked experts: each token goes through the matrix of one."""

    def __init__(self, shape: tuple[int, int, int], is_transposed: bool) -> None:
        super().__init__()
        self.is_transposed = is_transposed
        self.weight = nn.Parameter(torch.empty(shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.weight[0]
        return x @ (first if self.is_transposed else first.t())


# The conventions


@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (8, 3, 5), (8, 3, 5, 7), (2, 3, 4, 5, 6), (1, 1), (0, 3)], ids=str)
def test_torch_fans_are_torchs(shape: tuple[int, ...]) -> None:
    assert torch_fans(shape) == nn.init._calculate_fan_in_and_fan_out(torch.empty(shape))


def jax_formula(shape: tuple[int, ...], axes: FanAxes) -> tuple[float, float]:
    """As published: the receptive field is the product of all over that of the in, out and batch axes."""

    def product(axis: int | tuple[int, ...]) -> int:
        return math.prod(shape[each] for each in ((axis,) if isinstance(axis, int) else axis))

    inside, outside = product(axes.in_axis), product(axes.out_axis)
    field = math.prod(shape) / inside / outside / product(axes.batch_axis)
    return inside * field, outside * field


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((3, 5), FanAxes()),
        ((3, 3, 16, 32), FanAxes()),
        ((7, 5, 3), FanAxes(0, 1)),
        ((7, 5, 3), FanAxes(1, 0)),
        ((7, 5, 3), FanAxes(-1, -3)),
        ((8, 64, 128), FanAxes(batch_axis=0)),
        ((2, 3, 5, 7), FanAxes(-2, -1, (0, 1))),
        ((2, 3, 5, 7), FanAxes(0, -1, 2)),
        ((5, 3, 7), FanAxes(0, (1, 2))),
        ((3, 7, 5), FanAxes((0, 1), 2)),
        ((2, 3, 5, 7, 11), FanAxes((0, -1), (1,), (3,))),
    ],
    ids=str,
)
def test_axes_fans_are_jaxs(shape: tuple[int, ...], axes: FanAxes) -> None:
    assert axes_fans(shape, axes) == jax_formula(shape, axes)


@pytest.mark.parametrize(
    ("shape", "axes", "message"),
    [
        ((), FanAxes(), "at least 2 dimensions"),
        ((5,), FanAxes(), "at least 2 dimensions"),
        ((3, 4), FanAxes(2, 0), "in_axis: expected an axis of shape .3, 4., got 2"),
        ((3, 4), FanAxes(0, -3), "out_axis: expected an axis"),
        ((3, 4), FanAxes(batch_axis=5), "batch_axis: expected an axis"),
        ((3, 4), FanAxes(0, -2), "out_axis: axis -2 of shape .3, 4. stands for another"),
        ((3, 4, 5), FanAxes(batch_axis=1), "batch_axis: axis 1"),
        ((3, 4, 5), FanAxes((0, -3), 1), "in_axis: axis -3"),
    ],
    ids=str,
)
def test_axes_that_do_not_fit_are_refused(shape: tuple[int, ...], axes: FanAxes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        axes_fans(shape, axes)


@pytest.mark.parametrize(
    ("shape", "fans"),
    [
        ((), (1, 1)),
        ((7,), (7, 7)),
        ((3, 5), (3, 5)),
        ((3, 3, 16, 32), (144, 288)),
        ((4, 2, 3), (8, 12)),
        ((3, 3, 0, 8), (1, 72)),
    ],
    ids=str,
)
def test_keras_fans_are_keras(shape: tuple[int, ...], fans: tuple[int, int]) -> None:
    assert keras_fans(shape) == fans


def test_vectors_have_fans_by_keras_alone() -> None:
    linear = nn.Linear(3, 4)
    for convention in ("torch", "jax"):
        with pytest.raises(ValueError, match="fans need at least 2 dimensions"):
            geometry_of(convention, linear, "bias", (4,))  # type: ignore[arg-type]
    assert geometry_of("keras", linear, "bias", (4,)).fans == (4, 4)


@pytest.mark.parametrize("shape", [(3, 5), (2, 4, 3, 5)], ids=str)
@pytest.mark.parametrize("convention", ["torch", "module", "jax", "keras", "weight", FanAxes(), FanAxes(0, 1)], ids=str)
def test_the_dimensions_of_in_and_out_have_the_sizes_that_count(
    convention: FanConvention, shape: tuple[int, ...]
) -> None:
    geometry = geometry_of(convention, None, "", shape)
    assert geometry.fans.fan_in % shape[geometry.in_dim] == 0
    assert geometry.fans.fan_in * shape[geometry.out_dim] == geometry.fans.fan_out * shape[geometry.in_dim]


# What modules compute, counted: how many input elements reach an output element, and how many outputs an input reaches


def all_ones(module: nn.Module) -> nn.Module:
    """Every connection counts one: biases zero, weights one, in float64."""
    module.double()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.fill_(0.0 if "bias" in name else 1.0)
    return module


def counted(linear: Callable[[torch.Tensor], torch.Tensor], input_shape: tuple[int, ...]) -> Fans:
    """The largest number of inputs an output depends on, and of outputs that depend on an input.

    At the edges there are fewer; in the interior as many as the fans say.
    """
    size = math.prod(input_shape)
    units = torch.eye(size, dtype=torch.float64).reshape(size, *input_shape)
    connected = linear(units).reshape(size, -1) != 0  # (input, output)
    return Fans(int(connected.sum(0).max()), int(connected.sum(1).max()))


COUNTED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 7), (5,)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), (4, 9)),
    "conv1d grouped": (lambda: nn.Conv1d(4, 6, 3, groups=2), (4, 9)),
    "conv1d depthwise": (lambda: nn.Conv1d(4, 4, 5, groups=4), (4, 15)),
    "conv1d depthwise, two each": (lambda: nn.Conv1d(3, 6, 3, groups=3), (3, 9)),
    "conv1d dilated": (lambda: nn.Conv1d(4, 6, 3, dilation=2), (4, 15)),
    "conv2d": (lambda: nn.Conv2d(2, 3, (3, 2)), (2, 7, 6)),
    "conv2d grouped": (lambda: nn.Conv2d(6, 4, 3, groups=2), (6, 6, 6)),
    "conv2d depthwise": (lambda: nn.Conv2d(3, 3, 3, groups=3), (3, 6, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (2, 4, 4, 4)),
    "conv3d depthwise": (lambda: nn.Conv3d(2, 2, (2, 1, 3), groups=2), (2, 4, 2, 6)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 6, 3), (4, 8)),
    "transposed 1d grouped": (lambda: nn.ConvTranspose1d(4, 6, 3, groups=2), (4, 8)),
    "transposed 1d depthwise": (lambda: nn.ConvTranspose1d(3, 6, 3, groups=3), (3, 8)),
    "transposed 2d": (lambda: nn.ConvTranspose2d(2, 5, (3, 2)), (2, 5, 5)),
    "transposed 2d grouped": (lambda: nn.ConvTranspose2d(4, 6, 2, groups=2), (4, 4, 4)),
    "transposed 3d": (lambda: nn.ConvTranspose3d(2, 3, 2), (2, 3, 3, 3)),
    "gpt2": (lambda: Conv1D(7, 5), (5,)),
    "experts": (lambda: Experts((3, 7, 5), False), (5,)),
    "experts, transposed": (lambda: Experts((3, 5, 7), True), (5,)),
}


@pytest.mark.parametrize(("make", "input_shape"), COUNTED.values(), ids=COUNTED)
def test_fans_are_what_one_counts(make: Callable[[], nn.Module], input_shape: tuple[int, ...]) -> None:
    module = all_ones(make())
    weight: Any = module.weight
    geometry = module_geometry(module, "weight", weight.shape)
    assert geometry.fans == counted(module, input_shape)


def test_depthwise_convolution_has_fan_out_nine_and_torch_says_otherwise() -> None:
    depthwise = nn.Conv2d(64, 64, 3, groups=64)
    assert module_geometry(depthwise, "weight", depthwise.weight.shape).fans == (9, 9)
    assert torch_fans(depthwise.weight.shape) == (9, 576)


def test_bilinear_sums_over_pairs() -> None:
    bilinear = all_ones(nn.Bilinear(3, 4, 6))
    weight: Any = bilinear.weight
    # Every output sums over all products of an element of one with an element of the other.
    one = torch.ones(1, 3, dtype=torch.float64), torch.ones(1, 4, dtype=torch.float64)
    assert bilinear(*one).tolist() == [[12.0] * 6]
    assert module_geometry(bilinear, "weight", weight.shape).fans == (12, 6)
    assert module_geometry(bilinear, "bias", (6,)).fans == (12, 6)


@pytest.mark.parametrize("make", [nn.Embedding, nn.EmbeddingBag])
def test_embeddings_do_not_count_the_vocabulary(make: Any) -> None:
    embedding = make(1000, 16)
    assert module_geometry(embedding, "weight", embedding.weight.shape).fans == (16, 16)


@pytest.mark.parametrize(
    ("name", "shape"), [("weight_ih_l0", (5,)), ("weight_hh_l0", (4,)), ("weight_ih_l1", (4,)), ("weight_hh_l1", (4,))]
)
@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_weights_are_one_map_a_gate(kind: Any, gates: int, name: str, shape: tuple[int]) -> None:
    module = kind(5, 4, num_layers=2)
    weight = getattr(module, name)
    geometry = module_geometry(module, name, weight.shape)
    assert (geometry.fans, geometry.blocks, geometry.out_dim) == (Fans(*shape, 4), gates, 0)
    assert weight.shape[0] == gates * geometry.fans.fan_out
    # A gate by itself.
    assert geometry.fans == counted(lambda x: x @ weight[:4].detach().double().t(), shape)


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_biases_have_the_fans_of_a_square_weight(kind: Any, gates: int) -> None:
    module = kind(5, 4, bidirectional=True)
    for name in ("bias_ih_l0", "bias_hh_l0", "bias_hh_l0_reverse"):
        geometry = module_geometry(module, name, getattr(module, name).shape)
        assert (geometry.fans, geometry.blocks, geometry.out_dim) == ((4, 4), gates, 0)


def test_relu_rnn_is_one_map_as_tanhs() -> None:
    module = nn.RNN(5, 4, nonlinearity="relu")
    assert module_geometry(module, "weight_ih_l0", module.weight_ih_l0.shape) == ((5, 4), 1, 0, 1, 1, False, 0)


class CustomCell(nn.LSTMCell):
    pass


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTMCell, 4), (nn.GRUCell, 3), (nn.RNNCell, 1), (CustomCell, 4)])
def test_cells_are_as_the_layers(kind: Any, gates: int) -> None:
    cell = kind(5, 4)
    for name, fans in (("weight_ih", (5, 4)), ("weight_hh", (4, 4)), ("bias_ih", (4, 4))):
        geometry = module_geometry(cell, name, getattr(cell, name).shape)
        assert (geometry.fans, geometry.blocks) == (fans, gates), name


def test_lstm_with_a_projection() -> None:
    module: Any = nn.LSTM(5, 6, num_layers=2, proj_size=3)
    expected = {"weight_ih_l0": (5, 6), "weight_hh_l0": (3, 6), "weight_ih_l1": (3, 6), "weight_hh_l1": (3, 6)}
    for name, fans in expected.items():
        geometry = module_geometry(module, name, getattr(module, name).shape)
        assert (geometry.fans, geometry.blocks) == (fans, 4), name
    projection = module_geometry(module, "weight_hr_l0", module.weight_hr_l0.shape)
    assert (projection.fans, projection.blocks) == ((6, 3), 1)


def test_attention_fused_in_proj_is_three_maps() -> None:
    attention = nn.MultiheadAttention(8, 2, add_bias_kv=True)
    weight: Any = attention.in_proj_weight
    geometry = module_geometry(attention, "in_proj_weight", weight.shape)
    assert (geometry.fans, geometry.blocks, geometry.out_dim) == ((8, 8), 3, 0)
    bias = module_geometry(attention, "in_proj_bias", (24,))
    assert (bias.fans, bias.blocks, bias.out_dim) == ((8, 8), 3, 0)
    assert module_geometry(attention, "bias_k", (1, 1, 8)).fans == (8, 8)
    assert module_geometry(attention.out_proj, "weight", (8, 8)).fans == (8, 8)


def test_attention_with_separate_projections() -> None:
    attention: Any = nn.MultiheadAttention(8, 2, kdim=5, vdim=3)
    for name, fans in (("q_proj_weight", (8, 8)), ("k_proj_weight", (5, 8)), ("v_proj_weight", (3, 8))):
        geometry = module_geometry(attention, name, getattr(attention, name).shape)
        assert (geometry.fans, geometry.blocks) == (fans, 1), name
    with pytest.raises(ValueError, match="fans need at least 2"):  # of three weights; which one's?
        module_geometry(attention, "in_proj_bias", (24,))


def test_conv1d_of_transformers_is_in_by_out() -> None:
    transformers = pytest.importorskip("transformers.pytorch_utils")
    layer = transformers.Conv1D(12, 4)
    for kind in (layer, Conv1D(12, 4), type("Subclass", (Conv1D,), {})(12, 4)):
        assert tuple(kind.weight.shape) == (4, 12)
        geometry = module_geometry(kind, "weight", kind.weight.shape)
        assert (geometry.fans, geometry.in_dim, geometry.out_dim) == ((4, 12), 0, 1)
        assert module_geometry(kind, "bias", kind.bias.shape).fans == (4, 12)


def test_a_conv1d_of_another_layout_is_left_to_torchs_reading() -> None:
    other = Conv1D(12, 4)
    other.nf = 4
    assert module_geometry(other, "weight", (4, 12)).fans == (12, 4)


def test_experts_do_not_count_each_other() -> None:
    experts = Experts((8, 64, 128), False)
    assert module_geometry(experts, "weight", experts.weight.shape).fans == (128, 64)
    assert torch_fans(experts.weight.shape).fan_in == 8192  # the trap


BIASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, int], tuple[int, int] | None]] = {
    "linear": (lambda: nn.Linear(5, 7), (5, 7), (5, 7)),
    "conv": (lambda: nn.Conv2d(4, 6, 3, groups=2), (18, 27), (18, 54)),
    "transposed": (lambda: nn.ConvTranspose1d(4, 6, 3, groups=2), (6, 9), (9, 12)),
    "gpt2": (lambda: Conv1D(7, 5), (5, 7), (7, 5)),
    "weight_norm": (lambda: parametrizations.weight_norm(nn.Linear(5, 7)), (5, 7), (5, 7)),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(5, 7)), (5, 7), (5, 7)),
    "layer norm": (lambda: nn.LayerNorm(5), (0, 0), None),
}


@pytest.mark.parametrize(("make", "by_module", "by_weight"), BIASES.values(), ids=BIASES)
def test_biases_have_the_fans_of_the_weight_beside(
    make: Callable[[], nn.Module], by_module: tuple[int, int], by_weight: tuple[int, int] | None
) -> None:
    module: Any = make()
    if by_weight is None:
        for function in (lambda: module_geometry(module, "bias", (5,)), lambda: weight_geometry(module, (5,))):
            with pytest.raises(ValueError, match="fans need at least 2 dimensions"):
                function()
        return
    geometry = module_geometry(module, "bias", module.bias.shape)
    assert (geometry.fans, geometry.out_dim) == (by_module, 0)
    assert weight_geometry(module, module.bias.shape).fans == by_weight


def test_the_bias_beside_a_spectral_norm_is_planned_without_a_power_iteration() -> None:
    module: Any = parametrizations.spectral_norm(nn.Linear(5, 7))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    plan = fastinit.plan(module, "normal", [("bias", "xavier_uniform")], fan="module")
    assert rows_of(plan)["bias"].fans == (5, 7)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


PARAMETRISED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "linear": (lambda: nn.Linear(4, 6), "weight"),
    "depthwise": (lambda: nn.Conv2d(8, 8, 3, groups=8), "weight"),
    "transposed": (lambda: nn.ConvTranspose1d(4, 6, 3), "weight"),
    "gpt2": (lambda: Conv1D(12, 4), "weight"),
    "cell": (lambda: nn.LSTMCell(5, 4), "weight_ih"),
    "experts": (lambda: Experts((3, 4, 5), True), "weight"),
}


@pytest.mark.parametrize(("make", "name"), PARAMETRISED.values(), ids=PARAMETRISED)
def test_parametrised_modules_are_what_they_were(make: Callable[[], nn.Module], name: str) -> None:
    plain, parametrised = make(), make()
    shape = getattr(plain, name).shape
    parametrizations.weight_norm(parametrised, name)
    assert parametrize.is_parametrized(parametrised) and type(parametrised) is not type(plain)
    assert module_geometry(parametrised, name, shape) == module_geometry(plain, name, shape)


# Through the plan


def rows_of(plan: fastinit.Plan) -> dict[str, Any]:
    return {row.name: row for row in plan.rows}


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 8, padding_idx=0)
        self.attention = nn.MultiheadAttention(8, 2)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.upwards = nn.ConvTranspose2d(8, 4, 2)
        self.lstm = nn.LSTM(8, 5)
        self.gpt2 = Conv1D(24, 8)
        self.experts = Experts((4, 6, 10), False)
        self.norm = nn.LayerNorm(8)


MODULE_FANS = {
    "embed.weight": (8, 8), "attention.in_proj_weight": (8, 8), "attention.out_proj.weight": (8, 8),
    "depthwise.weight": (9, 9), "upwards.weight": (32, 16), "lstm.weight_ih_l0": (8, 5), "lstm.weight_hh_l0": (5, 5),
    "gpt2.weight": (8, 24), "experts.weight": (10, 6),
}  # fmt: skip


def test_plan_by_module_has_the_modules_fans_and_their_std() -> None:
    rows = rows_of(fastinit.plan(Mixed(), "kaiming_normal", fan="module"))
    assert {name: tuple(row.fans) for name, row in rows.items() if row.fans is not None} == MODULE_FANS
    for name, (fan_in, _) in MODULE_FANS.items():
        of_row = rows[name].distribution
        std = of_row.rest.std() if name == "embed.weight" else of_row.std()
        assert std == pytest.approx(math.sqrt(2.0 / fan_in), rel=1e-14), name


@pytest.mark.filterwarnings("ignore::fastinit.FanWarning")
def test_plan_is_by_torch_unless_told() -> None:
    model = Mixed()
    for rows in (fastinit.plan(model, "kaiming_normal"), fastinit.plan(model, "kaiming_normal", fan="torch")):
        found = rows_of(rows)
        for name in MODULE_FANS.keys() - {"experts.weight"}:
            parameter = model.get_parameter(name)
            assert found[name].fans == nn.init._calculate_fan_in_and_fan_out(parameter), name
        assert found["experts.weight"].fans == (10, 6)  # a stack


# Stacks of maps


class Holder(nn.Module):
    """A module that nobody knows."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))


class WeightStandardisedConv(Holder):
    pass


class Derived(WeightStandardisedConv):
    pass


class Kernel(Holder):
    kernel_size = (3, 3)


class Grouped(Holder):
    groups = 2


class Modulated(Holder):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, self.weight)


class Mixer(Holder):
    """Has a convolution, and a stack of its own."""

    def __init__(self, *shape: int) -> None:
        super().__init__(*shape)
        self.conv1d = nn.Conv1d(4, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv1d(x) @ self.weight


class Converter(Holder):
    pass


@pytest.mark.parametrize(
    ("module", "fans", "stacked"),
    [
        (Holder(8, 64, 128), (128, 64), 1),
        (Holder(1, 64, 128), (128, 64), 1),
        (Holder(2, 3, 5, 7), (7, 5), 2),
        (Holder(2, 3, 4, 5, 7), (7, 5), 3),
        (Mixer(8, 64, 128), (128, 64), 1),
        (Converter(8, 64, 128), (128, 64), 1),
        (Holder(64, 128), (128, 64), 0),
        # An axis of one makes no map: depthwise kernels, a table, stacks of vectors.
        (Holder(16, 1, 4), (4, 64), 0),
        (Holder(16, 1, 3, 3), (9, 144), 0),
        (Holder(8, 64, 1), (64, 8), 0),
        (Holder(3, 16, 1, 1), (16, 3), 0),
        (WeightStandardisedConv(6, 4, 3), (12, 18), 0),
        (Derived(6, 4, 3, 3), (36, 54), 0),
        (Kernel(6, 4, 3, 3), (36, 54), 0),
        (Grouped(6, 2, 5), (10, 30), 0),
        (Modulated(6, 4, 3, 3), (36, 54), 0),
        (nn.Conv1d(4, 6, 3), (12, 18), 0),
        (nn.Bilinear(3, 4, 5), (12, 20), 0),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, nn.Module) else str(each),
)
def test_three_dimensions_outside_a_convolution_are_a_stack(
    module: nn.Module, fans: tuple[int, int], stacked: int
) -> None:
    shape = module.get_parameter("weight").shape
    for convention in ("torch", "weight"):
        geometry = geometry_of(convention, module, "weight", shape)  # type: ignore[arg-type]
        assert (geometry.fans, geometry.stacked) == (fans, stacked), convention
    if stacked or isinstance(module, Holder):
        assert module_geometry(module, "weight", shape) == geometry_of("torch", module, "weight", shape)
    assert geometry_of("torch", None, "", shape).fans == nn.init._calculate_fan_in_and_fan_out(torch.empty(shape))


@pytest.mark.parametrize(
    "scheme",
    ["xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "lecun_normal", "lecun_uniform"],
)
def test_a_stack_has_the_std_of_one_map(scheme: str) -> None:
    of_stack = rows_of(fastinit.plan(Holder(4, 6, 20, 30), scheme))["weight"].distribution
    assert of_stack == rows_of(fastinit.plan(nn.Linear(30, 20), scheme))["weight"].distribution


def test_tensors_without_a_module_have_torchs_fans() -> None:
    alone, named = torch.empty(8, 64, 128), torch.empty(8, 64, 128)
    fastinit.init_([alone], "kaiming_uniform", seed=0)
    fastinit.kaiming_uniform_(named, generator=torch.Generator().manual_seed(0))
    for tensor in (alone, named):
        assert 0.99 * math.sqrt(6 / 8192) < tensor.abs().max() <= math.sqrt(6 / 8192)


@pytest.mark.parametrize("shape", [(5, 4, 7), (3, 7, 4), (2, 3, 4, 4), (6, 96, 80)], ids=str)
@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("fan", ["torch", "module"])
def test_every_map_of_a_stack_is_orthogonal_with_its_own_numbers(
    shape: tuple[int, ...], backend: str, fan: Any
) -> None:
    module = Holder(*shape)
    fastinit.init_model_(module, "orthogonal", fan=fan, seed=0, backend=backend)
    maps = module.weight.detach().flatten(0, -3)
    wide = maps if shape[-1] >= shape[-2] else maps.mT
    assert (wide @ wide.mT - torch.eye(wide.shape[1])).abs().max() < 1e-5
    for first in range(len(maps)):
        for second in range(first):
            assert (maps[first] - maps[second]).abs().max() > 0.1


def test_blocks_of_every_map_of_a_stack() -> None:
    module = Holder(3, 8, 4)
    rule = fastinit.Rule("weight", ("orthogonal", "zeros"), split=2)  # along the outputs, as in a gate_up_proj
    fastinit.init_model_(module, "normal", [rule], seed=0)
    gate, up = module.weight.detach().chunk(2, dim=1)
    assert (gate @ gate.mT - torch.eye(4)).abs().max() < 1e-5 and not up.any()
    row = rows_of(fastinit.plan(module, "normal", [fastinit.Rule("weight", "xavier_normal", split=2)]))["weight"]
    assert row.fans == (4, 4) and row.distribution.std() == pytest.approx(0.5)


def test_a_scheme_of_convolutions_gets_the_whole() -> None:
    module = Holder(4, 3, 3, 3)
    fastinit.init_model_(module, "normal", [("weight", "dirac")], seed=0)
    assert torch.equal(module.weight, nn.init.dirac_(torch.empty(4, 3, 3, 3)))
    with pytest.raises(fastinit.ParameterError, match=r"weight: identity_plus.*got shape \(3, 5\)"):
        fastinit.plan(Holder(4, 3, 5), "identity_plus_orthogonal")


# Conventions that disagree


class Disagreeing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gpt2 = nn.ModuleList(Conv1D(64, 8) for _ in range(2))
        self.up = nn.ConvTranspose2d(4, 32, 3)
        self.linear = nn.Linear(8, 64)
        self.table = nn.Embedding(1000, 8)


def warned_by(call: Callable[[], object]) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [each for each in caught if issubclass(each.category, fastinit.FanWarning)]


def test_one_warning_names_parameters_and_both_numbers() -> None:
    (only,) = warned_by(lambda: fastinit.init_model_(Disagreeing(), "kaiming_normal", seed=0))
    assert only.filename == __file__
    numbers = [f"{math.sqrt(2 / fan):.3g}" for fan in (64, 8, 288, 36)]
    for name, by_torch, by_module in (
        ("gpt2.0.weight", *numbers[:2]),
        ("gpt2.1.weight", *numbers[:2]),
        ("up.weight", *numbers[2:]),
    ):
        assert f"{name} {by_torch} and {by_module}" in str(only.message)
    assert "linear" not in str(only.message) and "table" not in str(only.message)


DISAGREE: dict[str, tuple[Callable[[], nn.Module], str | Scheme, tuple[str, ...]]] = {
    "depthwise": (
        lambda: nn.Conv2d(64, 64, 3, groups=64),
        fastinit.scheme("kaiming_normal", mode="fan_out"),
        ("weight 0.0589 and 0.471",),
    ),
    "depthwise, fan_in": (lambda: nn.Conv2d(64, 64, 3, groups=64), "kaiming_normal", ()),
    "transposed": (lambda: nn.ConvTranspose1d(4, 64, 3), "lecun_normal", ("weight 0.0722 and 0.289",)),
    "lstm": (lambda: nn.LSTM(32, 32), "orthogonal", ("weight_ih_l0", "weight_hh_l0 0.0884 and 0.177 to each of its 4")),
    "lstm, few outputs": (lambda: nn.LSTM(500, 32), "orthogonal", ("weight_hh_l0",)),
    "lstm, fan_in": (lambda: nn.LSTM(32, 32), "kaiming_normal", ()),
    "lstm cell": (lambda: nn.LSTMCell(32, 32), "xavier_uniform", ("weight_ih 0.112 and 0.177 to each of its 4",)),
    "in_proj": (
        lambda: nn.MultiheadAttention(16, 2),
        "orthogonal",
        ("in_proj_weight 0.144 and 0.25 to each of its 3",),
    ),
    "in_proj, below 1.5": (lambda: nn.MultiheadAttention(16, 2), "xavier_uniform", ()),
    "gpt2": (lambda: Conv1D(48, 16), "kaiming_uniform", ("weight 0.204 and 0.354",)),
    "gpt2, orthogonal": (lambda: Conv1D(48, 16), "orthogonal", ()),
    "experts, transposed": (lambda: Experts((4, 16, 64), True), "kaiming_uniform", ("weight 0.177 and 0.354",)),
    "experts": (lambda: Experts((4, 16, 64), False), "kaiming_uniform", ()),
    "without fans": (lambda: nn.LSTM(32, 32), "normal", ()),
    "scaled": (lambda: Conv1D(48, 16), fastinit.Scaled("kaiming_uniform", 0.5), ("weight 0.102 and 0.177",)),
    "table": (lambda: nn.Embedding(1000, 8), "xavier_uniform", ()),
    "own": (lambda: nn.LSTM(32, 32), "own", ()),
}


@pytest.mark.parametrize(("make", "scheme", "expected"), DISAGREE.values(), ids=DISAGREE)
def test_disagreements_are_told_where_the_std_differs(
    make: Callable[[], nn.Module], scheme: str | Scheme, expected: tuple[str, ...]
) -> None:
    found = warned_by(lambda: fastinit.plan(make(), scheme))
    assert len(found) == (1 if expected else 0)
    for each in expected:
        assert each in str(found[0].message)
    for fan in ("torch", "module", "jax"):  # the caller chose
        assert not warned_by(lambda fan=fan: fastinit.plan(make(), scheme, fan=fan))  # type: ignore[misc]


def test_a_rule_that_says_its_fans_is_not_questioned() -> None:
    rules = [fastinit.Rule("weight_[ih]h_l0", "orthogonal", fan="torch")]
    assert not warned_by(lambda: fastinit.plan(nn.LSTM(8, 8), "orthogonal", rules))
    (only,) = warned_by(lambda: fastinit.plan(nn.LSTM(8, 8), "normal", [("weight_hh_l0", "orthogonal")]))
    assert "weight_hh_l0" in str(only.message) and "weight_ih_l0" not in str(only.message)


def test_recipes_say_their_fans() -> None:
    model = nn.Sequential(nn.Conv2d(64, 64, 3, groups=64), nn.BatchNorm2d(64))
    assert not warned_by(lambda: fastinit.plan(model, "resnet_plain"))
    assert not warned_by(lambda: fastinit.plan(nn.LSTM(8, 8), fastinit.Recipe("orthogonal")))


def test_materialising_warns_once() -> None:
    with torch.device("meta"):
        model = nn.LSTM(8, 8)
    (only,) = warned_by(lambda: fastinit.materialize_(model, "orthogonal", device="cpu", seed=0))
    assert only.filename == __file__


def test_many_disagreements_are_counted() -> None:
    model = nn.ModuleList(Conv1D(64, 8) for _ in range(10))
    (only,) = warned_by(lambda: fastinit.plan(model, "kaiming_normal"))
    assert "5.weight" in str(only.message) and "6.weight" not in str(only.message)
    assert "and 4 more" in str(only.message)


def test_equal_shapes_of_two_modules_are_compared_one_by_one() -> None:
    model = nn.ModuleDict({"linear": nn.Linear(64, 8), "gpt2": Conv1D(64, 8), "last": nn.Linear(8, 64)})
    model["linear"].weight = nn.Parameter(torch.empty(8, 64))
    (only,) = warned_by(lambda: fastinit.plan(model, "kaiming_normal"))
    assert "gpt2.weight" in str(only.message) and "linear" not in str(only.message)


def test_a_scheme_that_fits_one_reading_alone_is_not_compared() -> None:
    @dataclass(frozen=True)
    class Square:
        def distribution(self, context: fastinit.Context) -> Any:
            if context.fans.fan_in == context.fans.fan_out:
                raise ValueError("expected no square map")
            return Normal(0.0, context.fans.fan_in**-0.5)

    attention = nn.MultiheadAttention(8, 2)
    assert not warned_by(lambda: fastinit.plan(attention, "normal", [("in_proj_weight", Square())]))


def test_rules_have_fans_of_their_own() -> None:
    rules = [
        fastinit.Rule("depthwise.weight", "xavier_normal", fan="torch"),
        fastinit.Rule("gpt2.weight", "lecun_uniform", fan=Fans(3, 12)),
        fastinit.Rule("embed.*", "lecun_uniform", fan=FanAxes(1, 0)),
        fastinit.Rule("experts.weight", "lecun_uniform", fan="keras"),
        fastinit.Rule("lstm.bias*", "lecun_uniform", fan="module"),
        fastinit.Rule("depthwise.bias", "lecun_uniform", fan="weight"),
        fastinit.Rule("norm.*", "normal"),
    ]
    rows = rows_of(fastinit.plan(Mixed(), "kaiming_normal", rules, fan="module"))
    expected = {**MODULE_FANS, "depthwise.weight": (9, 72), "gpt2.weight": (3, 12), "embed.weight": (8, 50)}
    expected |= {"experts.weight": (24, 40), "lstm.bias_ih_l0": (5, 5), "lstm.bias_hh_l0": (5, 5)}
    expected |= {"depthwise.bias": (9, 72)}
    assert {name: tuple(row.fans) for name, row in rows.items() if row.fans is not None} == expected


@pytest.mark.parametrize("scheme", ["xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal"])
def test_fused_projections_have_the_std_of_unfused_ones(scheme: str) -> None:
    width = 16
    fused = nn.MultiheadAttention(width, 4)
    unfused = nn.ModuleDict({name: nn.Linear(width, width) for name in "qkv"})
    of_fused = rows_of(fastinit.plan(fused, scheme, fan="module"))["in_proj_weight"].distribution
    of_unfused = {row.distribution.std() for row in fastinit.plan(unfused, scheme).rows if row.name.endswith("weight")}
    assert of_unfused == {of_fused.std()}
    if scheme.startswith("xavier"):  # torch counts three times the outputs
        by_torch = rows_of(fastinit.plan(fused, scheme))["in_proj_weight"].distribution
        assert by_torch.std() == pytest.approx(of_fused.std() / math.sqrt(2.0), rel=1e-14)


@pytest.mark.parametrize(
    "given", ["module", "torch", "jax", "keras", "weight", Fans(3, 4), (3, 4), [3, 4], FanAxes(0, 1)], ids=str
)
def test_conventions_that_are_accepted(given: Any) -> None:
    linear = nn.Linear(5, 7)
    row = rows_of(fastinit.plan(linear, "xavier_uniform", fan=given))["weight"]
    by_rule = rows_of(fastinit.plan(linear, "normal", [fastinit.Rule("weight", "xavier_uniform", fan=given)]))["weight"]
    assert row.fans == by_rule.fans
    expected = {"jax": (7, 5), "keras": (7, 5), str(FanAxes(0, 1)): (7, 5)}
    expected |= {str(pair): (3, 4) for pair in (Fans(3, 4), (3, 4), [3, 4])}
    assert row.fans == expected.get(str(given), (5, 7))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("modul", ValueError, "fan: got 'modul', did you mean 'module'"),
        ("", ValueError, "fan: expected one of torch"),
        ("fan_in", ValueError, "fan: expected one of torch"),
        ((0, 4), ValueError, r"expected fan_in >= 1 and fan_out >= 1, got \(0, 4\)"),
        (Fans(3, -1), ValueError, "expected fan_in >= 1 and fan_out >= 1"),
        ((3,), TypeError, "fan: expected one of .* Fans"),
        ((1, 2, 3), TypeError, "fan: expected one of .* Fans"),
        ((2.0, 3.0), TypeError, "fan: expected one of .* Fans"),
        (("3", 4), TypeError, "fan: expected one of .* Fans"),
        ((True, 4), TypeError, "fan: expected one of .* Fans"),
        ((), TypeError, "fan: expected one of .* Fans"),
        (0, TypeError, "fan: expected one of .* Fans"),
        (3, TypeError, "fan: expected one of .* Fans"),
    ],
    ids=str,
)
def test_conventions_that_are_none_are_refused_everywhere(given: Any, error: type[Exception], message: str) -> None:
    tensor = torch.full((3, 4), 7.0)
    linear = nn.Linear(5, 7)
    calls: list[Callable[[], object]] = [
        lambda: fastinit.Rule("*", "xavier_uniform", fan=given),
        lambda: fastinit.init_([tensor], "xavier_uniform", fan=given),
        lambda: fastinit.plan(linear, "xavier_uniform", fan=given),
    ]
    for each in calls:
        with pytest.raises(error, match=message):
            each()
    assert (tensor == 7.0).all()


def test_every_name_of_a_convention_is_one() -> None:
    assert {tuple(geometry_of(name, None, "", (3, 5)).fans) for name in FAN_NAMES} == {(5, 3), (3, 5)}  # type: ignore[arg-type]


def test_a_parameter_without_fans_is_named() -> None:
    model = nn.ModuleDict({"norm": nn.LayerNorm(4)})
    for convention in FAN_NAMES:
        if convention == "keras":
            continue
        with pytest.raises(ValueError, match=r"^norm\.weight: .*fans need at least 2 dimensions"):
            fastinit.plan(model, "normal", [fastinit.Rule("norm.weight", "lecun_normal", fan=convention)])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^norm\.weight: .*in_axis: expected an axis of shape \(4,\)|at least 2"):
        fastinit.plan(model, "normal", [fastinit.Rule("norm.weight", "lecun_normal", fan=FanAxes(3, 0))])


# Blocks of a split: each has fans of its own

AS_FAN_OUT = fastinit.scheme("kaiming_normal", mode="fan_out")


def stds_of(module: nn.Module, scheme: Any, name: str = "weight", **rule: Any) -> list[float]:
    """The standard deviations along the blocks, or one that all have."""
    rules = [fastinit.Rule(name, scheme, **rule)]
    distribution = rows_of(fastinit.plan(module, "normal", rules))[name].distribution
    parts = distribution.each if isinstance(distribution, Blocks) else [distribution]
    return [part.std() for part in parts]


SPLITS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], list[float]]] = {  # expected fan_outs
    "linear": (lambda: nn.Linear(5, 12), {"fan": "torch", "split": 3}, [4]),
    "linear by module": (lambda: nn.Linear(5, 12), {"fan": "module", "split": 3}, [4]),
    "sizes": (lambda: nn.Linear(5, 12), {"fan": "module", "split": (8, 4)}, [8, 4]),
    "inputs": (lambda: nn.Linear(6, 12), {"fan": "module", "split": 3, "split_dim": 1}, [12]),
    "jax": (lambda: nn.Linear(12, 5), {"fan": "jax", "split": 3}, [4]),  # (5, 12) is (in, out)
    "axes": (lambda: nn.Linear(12, 5), {"fan": FanAxes(-2, -1), "split": 3}, [4]),
    "keras": (lambda: nn.Linear(12, 5), {"fan": "keras", "split": 3}, [4]),
    "gpt2": (lambda: Conv1D(12, 5), {"fan": "module", "split": 3}, [4]),
    "experts": (lambda: Experts((3, 8, 5), False), {"fan": "module", "split": 2}, [4]),
    "experts, transposed": (lambda: Experts((3, 5, 8), True), {"fan": "module", "split": 2}, [4]),
    "convolution": (lambda: nn.Conv1d(4, 12, 3), {"fan": "module", "split": 3}, [12]),
    "transposed": (lambda: nn.ConvTranspose1d(4, 12, 3), {"fan": "module", "split": 3}, [12]),
    "given": (lambda: nn.Linear(5, 12), {"fan": Fans(7, 2), "split": 3}, [2]),
    # Every part of a depthwise convolution is one.
    "depthwise": (lambda: nn.Conv2d(8, 8, 3, groups=8), {"fan": "module", "split": 4}, [9]),
    "depthwise, every channel": (lambda: nn.Conv2d(8, 8, 3, groups=8), {"fan": "module", "split": 8}, [9]),
    "half groups": (lambda: nn.Conv1d(4, 8, 3, groups=2), {"fan": "module", "split": 4}, [6]),
}


@pytest.mark.parametrize(("make", "rule", "fan_outs"), SPLITS.values(), ids=SPLITS)
def test_blocks_count_their_own_outputs(
    make: Callable[[], nn.Module], rule: dict[str, Any], fan_outs: list[float]
) -> None:
    assert stds_of(make(), AS_FAN_OUT, **rule) == pytest.approx([math.sqrt(2.0 / fan) for fan in fan_outs], rel=1e-14)


def test_blocks_along_the_inputs_count_their_own_inputs() -> None:
    rule: dict[str, Any] = {"fan": "module", "split": (4, 2), "split_dim": 1}
    assert stds_of(nn.Linear(6, 12), "kaiming_normal", **rule) == pytest.approx([math.sqrt(2 / 4), math.sqrt(2 / 2)])


@pytest.mark.parametrize("module", [Conv1D(12, 5), nn.Linear(5, 12), nn.Conv1d(5, 12, 1)], ids=lambda it: str(type(it)))
def test_a_bias_is_split_as_the_weight_beside(module: nn.Module) -> None:
    for name in ("weight", "bias"):
        assert stds_of(module, AS_FAN_OUT, name, fan="module", split=3) == [pytest.approx(math.sqrt(2 / 4))]


def test_a_bias_of_a_fused_projection_has_its_fans() -> None:
    attention = nn.MultiheadAttention(8, 2)
    assert stds_of(attention, AS_FAN_OUT, "in_proj_bias", fan="module") == [pytest.approx(math.sqrt(2 / 8))]
