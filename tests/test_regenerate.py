"""What only initial values that can be made again allow: blends, masks, units, distances."""

from __future__ import annotations

import copy
import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import worlds
from conftest import DTYPES, FLOAT8_DTYPES, INSTRUCTION_SETS, needs_native
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import fastinit
from fastinit import _native
from fastinit.plans.rows import targets_of
from fastinit.run import rewriting
from fastinit.run.table import Table

KEEP, SCALE = 0.9, -0.37


class Net(nn.Module):
    """Parameters of all dtypes and layouts, sampled and composed."""

    def __init__(self) -> None:
        super().__init__()
        for number, dtype in enumerate(DTYPES):
            setattr(self, f"linear{number}", nn.Linear(67, 131, dtype=dtype))
        self.transposed = nn.Parameter(torch.empty(70, 33).t())
        self.images = nn.Parameter(torch.empty(6, 5, 3, 3).to(memory_format=torch.channels_last))
        self.orthogonal = nn.Linear(9, 8, bias=False)
        self.narrow = nn.Linear(9, 8, bias=False, dtype=torch.bfloat16)
        self.sparse = nn.Linear(30, 20, bias=False)
        self.eye = nn.Linear(12, 12, bias=False, dtype=torch.float16)
        self.large = nn.Parameter(torch.empty(3, 40_001))
        self.embedding = nn.Embedding(11, 6, padding_idx=2)


RULES = [
    ("linear0.weight", "normal"),
    ("linear1.weight", "trunc_normal"),
    ("linear2.weight", "normal"),
    ("linear3.weight", "normal"),
    ("linear3.bias", fastinit.Constant(1.0 / 3.0)),
    ("transposed", "uniform"),
    ("images", "trunc_normal"),
    ("orthogonal.*", "orthogonal"),
    ("narrow.*", "orthogonal"),
    ("sparse.*", fastinit.Sparse(0.3)),
    ("eye.*", "eye"),
    ("large", fastinit.Normal(0.0, 0.02)),
]


def net() -> Net:
    model = Net()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def planned(model: nn.Module, **options: Any) -> fastinit.Plan:
    return fastinit.plan(model, "xavier_uniform", RULES, seed=3, **options)


def initial(model: nn.Module) -> dict[str, torch.Tensor]:
    other = copy.deepcopy(model)
    planned(other).run_()
    return dict(other.named_parameters())


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return (
        tensor.detach()
        .contiguous()
        .view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
    )


def in_torch(old: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Two products and a sum, each rounded, then rounded once more: the definition."""
    dtype = torch.float64 if old.dtype == torch.float64 else torch.float32
    return (old.to(dtype) * KEEP + value.to(dtype) * SCALE).to(old.dtype)


@needs_native
@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_blend_is_two_products_and_a_sum_rounded_once(
    isa: str, threads: int, monkeypatch: pytest.MonkeyPatch, restored_threads: None
) -> None:
    monkeypatch.setenv("FASTINIT_FORCE_ISA", isa)
    torch.set_num_threads(threads)
    model = net()
    old = copy.deepcopy(dict(model.named_parameters()))
    values = initial(model)
    # 16-bit values are blended before they are rounded: the unrounded ones are those of a float32 model.
    unrounded = initial(net().float())
    planned(model).blend_(KEEP, SCALE)
    for name, now in model.named_parameters():
        value = values[name] if now.element_size() > 2 else unrounded[name]
        if now.dtype == torch.float64:
            value = values[name]
        torch.testing.assert_close(bits(now), bits(in_torch(old[name], value)), rtol=0, atol=0, msg=name)


@pytest.fixture
def restored_threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def holder(tensor: torch.Tensor) -> nn.Module:
    return nn.ParameterDict({"w": nn.Parameter(tensor)})


def plan_of(tensor: torch.Tensor) -> fastinit.Plan:
    return fastinit.plan(holder(tensor), "normal", [("w", fastinit.Normal(0.25, 2.0))], seed=1)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_every_old_number_is_blended_alike(isa: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """All 16-bit patterns, subnormal, infinite and NaN ones among them; of wider dtypes random ones."""
    monkeypatch.setenv("FASTINIT_FORCE_ISA", isa)
    generator = torch.Generator().manual_seed(1)
    if dtype.itemsize == 2:
        old = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    else:
        old = torch.randint(-128, 128, (2**16 * dtype.itemsize,), dtype=torch.int8, generator=generator).view(dtype)
    tensor = old.clone()
    plan_of(tensor).blend_(KEEP, SCALE)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    value = torch.empty(old.shape, dtype=wide)
    plan_of(value).run_()
    wanted = in_torch(old, value)
    nan = wanted.isnan()
    assert nan.any()
    assert torch.equal(bits(tensor)[~nan], bits(wanted)[~nan])
    assert len(set(bits(tensor)[nan].tolist())) == 1  # one quiet NaN, of whatever came
    assert bits(tensor)[nan][0] == bits(torch.tensor([math.nan], dtype=dtype))[0]


@needs_native
@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_rows_of_any_length_are_blended_alike(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long rows are blended in registers, short ones through a buffer. Here rows begin at any index, and between them
    lie elements of another tensor."""
    monkeypatch.setenv("FASTINIT_FORCE_ISA", isa)
    for columns in (47, 48, 255, 256, 257, 1919, 1921, 4099):
        truncated = fastinit.TruncNormal(0.0, 1.0, (-1.0, 2.0))
        for scheme in (fastinit.Uniform(-1.0, 3.0), fastinit.Normal(0.25, 2.0), truncated):
            around = torch.arange(3.0 * (columns + 5)).reshape(3, columns + 5)
            before = around.clone()
            rows = around[:, 2:-3]
            fastinit.plan(holder(rows), "normal", [("w", scheme)], seed=1).blend_(KEEP, SCALE)
            value = torch.empty(3, columns)
            fastinit.plan(holder(value), "normal", [("w", scheme)], seed=1).run_()
            before[:, 2:-3] = in_torch(before[:, 2:-3], value)
            assert torch.equal(bits(around), bits(before)), (columns, scheme)


def test_perturbations_of_other_seeds_and_version_counters() -> None:
    model = net()
    plan = planned(model)
    before = {name: (p.clone(), p._version) for name, p in model.named_parameters()}
    plan.blend_(1.0, 0.0)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter._version > before[name][1]
    plan.blend_(1.0, 1.0, seed=4)
    assert not torch.equal(model.large, before["large"][0])


def test_to_keep_nothing_is_to_rewind() -> None:
    model = net()
    plan = planned(model)
    plan.blend_(0.0, 1.0)
    assert fastinit.verify(model, plan) == ()


@pytest.mark.parametrize("given", [np.float32(0.5), torch.tensor(0.5), np.array(0.5)])
def test_factors_may_be_any_numbers(given: Any) -> None:
    model, other = net(), net()
    planned(model).blend_(given, given)
    planned(other).blend_(0.5, 0.5)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("given", [math.nan, math.inf, 1e39, True, "1", torch.ones(1), torch.ones((), device="meta")])
def test_factors_that_are_no_finite_numbers(given: Any) -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    for arguments, word in (((given, 1.0), "keep"), ((1.0, given), "scale")):
        with pytest.raises((ValueError, TypeError), match=f"{word}: expected a"):
            planned(model).blend_(*arguments)
    assert all(torch.equal(now, before[name]) for name, now in model.state_dict().items())


def test_what_cannot_be_blended_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="seed: expected an int"):
        fastinit.plan(model, "normal").blend_(1.0, 1.0)
    model[1].register_parameter("count", nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False))
    before = copy.deepcopy(model.state_dict())
    plan = fastinit.plan(model, "normal", [("1.count", "ones")], seed=0)
    with pytest.raises(fastinit.ParameterError, match=r"1\.count: expected a floating-point or complex dtype"):
        plan.blend_(0.5, 0.5)
    nn.utils.parametrizations.weight_norm(model[0])
    plan = fastinit.plan(model, "normal", [("1.count", fastinit.KEEP)], seed=0)
    with pytest.raises(fastinit.ParameterError, match=r"0\.weight: is computed by a parametrization"):
        plan.blend_(0.5, 0.5)
    assert torch.equal(model[1].weight, before["1.weight"])
    assert torch.equal(model[0].bias, before["0.bias"])


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_masks_choose_what_is_written(backend: str) -> None:
    model = net()
    plan = planned(model, backend=backend)
    other = copy.deepcopy(model)
    planned(other, backend=backend).run_()
    values = dict(other.named_parameters())
    before = copy.deepcopy(dict(model.named_parameters()))
    names = ["linear0.weight", "linear3.weight", "transposed", "images", "orthogonal.weight", "sparse.weight", "large"]
    generator = torch.Generator().manual_seed(2)
    masks = {name: torch.rand(before[name].shape, generator=generator) < 0.3 for name in names}
    masks["large"][:2] = False
    plan.run_(where=masks)
    for name, now in model.named_parameters():
        wanted = torch.where(masks[name], values[name], before[name]) if name in masks else before[name]
        assert torch.equal(bits(now), bits(wanted)), name
        assert (now._version > before[name]._version) == (name in masks) or name not in masks


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda w: w,
    "transposed": lambda w: w.t().contiguous().t(),
    "every second": lambda w: torch.stack([w, w], -1)[..., 0],
    "columns": lambda w: torch.cat([w, w], 1)[:, 5:-390],
}


QUICK_DTYPES = (torch.float32, torch.bfloat16, torch.complex64)
EVERY_DTYPE = [
    pytest.param(each, marks=() if each in QUICK_DTYPES else pytest.mark.slow)
    for each in (*DTYPES, *FLOAT8_DTYPES, torch.complex64)
]


@needs_native
@pytest.mark.parametrize("dtype", EVERY_DTYPE, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(
    "of_mask", [lambda mask: mask, lambda mask: mask.t().contiguous().t()], ids=["rows", "columns"]
)
def test_masked_writes_are_the_same_for_all_threads_instruction_sets_and_layouts(
    dtype: torch.dtype,
    layout: Callable[[torch.Tensor], torch.Tensor],
    of_mask: Callable[[torch.Tensor], torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    restored_threads: None,
) -> None:
    generator = torch.Generator().manual_seed(0)
    old = torch.randint(0, 256, (700, 403 * dtype.itemsize), dtype=torch.uint8, generator=generator).view(dtype)
    shape = layout(old.clone()).shape
    mask = torch.rand(shape, generator=generator) < 0.4
    mask[100:500] = False
    values = torch.empty(shape, dtype=dtype)
    plan_of(values).run_()
    for isa in INSTRUCTION_SETS:
        monkeypatch.setenv("FASTINIT_FORCE_ISA", isa)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            w = layout(old.clone())
            before, around = w.clone(), w.untyped_storage().nbytes()
            plan_of(w).run_(where={"w": of_mask(mask)})
            assert w.untyped_storage().nbytes() == around
            assert torch.equal(bits(w[mask]), bits(values[mask]))
            assert torch.equal(bits(w[~mask]), bits(before[~mask]))


@needs_native
def test_masks_of_units_take_no_more_than_the_scratch_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask that is the same along a dimension is copied in pieces, whichever way the weight lies."""
    monkeypatch.setattr(rewriting, "SCRATCH_BYTES", 10_000)
    made: list[int] = []
    empty = torch.empty_strided
    monkeypatch.setattr(
        torch, "empty_strided", lambda size, *a, **k: made.append(math.prod(size)) or empty(size, *a, **k)
    )
    for weight in (torch.zeros(300, 200), torch.zeros(200, 300).t()):
        made.clear()
        mask = (torch.arange(300) % 3 == 0)[:, None].expand(300, 200)
        plan_of(weight).run_(where={"w": mask})
        assert 6 <= len(made) <= 8 and max(made) <= 10_000
        assert torch.equal(weight != 0, mask)


def shrunk(mask: torch.Tensor, nbytes: int) -> torch.Tensor:
    mask.untyped_storage().resize_(nbytes)
    return mask


@pytest.mark.parametrize(
    ("name", "mask", "problem"),
    [
        ("large", shrunk(torch.ones(3, 40_001, dtype=torch.bool), 16), "its mask: its storage of 16 bytes is smaller"),
        ("large", shrunk(torch.ones(3, 40_001, dtype=torch.bool), 0), "its mask: its storage of 0 bytes is smaller"),
        ("large", torch.ones(3, 40_001, dtype=torch.bool, device="meta"), "its mask: is on the meta device"),
        (
            "large",
            torch.ones(3, 40_001, dtype=torch.bool).to_sparse(),
            r"its mask: expected a dense \(strided\) tensor",
        ),
        ("large", torch.ones(40_001, 3, dtype=torch.bool), "expected a mask of shape"),
        ("large", torch.ones(3, 40_001), "expected a mask of torch.bool, got torch.float32"),
        ("large", [True], "expected a mask of torch.bool, got list"),
        ("nothing", torch.ones(3, dtype=torch.bool), "the plan writes no parameter of this name"),
    ],
)
def test_masks_that_do_not_fit(name: str, mask: Any, problem: str) -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    everywhere = torch.ones(131, 67, dtype=torch.bool)
    with pytest.raises(fastinit.ParameterError, match=problem) as error:
        planned(model).run_(where={"linear0.weight": everywhere, name: mask})
    assert error.value.name == name
    assert all(torch.equal(now, before[key]) for key, now in model.state_dict().items())
    with pytest.raises(ValueError, match="seed: expected an int"):
        fastinit.plan(model, "normal").run_(where={})


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_masks_of_no_elements_fit_parameters_of_none() -> None:
    model = nn.Sequential(nn.Linear(0, 4, bias=False), nn.Linear(4, 2))
    plan = fastinit.plan(model, "xavier_normal", seed=0)
    masks = {"0.weight": torch.ones(4, 0, dtype=torch.bool), "1.weight": torch.ones(2, 4, dtype=torch.bool)}
    plan.run_(where=masks)
    assert fastinit.verify(model, plan.filter("*.weight")) == ()
    with pytest.raises(fastinit.ParameterError, match=r"0\.weight: expected a mask of shape \(4, 0\)"):
        plan.run_(where={**masks, "0.weight": torch.ones(4, 1, dtype=torch.bool)})


@pytest.mark.parametrize("where", [[torch.ones(3, 4, dtype=torch.bool)], torch.ones(3, 4, dtype=torch.bool), "weight"])
def test_masks_are_given_by_names(where: Any) -> None:
    model = nn.Linear(4, 3)
    with pytest.raises(TypeError, match="where: expected a mapping from names to masks"):
        fastinit.plan(model, "normal", seed=0).run_(where=where)


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3)
        self.up = nn.ConvTranspose2d(6, 5, 2)
        self.head = nn.Linear(5 * 4, 3)


def test_units_are_reset_with_all_that_reads_them() -> None:
    model = Convolutions()
    plan = fastinit.plan(model, "kaiming_normal", [("*.bias", fastinit.Constant(0.5))], seed=7)
    plan.run_()
    initial = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    moved = copy.deepcopy(model.state_dict())
    plan.run_units_({"first": [1, 4], "up": [0]}, outgoing={"first": "up", "up": ["head"]})
    wanted = copy.deepcopy(moved)
    for unit in (1, 4):
        wanted["first.weight"][unit], wanted["first.bias"][unit] = initial["first.weight"][unit], 0.5
    wanted["up.weight"][:, 0], wanted["up.bias"][0] = initial["up.weight"][:, 0], 0.5
    wanted["up.weight"][[1, 4]] = 0.0
    wanted["head.weight"][:, 0:4] = 0.0
    for name, now in model.state_dict().items():
        assert torch.equal(now, wanted[name]), name


@pytest.mark.parametrize(
    ("units", "outgoing", "problem"),
    [
        ({"first": [6]}, {"first": "up"}, "first: expected units 0 to 5, got 6"),
        ({"first": [-1]}, {"first": "up"}, "first: expected units 0 to 5, got -1"),
        ({"first": [True]}, {"first": "up"}, "first: expected numbers of units"),
        ({"first": 3}, {"first": "up"}, "first: expected numbers of units, got 3"),
        ({"first": "12"}, {"first": "up"}, "first: expected numbers of units, got '12'"),
        ({"first": torch.ones(6, dtype=torch.bool)}, {"first": "up"}, r"first: .* got a tensor of torch\.bool"),
        ({"first": torch.ones(1)}, {"first": "up"}, r"first: .* got a tensor of torch\.float32"),
        ({"first": torch.tensor(1)}, {"first": "up"}, r"first: .* and shape \(\)"),
        ({"first": torch.ones(1, dtype=torch.int64, device="meta")}, {"first": "up"}, "first: .* on meta"),
        ({"first": [0]}, {}, "outgoing: expected the layers"),
        ({"first": [0]}, {"first": "head"}, r"head\.weight: has 20 inputs, not a multiple of the 6 units"),
        ({"last": [0]}, {"last": ()}, r"last\.weight: the plan has no such parameter"),
    ],
)
def test_units_that_are_not_there(units: Any, outgoing: Any, problem: str) -> None:
    model = Convolutions()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=problem):
        fastinit.plan(model, "normal", seed=0).run_units_(units, outgoing=outgoing)
    plan = fastinit.plan(model, "normal", [("first.*", fastinit.KEEP)], seed=0)
    with pytest.raises(fastinit.ParameterError, match=r"first\.weight: its units cannot be reset"):
        plan.run_units_({"first": [0]}, outgoing={"first": ()})
    assert all(torch.equal(now, before[name]) for name, now in model.state_dict().items())


@pytest.mark.parametrize("given", [torch.tensor([1, 4]), (np.int32(1), 4), {4, 1}, np.array([4, 1])])
def test_units_may_be_any_integers(given: Any) -> None:
    model, other = Convolutions(), Convolutions()
    for each in (model, other):
        fastinit.init_model_(each, "kaiming_normal", seed=0)
    fastinit.plan(model, "kaiming_normal", seed=0).run_units_({"first": [1, 4]}, outgoing={"first": "up"}, seed=1)
    with torch.device("meta"):
        fastinit.plan(other, "kaiming_normal", seed=0).run_units_({"first": given}, outgoing={"first": "up"}, seed=1)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))


def test_units_of_layers_in_groups() -> None:
    """A column of a transposed convolution's weight is that of one unit in every group. Rows are of one unit each."""
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), nn.Conv2d(4, 4, 3, groups=2), nn.ConvTranspose2d(4, 8, 3, groups=2)
    )
    plan = fastinit.plan(model, "kaiming_normal", seed=0)
    plan.run_()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(fastinit.ParameterError, match=r"2\.weight: its units cannot be reset"):
        plan.run_units_({"2": [1]}, outgoing={"2": ()})
    with pytest.raises(fastinit.ParameterError, match=r"1\.weight: reads its inputs in 2 groups"):
        plan.run_units_({"0": [1]}, outgoing={"0": "1"})
    assert all(torch.equal(now, before[name]) for name, now in model.state_dict().items())
    plan.run_units_({"0": [1]}, outgoing={"0": ()}, seed=1)
    changed = (model[0].weight != before["0.weight"]).flatten(1).any(1)
    assert changed.tolist() == [False, True, False, False]


@pytest.mark.parametrize("outgoing", [None, "up", {"first": 2}, {"first": [2]}, {"first": None}])
def test_readers_are_given_by_names(outgoing: Any) -> None:
    with pytest.raises(TypeError, match="outgoing: expected"):
        fastinit.plan(Convolutions(), "normal", seed=0).run_units_({"first": [0]}, outgoing=outgoing)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_distances_are_those_of_a_copy(backend: str) -> None:
    model = net()
    plan = planned(model, backend=backend)
    other = copy.deepcopy(model)
    planned(other, backend=backend).run_()
    found = fastinit.distance(model, plan)
    assert list(found) == [row.name for row in plan.rows if row.action == "init"]
    for name, value in other.named_parameters():
        w, v = dict(model.named_parameters())[name].detach().double(), value.detach().double()
        wanted = (w.norm(), v.norm(), (w - v).norm(), (w * v).sum() / (w.norm() * v.norm()), (w - v).abs().max())
        for field, given, want in zip(found[name]._fields, found[name], wanted, strict=True):
            assert given == pytest.approx(float(want), rel=1e-12, abs=1e-12, nan_ok=True), (name, field)
    plan.run_()
    for name, each in fastinit.distance(model, plan).items():
        assert each.moved == each.largest == 0.0, name
        assert each.cosine == pytest.approx(1.0) or each.initial == 0.0


@needs_native
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, *FLOAT8_DTYPES], ids=str)
@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_distances_of_every_narrow_number(isa: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """All finite patterns of 8 and 16 bits: they are widened before they are measured."""
    monkeypatch.setenv("FASTINIT_FORCE_ISA", isa)
    bits, integer = (8, torch.uint8) if dtype.itemsize == 1 else (16, torch.uint16)
    every = torch.arange(2**bits, dtype=torch.int64).to(integer).view(dtype)
    w = every[every.double().isfinite()]
    v = w.clone()
    plan_of(v).run_()
    found = fastinit.distance(holder(w), plan_of(w))["w"]
    wide, values = w.double(), v.double()
    assert found.norm == pytest.approx(wide.norm().item(), rel=1e-12)
    assert found.initial == pytest.approx(values.norm().item(), rel=1e-12)
    assert found.moved == pytest.approx((wide - values).norm().item(), rel=1e-12)
    assert found.cosine * found.norm == pytest.approx((wide.dot(values) / values.norm()).item(), rel=1e-9)
    assert found.largest == (wide - values).abs().max().item()


@needs_native
def test_distances_are_the_same_for_all_threads_instruction_sets_and_layouts(
    monkeypatch: pytest.MonkeyPatch, restored_threads: None
) -> None:
    found = set()
    for isa in INSTRUCTION_SETS:
        monkeypatch.setenv("FASTINIT_FORCE_ISA", isa)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for layout in (lambda w: w, lambda w: w.t().contiguous().t()):
                for offset in (0, 3):
                    w = layout(torch.linspace(-1, 1, 700 * 403).view(700, 403))[offset:].detach()
                    each = fastinit.distance(holder(w), plan_of(w))["w"]
                    found.add((offset, each))
    assert len(found) == 2


def test_distances_of_what_is_not_a_number() -> None:
    model = nn.Linear(40, 3, bias=False)
    plan = fastinit.plan(model, "normal", seed=1)
    plan.run_()
    with torch.no_grad():
        model.weight[1, 7] = math.nan
        model.weight[0, 3] += 2.0
    each = fastinit.distance(model, plan)["weight"]
    assert math.isnan(each.norm)
    assert math.isnan(each.moved)
    assert each.largest == pytest.approx(2.0, rel=1e-6)
    model.weight.data[2, 2] = math.inf
    assert fastinit.distance(model, plan)["weight"].largest == math.inf


def test_distances_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    plan = fastinit.plan(model, "normal", seed=0)
    with pytest.raises(ValueError, match="plan: expected one with a seed"):
        fastinit.distance(model, fastinit.plan(model, "normal"))
    with pytest.raises(fastinit.ParameterError, match=r"0\.weight: the model has no such parameter"):
        fastinit.distance(nn.Linear(3, 4), plan)
    nn.utils.parametrizations.weight_norm(model[1])
    with pytest.raises(fastinit.ParameterError, match=r"1\.weight: is computed by a parametrization"):
        fastinit.distance(model, fastinit.plan(model, "normal", seed=0))


@needs_native
def test_nothing_large_is_made_to_measure() -> None:
    """Neither by Python nor, of a tensor of 64 MiB, by torch."""
    model = nn.Linear(4096, 4096, bias=False)
    plan = fastinit.plan(model, "normal", seed=0)
    mask = torch.ones(4096, 4096, dtype=torch.bool)
    made: list[int] = []
    empty = torch.empty_like
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "empty_like", lambda *a, **k: made.append(a[0].numel()) or empty(*a, **k))
        tracemalloc.start()
        fastinit.distance(model, plan)
        fastinit.verify(model, plan)
        plan.blend_(0.5, 0.5)
        plan.run_(where={"weight": mask})
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert made == []
    assert peak < 2**20


@needs_native
def test_the_binding_refuses_what_is_not_prepared_or_finite() -> None:
    assert _native.module is not None
    model = nn.Linear(3, 4)
    targets = [target for row in fastinit.plan(model, "normal", seed=0).rows for target in targets_of(row, row.tensor)]
    table = Table(targets)
    for factors in ((math.nan, 1.0), (1.0, math.inf), (1e39, 0.0)):
        with pytest.raises(ValueError, match="keep, scale: expected finite numbers"):
            _native.module.blend_cpu(table.rows, *factors, 0, 1)
    changed = table.rows.copy()
    changed["parameter"][0, 0] += 1.0
    calls = (
        lambda: _native.module.blend_cpu(changed, 1.0, 1.0, 0, 1),
        lambda: _native.module.differs_cpu(changed, 0, 1),
        lambda: _native.module.distances_cpu(changed, 0, 1),
        lambda: _native.module.fill_where_cpu(changed, np.ones(len(changed), np.uint64), 0, 1),
    )
    for call in calls:
        with pytest.raises(ValueError, match="was not prepared"):
            call()
    with pytest.raises(ValueError, match="threads"):
        table.distances_cpu(0, 0)
    for masks, problem in (([1], "an address for each of 2 rows, got 1"), ([8, 0], "row 1 has no address")):
        with pytest.raises(ValueError, match=problem):
            _native.module.fill_where_cpu(table.rows, np.array(masks, np.uint64), 0, 1)


# ---- over ranks ----


def _shards_are_slices(world: int) -> None:
    mesh = init_device_mesh("cpu", (world,))
    dense = nn.Sequential(nn.Linear(7, 10), nn.Linear(10, 3), nn.Linear(3, 3))
    for each in dense:
        nn.init.constant_(each.weight, 0.25)
        nn.init.constant_(each.bias, -0.5)
    model = copy.deepcopy(dense)
    for each, placement in zip(model, (Shard(0), Shard(1), Replicate()), strict=True):
        for name, parameter in list(each.named_parameters()):
            of = Shard(0) if name == "bias" and placement == Shard(1) else placement
            setattr(each, name, nn.Parameter(distribute_tensor(parameter.detach(), mesh, [of])))
    plan = fastinit.plan(dense, "kaiming_normal", [("2.weight", "orthogonal")], seed=5)
    sharded = fastinit.plan(model, "kaiming_normal", [("2.weight", "orthogonal")], seed=5)
    mask = torch.rand(10, 7, generator=torch.Generator().manual_seed(0)) < 0.5
    for of, where in ((plan, mask), (sharded, mask)):
        of.blend_(KEEP, SCALE, seed=9)
        of.run_(where={"0.weight": where})
        of.run_units_({"0": [1, 8], "1": [2]}, outgoing={"0": "1", "1": "2"})
    version = model[0].weight._version
    sharded.run_(where={"0.weight": distribute_tensor(mask, mesh, [Shard(0)])})
    assert model[0].weight._version > version
    for (name, want), given in zip(dense.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(given.full_tensor(), want, rtol=0, atol=0, msg=name)
    wanted = fastinit.distance(dense, plan)
    for name, each in fastinit.distance(model, sharded, group=dist.group.WORLD).items():
        assert each == pytest.approx(wanted[name], rel=1e-12, nan_ok=True), name
    here = fastinit.distance(model, sharded)
    assert here["0.weight"].norm < wanted["0.weight"].norm


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_shards_are_slices_and_distances_add_up(world: int) -> None:
    worlds.run(world, _shards_are_slices, world)
