"""report: the statistics are right, what is off is flagged and nothing else, and nothing is written or drawn."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
import torch
import worlds
from conftest import needs_native
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import fastinit
from fastinit.audit.flags import ADVICE
from fastinit.audit.report_table import Report
from fastinit.audit.statistics import NOTHING, Statistics, equal_rows, spectrum, statistics

# ---- statistics ----


def expected(tensor: torch.Tensor) -> Statistics:
    values = tensor.double().numpy().ravel()
    finite = values[np.isfinite(values)]
    return Statistics(
        values.size,
        values.size - finite.size,
        int((values == 0).sum()),
        float(finite.mean()),
        float(finite.var() * finite.size),
        float(finite.min()),
        float(finite.max()),
    )


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool]
)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (300_001,), (600, 1000), (3, 5, 7, 11)])
def test_statistics_are_numpys(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3 + 2).to(dtype)
    if tensor.dim() > 1:
        tensor[0] = 0
    # The native code sums float32 and bfloat16 in float32, a thousand at a time.
    close = 2e-6 if dtype in (torch.float32, torch.bfloat16) else 1e-12
    for given in (tensor, tensor.T if tensor.dim() == 2 else tensor):
        assert statistics(given) == pytest.approx(expected(given), rel=close)


def test_statistics_leave_out_what_is_not_finite() -> None:
    tensor = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert statistics(tensor) == pytest.approx(expected(tensor), rel=2e-6, abs=1e-7)
    tensor[3], tensor[500], tensor[999] = math.inf, math.nan, -math.inf
    assert statistics(tensor) == pytest.approx(expected(tensor), rel=1e-12)
    nothing = statistics(torch.full((3,), math.nan))
    assert nothing[:3] == (3, 3, 0) and math.isnan(nothing.mean) and math.isnan(nothing.std)
    assert statistics(torch.empty(0)) is NOTHING


def test_a_mean_far_from_zero_does_not_cancel() -> None:
    # Sums of squares in float64 would leave nothing of a variance 10^16 times smaller than the squared mean.
    tensor = torch.tensor([1e8, 1e8 + 1], dtype=torch.float64).repeat(400_000)
    assert statistics(tensor).std == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-38, 1e-25, 1e-12, 1.0, 1e12, 1e25, 1e37])
def test_squares_neither_overflow_nor_underflow(scale: float) -> None:
    tensor = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * scale
    assert statistics(tensor).std == pytest.approx(float(tensor.double().std(correction=0)), rel=2e-6)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_threads_and_the_address_change_nothing(dtype: torch.dtype) -> None:
    tensor = (torch.randn(200_003, generator=torch.Generator().manual_seed(0)) + 1).to(dtype)
    found = statistics(tensor)
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            assert statistics(tensor) == found
    finally:
        torch.set_num_threads(threads)
    moved = torch.cat([tensor[:1], tensor])[1:]  # not at the beginning of its memory
    assert statistics(moved) == found


def test_statistics_of_parts_join_to_those_of_the_whole() -> None:
    tensor = torch.randn(10_001, generator=torch.Generator().manual_seed(1))
    tensor[17] = math.nan
    total = NOTHING
    for part in tensor.split(999):
        total = total.joined(statistics(part))
    assert total == pytest.approx(statistics(tensor), rel=2e-6)


def test_equal_rows_are_counted() -> None:
    matrix = torch.randn(500, 40, generator=torch.Generator().manual_seed(0))
    assert equal_rows(matrix) == 0
    matrix[7] = matrix[300] = matrix[12]
    matrix[20:25] = 0.0
    assert equal_rows(matrix) == 2
    matrix[300, 1] += 1.0  # an element by which rows are not sampled
    assert equal_rows(matrix) == 1
    assert equal_rows(torch.ones(9, 2)) == 0  # too short to tell


def test_the_spectrum_is_that_of_the_svd() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((30, 20), (20, 30), (1, 8), (3, 12, 9)):
        matrix = torch.randn(shape, generator=generator)
        values = torch.linalg.svdvals(matrix.double())
        found = spectrum(matrix)
        assert found.largest == pytest.approx(float(values.max()), rel=1e-9)
        assert found.smallest == pytest.approx(float(values.min()), rel=1e-6)
    orthogonal = fastinit.orthogonal_(torch.empty(40, 25), gain=3.0)
    assert spectrum(orthogonal).orthogonality < 1e-5
    one_stretched = orthogonal @ torch.diag(torch.tensor([2.0] + [1.0] * 24))
    # One of 25 squared singular values is four times the others: 4 / (28 / 25) - 1.
    assert spectrum(one_stretched).orthogonality == pytest.approx(100.0 / 28.0 - 1.0, rel=1e-4)


# ---- flags ----


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32, padding_idx=0)
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(5))
        self.conv = nn.Conv2d(8, 16, 3, groups=2)
        self.up = nn.ConvTranspose1d(8, 5, 4)
        self.lstm = nn.LSTM(16, 8)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 50, bias=False)
        self.head.weight = self.embedding.weight
        self.narrow = nn.utils.parametrizations.weight_norm(nn.Linear(32, 16, dtype=torch.bfloat16))


def planned(scheme: str = "kaiming_normal") -> tuple[Net, fastinit.Plan]:
    model = Net()
    plan = fastinit.plan(model, scheme, fan="module", seed=3)
    plan.run_()
    return model, plan


def flags(found: Report) -> dict[str, tuple[str, ...]]:
    return {row.name: tuple(flag for flag, _ in row.flags) for row in found.flagged}


@pytest.mark.parametrize("scheme", ["kaiming_normal", "xavier_uniform", "orthogonal", "trunc_normal_sigma", "patterns"])
def test_nothing_is_off_after_a_run(scheme: str) -> None:
    model = Net()
    truncated = fastinit.TruncNormal(std=0.05, bounds=(-2, 2), unit="sigma")
    given = {"trunc_normal_sigma": truncated, "patterns": "kaiming_uniform"}.get(scheme, scheme)
    patterns = [
        ("layers.[0-2].weight", "eye"),
        ("layers.3.weight", fastinit.Sparse(0.5, 0.1)),
        ("conv.weight", "dirac"),
    ]
    rules = patterns if scheme == "patterns" else []
    plan = fastinit.plan(model, given, rules, fan="module", seed=1)
    plan.run_()
    assert flags(fastinit.report(model, plan)) == {}
    assert flags(fastinit.report(model)) == {}


def test_what_is_off_is_flagged() -> None:
    model, plan = planned()
    weights = [layer.weight for layer in model.layers]
    with torch.no_grad():
        weights[0].fill_(0.1)
        weights[1].zero_()
        weights[2][5] = weights[2][9]
        weights[3].mul_(2.0)
        weights[4][1, 1] = math.nan
        model.conv.weight.fill_(1e30)
        model.up.weight[:, 2] = model.up.weight[:, 4]  # its outputs are dimension 1
        model.norm.weight.add_(0.1)
    assert flags(fastinit.report(model, plan)) == {
        "layers.0.weight": ("all equal",),
        "layers.1.weight": ("never initialised",),
        "layers.2.weight": ("equal rows",),
        "layers.3.weight": ("off the plan",),
        "layers.4.weight": ("not finite",),
        "conv.weight": ("never initialised",),
        "up.weight": ("equal rows",),
        "norm.weight": ("off the plan",),
    }
    # Without a plan, nobody knows what a norm's weight should be.
    alone = flags(fastinit.report(model))
    assert alone["layers.1.weight"] == ("no signal",)
    assert "norm.weight" not in alone and "layers.3.weight" not in alone


@pytest.mark.parametrize(("std", "flag"), [(1.0, "explodes"), (1e-4, "shrinks")])
def test_a_gain_far_from_one_is_flagged_even_if_it_was_planned(std: float, flag: str) -> None:
    model = nn.Sequential(nn.Linear(256, 256), nn.Embedding(9, 256))
    plan = fastinit.plan(model, fastinit.Normal(std=std), seed=0)
    plan.run_()
    found = fastinit.report(model, plan)
    assert flags(found) == {"0.weight": (flag,)}
    assert found["0.weight"].gain == pytest.approx(16.0 * std, rel=0.02)


def test_meta_is_flagged() -> None:
    with torch.device("meta"):
        model = nn.Linear(3, 2)
    assert set(flags(fastinit.report(model)).values()) == {("no memory",)}


def test_fans_and_gains_are_those_of_the_module() -> None:
    model, plan = planned()
    found = fastinit.report(model, plan, singular_values=True)
    assert found["conv.weight"].fans == (4 * 9, 8 * 9)
    assert found["embedding.weight"].gain is None
    row = found["layers.0.weight"]
    assert row.gain == pytest.approx(float(model.layers[0].weight.detach().std(correction=0)) * math.sqrt(32.0))
    values = torch.linalg.svdvals(model.layers[0].weight.detach())
    assert (row.largest, row.smallest) == pytest.approx((float(values[0]), float(values[-1])), rel=1e-4)
    assert row.wanted_std == plan.rows[[each.name for each in plan.rows].index(row.name)].distribution.std()
    # A tied parameter has one row; a computed weight its own, and its originals theirs.
    names = [each.name for each in found.rows]
    assert len(set(names)) == len(names) and "head.weight" not in names
    assert {"narrow.weight", "narrow.weight.0", "narrow.weight.1"} < set(names)


def test_nothing_is_written_and_nothing_drawn() -> None:
    model, plan = planned()
    before, state = fastinit.fingerprint(model), torch.get_rng_state()
    versions = [parameter._version for parameter in model.parameters()]
    fastinit.report(model, plan, singular_values=True)
    assert fastinit.fingerprint(model) == before and torch.equal(torch.get_rng_state(), state)
    assert [parameter._version for parameter in model.parameters()] == versions


# ---- how it is shown ----


def test_the_table_folds_equal_layers_and_says_what_to_do() -> None:
    model, plan = planned()
    lines = str(fastinit.report(model, plan)).split("\n")
    assert sum(line.startswith("layers.{0..4}.weight") for line in lines) == 1
    assert lines[-1].endswith("nothing is off")
    with torch.no_grad():
        for at in (1, 2):
            model.layers[at].weight.mul_(3.0)
    found = fastinit.report(model, plan)
    lines = str(found).split("\n")
    assert any(line.startswith("layers.{1,2}.weight") and line.endswith("off the plan") for line in lines)
    assert lines[-1].startswith("layers.{1,2}.weight: std ") and lines[-1].endswith(f"{ADVICE['off the plan']}.")
    assert len(found.advice()) == 1


def test_json_numpy_and_html() -> None:
    model, plan = planned()
    with torch.no_grad():
        model.conv.weight[0, 0, 0, 0] = math.nan
    found = fastinit.report(model, plan)
    records = json.loads(found.to_json())
    assert [each["name"] for each in records] == [row.name for row in found.rows]
    assert next(each for each in records if each["name"] == "conv.weight")["flags"] == ["not finite"]
    array = found.to_numpy()
    assert array["std"][array["name"] == "layers.0.weight"] == found["layers.0.weight"].held.std
    assert np.isnan(array["gain"][array["name"] == "norm.weight"])
    assert array["wanted_std"].dtype == np.float64 and len(array) == len(records)
    text = found._repr_html_()
    assert text.count("<tr") == len(found._table()) and "color:#e53935" in text and "conv.weight" in text
    with pytest.raises(KeyError):
        found["nowhere"]


def test_rich_shows_the_table() -> None:
    console = pytest.importorskip("rich.console").Console(width=300, record=True, file=io.StringIO())
    model, plan = planned()
    found = fastinit.report(model, plan)
    console.print(found)
    text = console.export_text()
    assert "layers.{0..4}.weight" in text and "nothing is off" in text and "too narrow" not in text


def test_a_narrow_console_leaves_columns_out_and_names_them() -> None:
    console = pytest.importorskip("rich.console").Console(width=60, record=True, file=io.StringIO())
    model, plan = planned()
    console.print(fastinit.report(model, plan))
    text = console.export_text()
    assert "layers.{0..4}.weight" in text and "(too narrow for dtype, wanted, " in text and "…" not in text
    assert max(map(len, text.splitlines())) <= 60


def test_wrong_arguments() -> None:
    model, plan = planned()
    with pytest.raises(TypeError, match="model: expected"):
        fastinit.report(torch.empty(3))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="plan: expected"):
        fastinit.report(model, "xavier_uniform")  # type: ignore[arg-type]
    model.layers[0] = nn.Linear(32, 31)
    with pytest.raises(fastinit.ParameterError, match=r"layers\.0\.weight: planned as \(32, 32\)"):
        fastinit.report(model, plan)


# ---- over ranks ----


def _of_shards() -> None:
    mesh = init_device_mesh("cpu", (2, 2))
    whole = torch.randn(30, 16, generator=torch.Generator().manual_seed(0))
    whole[5] = whole[4]
    model = nn.Linear(16, 30)
    expected = fastinit.report(nn.Linear(16, 30))["bias"].held.numel
    model.weight = nn.Parameter(distribute_tensor(whole, mesh, [Replicate(), Shard(0)]))
    found = fastinit.report(model, singular_values=True)
    assert found["weight"].held == pytest.approx(statistics(whole), rel=2e-6)
    assert found["bias"].held.numel == expected
    assert flags(found) == {"weight": ("equal rows",)}
    assert found["weight"].largest == pytest.approx(spectrum(whole).largest)
    # What `normal_` gives on every rank of a CPU mesh: the same numbers.
    same = torch.randn(15, 16, generator=torch.Generator().manual_seed(0))
    model.weight = nn.Parameter(DTensor.from_local(same, mesh, [Replicate(), Shard(0)]))
    assert flags(fastinit.report(model)) == {"weight": ("equal shards",)}


@needs_native
@pytest.mark.slow
def test_shards_are_joined_over_their_ranks() -> None:
    worlds.run(4, _of_shards)
    worlds.close_all()
