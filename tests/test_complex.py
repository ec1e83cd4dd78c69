"""Complex parameters: both parts of every value come from the parameter's stream (docs/STREAM.md, section 7)."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import make_golden
import numpy as np
import pytest
import reference
import torch
import worlds
from conftest import needs_native
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import fastinit
from fastinit import Held, Piece, Rule
from fastinit.plans import planned as plan_module
from fastinit.run import engine
from fastinit.run.targets import PARTS, Target
from fastinit.schemes.distributions import Constant, Diagonal, Distribution, Normal, Uniform

pytestmark = needs_native

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "vectors" / "complex_v1.json").read_text(encoding="utf-8"))
DTYPES = list(PARTS)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(autouse=True, scope="module")
def _end_of_worlds() -> Iterator[None]:
    yield
    worlds.close_all()


def distribution_of(kind: str, parameters: list[float]) -> Distribution:
    return {"constant": Constant, "uniform": Uniform, "normal": Normal}[kind](*parameters)


def fill(tensor: torch.Tensor, distribution: Distribution, seed: int, name: str = "w", **where: Any) -> torch.Tensor:
    shape = where.pop("shape", tensor.shape)
    target = Target(name, tensor, torch.Size(shape), tensor.dtype, tensor.device, distribution, **where)
    engine.Program([target], "native").run_(seed, None)
    return tensor


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    def bits(tensor: torch.Tensor) -> torch.Tensor:
        return torch.view_as_real(tensor.detach()).contiguous().view(torch.uint8)

    return torch.equal(bits(one), bits(other))


# ---- the values ----


@pytest.mark.slow
def test_golden_file_is_what_the_reference_makes() -> None:
    assert make_golden.golden_complex() == GOLDEN


@by_dtype
@pytest.mark.parametrize("case", GOLDEN["distributions"], ids=lambda case: f"{case['kind']}({case['parameters']})")
def test_values_equal_golden(isa: str, case: dict[str, Any], dtype: torch.dtype) -> None:
    distribution = distribution_of(case["kind"], list(map(float, case["parameters"])))
    wanted = case["values"][str(dtype).removeprefix("torch.")]
    values = fill(torch.empty(GOLDEN["hashed"], dtype=dtype), distribution, case["seed"], case["name"])
    parts = torch.view_as_real(values).numpy()
    assert make_golden.digest(parts) == wanted["sha256"]
    assert make_golden.bit_patterns(parts[: make_golden.COUNT].ravel()) == wanted["first"]
    later = torch.empty(make_golden.COUNT, dtype=dtype)
    begin, count = GOLDEN["later_index"], make_golden.COUNT
    fill(later, distribution, case["seed"], case["name"], shape=(begin + count,), begin=(begin,))
    assert make_golden.bit_patterns(torch.view_as_real(later).numpy().ravel()) == wanted["later"]


@by_dtype
def test_torch_s_functions_give_values_of_the_stream(dtype: torch.dtype) -> None:
    parts: Any = str(PARTS[dtype]).removeprefix("torch.")
    bound = math.sqrt(6.0 / (20 + 30))
    wanted = {
        "uniform_": ("uniform", (0.0, 1.0)),
        "normal_": ("normal", (0.0, 1.0)),
        "xavier_uniform_": ("uniform", (-bound, bound)),
        "kaiming_normal_": ("normal", (0.0, math.sqrt(2.0 / 20))),
    }
    for function, (kind, parameters) in wanted.items():
        torch.manual_seed(3)
        seed = engine.draw_seed(None)
        torch.manual_seed(3)
        values = getattr(fastinit, function)(torch.empty(30, 20, dtype=dtype))
        given: Any = kind
        of = reference.sample_complex(given, parameters, parts, seed, "", np.arange(600))
        assert np.array_equal(torch.view_as_real(values).numpy().reshape(600, 2), of), function


@by_dtype
def test_a_normal_has_halves_of_torch_s_variance(dtype: torch.dtype) -> None:
    ours, theirs = torch.empty(100_000, dtype=dtype), torch.empty(100_000, dtype=dtype)
    fastinit.init_([ours], fastinit.Normal(0.5, 2.0), seed=0)
    nn.init.normal_(theirs, 0.5, 2.0, generator=torch.Generator().manual_seed(0))
    for part in (ours.real, ours.imag, theirs.real, theirs.imag):
        # 5 sigma of a mean, and of a variance, of 1e5 values.
        assert abs(part.mean().item() - 0.5) < 5 * math.sqrt(2.0 / 1e5)
        assert abs(part.var().item() - 2.0) < 5 * 2.0 * math.sqrt(2.0 / 1e5)
    assert abs(np.corrcoef(ours.real.numpy(), ours.imag.numpy())[0, 1]) < 5 / math.sqrt(1e5)


@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, math.inf, -math.inf, math.nan])
@by_dtype
def test_constants_are_real(dtype: torch.dtype, value: float) -> None:
    assert same(fill(torch.ones(3, 5, dtype=dtype), Constant(value), 0), torch.full((3, 5), value, dtype=dtype))


@by_dtype
def test_patterns_are_real(dtype: torch.dtype) -> None:
    for function, shape in (("eye_", (7, 4)), ("eye_", (3, 9)), ("dirac_", (6, 4, 3, 3))):
        ours = getattr(fastinit, function)(torch.full(shape, 7j, dtype=dtype))
        assert same(ours, getattr(nn.init, function)(torch.full(shape, 7j, dtype=dtype)))


@by_dtype
def test_zeros_of_sparse_are_zeros_of_both_parts(dtype: torch.dtype) -> None:
    sparse, dense = torch.empty(12, 40, dtype=dtype), torch.empty(12, 40, dtype=dtype)
    fastinit.init_([sparse], fastinit.Sparse(0.25, 2.0), names=["w"], seed=4, backend="native")
    fastinit.init_([dense], fastinit.Normal(0.0, 2.0), names=["w"], seed=4, backend="native")
    is_zero = (sparse.real == 0) & (sparse.imag == 0)
    assert (is_zero.sum(0) == 3).all()
    assert same(sparse, dense.masked_fill(is_zero, 0.0))
    real = torch.empty(12, 40)
    fastinit.init_([real], fastinit.Sparse(0.25, 2.0), names=["w"], seed=4)
    assert torch.equal(is_zero, real == 0), "the keys are those of a real matrix"


def test_what_has_no_complex_values_is_refused_by_name() -> None:
    tensor = torch.ones(4, 4, dtype=torch.complex64)
    for scheme in (fastinit.TruncNormal(), "lecun_normal", "time_step"):
        with pytest.raises(TypeError, match=r"^w: .*no meaning in torch\.complex64"):
            fastinit.init_([tensor], scheme, names=["w"], seed=0)
    with pytest.raises(ValueError, match=r"^w: .*conjugated view; resolve it first"):
        fastinit.init_([tensor.conj()], "normal", names=["w"], seed=0)
    with pytest.raises(ValueError, match=r"^w: backend='native' cannot fill it: .*Orthogonal in torch\.complex64"):
        fastinit.init_([tensor], "orthogonal", names=["w"], seed=0, backend="native")
    assert (tensor == 1).all()


# ---- nothing else enters ----


class Net(nn.Module):
    """Fused blocks, a padding row, a stack, patterns, and a real parameter between complex ones."""

    def __init__(self, dtype: torch.dtype = torch.complex64) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6, padding_idx=4, dtype=dtype)
        self.gates = nn.Linear(6, 12, dtype=dtype)
        self.real = nn.Linear(5, 3)
        self.mixed = nn.Parameter(torch.empty(12, 7, dtype=dtype))
        self.experts = nn.Parameter(torch.empty(4, 6, 5, dtype=dtype))
        self.pruned = nn.Parameter(torch.empty(9, 8, dtype=dtype))
        self.shift = nn.Parameter(torch.empty(8, dtype=dtype))


RULES = [
    Rule("gates.weight", "xavier_uniform", split=3),
    Rule("mixed", ("eye", fastinit.Constant(0.5), "normal"), split=(3, 4, 5)),
    Rule("pruned", fastinit.Sparse(0.3)),
    Rule("shift", fastinit.Uniform(-1.0, 2.0)),
]


def plan_for(model: nn.Module, seed: int = 5) -> fastinit.Plan:
    return fastinit.plan(model, "kaiming_normal", RULES, seed=seed, backend="native")


def dense(dtype: torch.dtype = torch.complex64) -> nn.Module:
    model = Net(dtype)
    plan_for(model).run_()
    return model


@by_dtype
def test_blocks_are_filled_in_their_own_indices(dtype: torch.dtype) -> None:
    model: Any = dense(dtype)
    with torch.no_grad():
        assert same(model.mixed[:3], torch.eye(3, 7, dtype=dtype))
        assert same(model.mixed[3:7], torch.full((4, 7), 0.5, dtype=dtype))
        whole = fill(torch.empty(12, 7, dtype=dtype), Normal(0.0, 1.0), 5, "mixed")
        assert same(model.mixed[7:], whole[7:])
        assert (model.table.weight[4] == 0).all() and (model.table.weight[5:] != 0).all()


@by_dtype
def test_threads_and_layouts_do_not_matter(all_threads: None, dtype: torch.dtype) -> None:
    torch.set_num_threads(1)
    wanted = fill(torch.empty(300, 70, 11, dtype=dtype), Normal(0.1, 0.3), 8)
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        assert same(fill(torch.empty(300, 70, 11, dtype=dtype), Normal(0.1, 0.3), 8), wanted)
    for order in itertools.permutations(range(3)):
        strided = torch.empty([wanted.shape[dim] for dim in order], dtype=dtype).permute(
            [order.index(dim) for dim in range(3)]
        )
        assert same(fill(strided, Normal(0.1, 0.3), 8), wanted)
    around = torch.full((301, 140, 13), 7j, dtype=dtype)
    assert same(fill(around[1:, ::2, 1:-1], Normal(0.1, 0.3), 8), wanted)
    assert (around[:, 1::2] == 7j).all() and (around[0] == 7j).all() and (around[..., 0] == 7j).all()


@pytest.mark.parametrize("ranks", [2, 3, 1024])
def test_simulated_shards_are_slices(ranks: int) -> None:
    class Rows(nn.Parameter):
        rank = 0

    def held(tensor: Any) -> Held:
        return Held(torch.Size((ranks * 3, 5)), [Piece((3 * tensor.rank, 0), tensor.detach())])

    forget = fastinit.register_shards(Rows, held)
    try:
        for scheme in ("normal", "eye", "ones", fastinit.Sparse(0.5)):
            whole = torch.empty(ranks * 3, 5, dtype=torch.complex64)
            fastinit.init_([whole], scheme, names=["w"], seed=2, backend="native")
            for rank in {0, 1, ranks // 2, ranks - 1}:
                local: Any = Rows(torch.empty(3, 5, dtype=torch.complex64))
                local.rank = rank
                fastinit.init_([local], scheme, names=["w"], seed=2, backend="native")
                assert same(local, whole[3 * rank : 3 * rank + 3]), (scheme, rank)
    finally:
        forget()


def _check_dtensors(ranks: int) -> None:
    mesh = init_device_mesh("cpu", (ranks,))
    for dtype, dim in itertools.product(DTYPES, (0, 1)):
        wanted = dict(dense(dtype).named_parameters())
        model = Net(dtype)
        for name, parameter in list(model.named_parameters()):
            holder, _, own_name = name.rpartition(".")
            places = [Shard(dim) if parameter.dim() > dim else Replicate()]
            numbers = parameter.detach()
            numbers = torch.view_as_real(numbers) if numbers.is_complex() else numbers
            spread: Any = distribute_tensor(numbers, mesh, places)
            if parameter.is_complex():
                local = torch.view_as_complex(spread.to_local())
                spread = DTensor.from_local(local, mesh, places, shape=parameter.shape, stride=parameter.stride())
            setattr(model.get_submodule(holder), own_name, nn.Parameter(spread))
        plan = plan_for(model)
        plan.run_()
        assert fastinit.verify(model, plan) == ()
        for name, parameter in model.named_parameters():
            placements: Any = parameter.placements  # type: ignore[attr-defined]
            numbered = torch.arange(parameter.numel()).view(parameter.shape)
            values = wanted[name].detach().flatten()[distribute_tensor(numbered, mesh, placements).to_local()]
            if parameter.is_complex():
                assert same(parameter.to_local(), values), (name, dtype, dim)
            else:
                assert torch.equal(parameter.to_local(), values)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2])
def test_dtensors_of_real_processes(ranks: int) -> None:
    worlds.run(ranks, _check_dtensors, ranks)


# ---- every way in ----


def test_a_plan_runs_verifies_and_blends() -> None:
    model: Any = dense()
    plan = plan_for(model)
    assert fastinit.verify(model, plan) == ()
    prints = fastinit.fingerprint(model)
    with torch.no_grad():
        model.gates.weight[3, 2].imag.neg_()
    assert fastinit.verify(model, plan) == ("gates.weight",) and fastinit.fingerprint(model) != prints
    plan.run_()
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    plan.blend_(keep=0.5, scale=0.25, seed=6)
    other = Net()
    plan_for(other, 6).run_()
    for (name, given), drawn in zip(model.named_parameters(), other.parameters(), strict=True):
        w, x = (
            torch.view_as_real(each.detach()) if each.is_complex() else each.detach() for each in (before[name], drawn)
        )
        found = torch.view_as_real(given.detach()) if given.is_complex() else given.detach()
        assert torch.equal(found, w * 0.5 + x * 0.25), name


def test_some_elements_alone_are_written() -> None:
    model: Any = Net()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(3.0)
    mask = torch.zeros(12, 6, dtype=torch.bool)
    mask[2, 1:4] = True
    plan_for(model).run_(where={"gates.weight": mask})
    wanted: Any = dense()
    assert same(model.gates.weight, torch.where(mask, wanted.gates.weight, 3.0 + 0j))
    assert (model.mixed == 3).all()


def test_devices_without_a_kernel_have_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = dense()
    targets = plan_module.targets_of
    xpu = torch.device("xpu", 0)
    monkeypatch.setattr(
        plan_module, "targets_of", lambda *given: [each._replace(device=xpu) for each in targets(*given)]
    )
    engine._warn_once.cache_clear()
    model = Net()
    plan = fastinit.plan(model, "kaiming_normal", [*RULES[:2], RULES[3]], seed=5)
    with pytest.warns(fastinit.StagedWarning):
        plan.filter(lambda row: row.name != "pruned").run_()
    engine._warn_once.cache_clear()
    for (name, given), expected in zip(model.named_parameters(), wanted.parameters(), strict=True):
        if given.is_complex() and name != "pruned":
            assert same(given, expected), name


def test_captured_code_is_filled_from_streams() -> None:
    def make() -> nn.Module:
        model = nn.ParameterDict()
        model["drawn"] = nn.Parameter(torch.randn(4, 5, dtype=torch.complex64))
        model["filled"] = nn.Parameter(nn.init.xavier_uniform_(torch.empty(4, 5, dtype=torch.complex128)))
        model["moved"] = nn.Parameter(torch.empty(6, dtype=torch.complex64).normal_().mul_(2.0).add_(1.0))
        return model

    with fastinit.fused(seed=1):
        eager: Any = make()
    with fastinit.deferred():
        later: Any = make()
    fastinit.materialize_(later, "own", device="cpu", seed=1)
    for name, parameter in eager.items():
        assert same(parameter, later[name]), name
    wanted = torch.empty(4, 5, dtype=torch.complex64)
    fastinit.init_([wanted], "normal", names=["drawn"], seed=1)
    assert same(eager["drawn"], wanted)
    # A number that is added goes to the real part alone.
    moved = eager["moved"].detach()
    unmoved = fill(torch.empty(6, dtype=torch.complex64), Normal(0.0, 1.0), 1, "moved")
    assert same(moved, unmoved * 2.0 + 1.0)


class Turned(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * 1j

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * -1j


def test_parametrised_weights_are_set() -> None:
    model, plain = nn.Linear(5, 4, dtype=torch.complex64), nn.Linear(5, 4, dtype=torch.complex64)
    nn.utils.parametrize.register_parametrization(model, "weight", Turned())
    for each in (model, plain):
        fastinit.init_model_(each, "xavier_normal", seed=3)
    assert torch.equal(model.weight, plain.weight)
    assert not torch.equal(model.parametrizations.weight.original, plain.weight)  # type: ignore[union-attr]


def test_a_report_tells_the_moments_of_the_parts() -> None:
    model = nn.Sequential(nn.Linear(60, 80, dtype=torch.complex64), nn.Linear(80, 60, dtype=torch.complex64))
    rules = [("1.bias", "ones"), ("0.bias", fastinit.Uniform(0.0, 1.0))]
    plan = fastinit.plan(model, "xavier_normal", rules, seed=0)
    plan.run_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fastinit.report(model, plan, singular_values=True)
    rows = {row.name: row for row in found.rows}
    assert not any(row.flags for row in found.rows)
    assert rows["0.weight"].wanted_std == pytest.approx(math.sqrt(2.0 / 140 / 2.0))
    assert rows["0.weight"].held.std == pytest.approx(math.sqrt(2.0 / 140 / 2.0), rel=0.05)
    assert rows["0.weight"].gain == pytest.approx(math.sqrt(2.0 * 60 / 140), rel=0.05)
    assert (rows["1.bias"].wanted_mean, rows["1.bias"].wanted_std) == (0.5, 0.5)
    largest = torch.linalg.matrix_norm(model[0].weight.detach(), 2).item()  # type: ignore[arg-type]
    assert rows["0.weight"].largest == pytest.approx(largest, rel=1e-5)


def test_locations_count_both_parts() -> None:
    parts = Diagonal(2.0, 3, 65, 9, 640).of_parts()
    assert parts == (Diagonal(2.0, 6, 130, 9, 1280), Constant(0.0))
