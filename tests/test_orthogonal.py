"""Haar matrices from random reflectors: against their product written out, in statistics, in parts, and in memory."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import reference
import torch
from conftest import DTYPES, needs_native, needs_peaks
from numpy.typing import NDArray
from peaks import PEAKS
from scipy import stats
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastinit
from fastinit.run import engine, matrix_table, orthogonal
from fastinit.run.engine import NativeSource, Program
from fastinit.run.index_maps import BoxIndices
from fastinit.run.orthogonal import Matrix
from fastinit.run.targets import Target
from fastinit.schemes import distributions
from fastinit.schemes.distributions import Blocks, Orthogonal

pytestmark = needs_native

SEED = 5
SHAPES = [(1, 1), (6, 6), (33, 33), (20, 5), (5, 20), (1, 7), (7, 1), (150, 140), (140, 150)]
F64 = NDArray[np.float64]


def product_of_reflectors(
    name: str, rows: int, columns: int, sampled: str, gain: float = 1.0, index: NDArray[np.int64] | None = None
) -> torch.Tensor:
    """docs/STREAM.md, section 7, one reflector after the other, in float64; `index`: the elements', else 0, 1, ..."""
    index = np.arange(rows * columns) if index is None else index
    normals = reference.sample("normal", (0.0, 1.0), sampled, SEED, name, index)  # type: ignore[arg-type]
    z: F64 = normals.astype(np.float64).reshape(rows, columns)
    z = z.T if rows < columns else z
    m, n = z.shape
    q, signs = np.eye(m), np.empty(n)
    for j in range(n):
        x = z[j:, j].copy()
        signs[j] = 1.0 if x[0] < 0.0 else -1.0
        x[0] -= signs[j] * np.linalg.norm(x)
        q[:, j:] -= np.outer(q[:, j:] @ x, 2.0 * x / (x @ x))
    q = gain * q[:, :n] * signs
    return torch.from_numpy(np.ascontiguousarray(q.T if rows < columns else q))


@pytest.fixture(params=["small", "products"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small matrices by the native code, or like large ones by products of whole matrices.

    "grouped": by products, with panels in groups as on a GPU.
    """
    if request.param != "small":
        monkeypatch.setattr(matrix_table, "is_small", lambda matrix: False)
    if request.param == "grouped":
        monkeypatch.setattr(orthogonal, "makes_groups", lambda device: True)
    return str(request.param)


in_every_way = pytest.mark.parametrize("way", ["small", "products", "grouped"], indirect=True)
by_products = pytest.mark.parametrize("way", ["products"], indirect=True)
in_groups = pytest.mark.parametrize("way", ["grouped"], indirect=True)


def matrix(shape: tuple[int, int], name: str = "w", dtype: torch.dtype = torch.float32, gain: float = 1.0) -> Matrix:
    tensor = torch.full(shape, torch.nan, dtype=dtype)
    return Matrix(name, tensor, shape, BoxIndices(0, (shape[1], 1)), gain)


def filled(shape: tuple[int, ...], scheme: fastinit.Scheme | str = "orthogonal", **options: object) -> torch.Tensor:
    tensor = torch.full(shape, torch.nan, **options)  # type: ignore[call-overload]
    fastinit.init_([tensor], scheme, names=["w"], seed=SEED)
    assert isinstance(tensor, torch.Tensor)
    return tensor


@in_every_way
@pytest.mark.parametrize(("panel", "strip"), [(3, 1), (7, 2), (32, 64), (192, 64)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matrices_are_the_product_of_their_reflectors(
    shape: tuple[int, int], panel: int, strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orthogonal, "PANEL", panel)
    monkeypatch.setattr(orthogonal, "STRIP", strip)
    for dtype, sampled, tolerance in ((torch.float64, "float64", 1e-12), (torch.float32, "float32", 4e-6)):
        wanted = product_of_reflectors("w", *shape, sampled, 1.5)
        found = filled(shape, fastinit.Orthogonal(1.5), dtype=dtype)
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (40, 2, 3), (7, 3, 1, 1, 2)], ids=str)
def test_kernels_are_dimension_0_against_the_rest(shape: tuple[int, ...]) -> None:
    wanted = product_of_reflectors("w", shape[0], math.prod(shape[1:]), "float32")
    torch.testing.assert_close(filled(shape).double().flatten(1), wanted, rtol=0, atol=2e-6)


def test_delta_orthogonal_kernels_are_orthogonal_at_their_middle() -> None:
    found = filled((6, 4, 4, 3), fastinit.DeltaOrthogonal(gain=2.0))
    index = np.arange(6 * 4 * 4 * 3).reshape(6, 4, 4, 3)[:, :, 1, 1].ravel()
    wanted = torch.zeros(6, 4, 4, 3, dtype=torch.float64)
    wanted[:, :, 1, 1] = product_of_reflectors("w", 6, 4, "float32", 2.0, index)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-6)


@in_every_way
@pytest.mark.parametrize("workspace", [0, 2**14, 2**25])
def test_matrices_of_one_shape_are_computed_together_as_alone(workspace: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orthogonal, "WORKSPACE_BYTES", workspace)
    tensors = [torch.empty(40, 24) for _ in range(5)] + [torch.empty(24, 40) for _ in range(3)]
    fastinit.init_(tensors, "orthogonal", seed=SEED)
    for position, tensor in enumerate(tensors):
        wanted = product_of_reflectors(str(position), *tensor.shape, "float32")
        torch.testing.assert_close(tensor.double(), wanted, rtol=0, atol=3e-6)


@in_every_way
@pytest.mark.parametrize("shape", [(4, 4), (64, 64), (100, 60), (60, 100), (256, 256), (300, 256)], ids=str)
def test_the_other_matrices_change_not_a_bit(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orthogonal, "WORKSPACE_BYTES", 2**28)
    alone = filled(shape)
    for others in (1, 2, 12):
        tensors = [torch.empty(shape) for _ in range(1 + others)]
        names = ["w", *map(str, range(others))]
        fastinit.init_(tensors, "orthogonal", names=names, seed=SEED)
        assert torch.equal(tensors[0], alone)


def test_calls_do_not_grow_with_the_number_of_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    fill_all = NativeSource.fill_all

    def counted(self: NativeSource, targets: Sequence[Target]) -> None:
        nonlocal calls
        calls += 1
        fill_all(self, targets)

    monkeypatch.setattr(NativeSource, "fill_all", counted)
    counts = []
    for layers in (1, 20):
        calls = 0
        fastinit.init_model_(nn.Sequential(*(nn.Linear(64, 1100) for _ in range(layers))), "orthogonal", seed=0)
        counts.append(calls)
    assert counts == [1, 1]  # a panel


def ranged(whole: Matrix, rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None) -> torch.Tensor:
    """Nothing but these rows and columns."""
    sizes = [
        size if given is None else given[1] - given[0] for size, given in zip(whole.shape, (rows, columns), strict=True)
    ]
    tensor = torch.full(sizes, torch.nan, dtype=whole.tensor.dtype)
    orthogonal.fill([whole._replace(tensor=tensor, rows=rows, columns=columns)], NativeSource(SEED))
    return tensor


@in_every_way
@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (260, 260)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_ranges_of_rows_and_columns_are_those_of_the_whole(shape: tuple[int, int], dtype: torch.dtype) -> None:
    whole = filled(shape, fastinit.Orthogonal(0.5), dtype=dtype)
    of = matrix(shape, "w", dtype, 0.5)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    row_ranges = [(0, shape[0]), (0, 1), (7, 7), (50, 131), (shape[0] - 3, shape[0])]
    column_ranges = [(0, shape[1]), (0, 1), (7, 7), (50, 131), (shape[1] - 3, shape[1])]
    for rows in row_ranges:
        torch.testing.assert_close(ranged(of, rows), whole[slice(*rows)], rtol=0, atol=tolerance)
    for columns in column_ranges:
        torch.testing.assert_close(ranged(of, None, columns), whole[:, slice(*columns)], rtol=0, atol=tolerance)
    for rows, columns in zip(row_ranges, column_ranges[::-1], strict=True):
        expected = whole[slice(*rows), slice(*columns)]
        torch.testing.assert_close(ranged(of, rows, columns), expected, rtol=0, atol=tolerance)


def test_ranges_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="rows: expected an interval within 0 and 6, got 3 to 7"):
        ranged(matrix((6, 4)), (3, 7))
    with pytest.raises(ValueError, match="columns: expected an interval within 0 and 4, got -1 to 2"):
        ranged(matrix((6, 4)), None, (-1, 2))


@in_every_way
@pytest.mark.parametrize("shape", [(256, 256), (1024, 1024), (1024, 256), (256, 1024)], ids=str)
def test_they_are_as_orthogonal_as_torchs(shape: tuple[int, int]) -> None:
    def error(q: torch.Tensor) -> float:
        q = q.double()
        small = q @ q.mT if shape[0] < shape[1] else q.mT @ q
        return (small - torch.eye(min(shape), dtype=torch.float64)).abs().max().item()

    torch.manual_seed(0)
    assert error(filled(shape)) <= 4.0 * error(nn.init.orthogonal_(torch.empty(shape)))


def test_a_hundred_linear_layers_preserve_the_norm() -> None:
    model = nn.Sequential(*(nn.Linear(128, 128) for _ in range(100)))
    fastinit.init_model_(model, "orthogonal", seed=0)
    x = torch.randn(16, 128, generator=torch.Generator().manual_seed(0))
    ratio = model(x).detach().norm(dim=1) / x.norm(dim=1)
    assert (ratio - 1.0).abs().max() < 1e-4


class Zeros:
    """A source whose normals are all zero, as a single one may be."""

    def fill_all(self, targets: Sequence[Target]) -> None:
        for target in targets:
            target.tensor.zero_()


@in_every_way
@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (8, 5), (5, 8), (400, 400)], ids=str)
def test_zeros_leave_no_reflector_without_direction(shape: tuple[int, int]) -> None:
    for batch in (1, 3):
        matrices = [matrix(shape, dtype=torch.float32) for _ in range(batch)]
        orthogonal.fill(matrices, Zeros())
        for each in matrices:
            assert torch.equal(each.tensor, torch.eye(*shape))


# ---- Panels in groups, as on a GPU ----


class Counted(TorchDispatchMode):
    """Counts calls of torch's operators, and those among them that are more than a view."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.launches = 0, 0

    def __torch_dispatch__(
        self, func: torch._ops.OpOverload, types: object, args: tuple[object, ...] = (), kwargs: Any = None
    ) -> object:
        self.calls += 1
        self.launches += not func.is_view
        return func(*args, **(kwargs or {}))


class Tables(NativeSource):
    """Counts tables, and the most bytes of random values in one."""

    tables, most = 0, 0

    def fill_all(self, targets: Sequence[Target]) -> None:
        self.tables += 1
        self.most = max(self.most, sum(target.tensor.nbytes for target in targets))
        super().fill_all(targets)


def plain_and_grouped(matrices: Sequence[Matrix], monkeypatch: pytest.MonkeyPatch) -> Tables:
    """Fill matrices in groups, and compare them with those made panel by panel."""
    source = Tables(SEED)
    wanted = [each._replace(tensor=torch.full_like(each.tensor, torch.nan)) for each in matrices]
    orthogonal.fill(matrices, source)
    with monkeypatch.context() as patch:
        patch.setattr(orthogonal, "makes_groups", lambda device: False)
        orthogonal.fill(wanted, NativeSource(SEED))
    for found, plain in zip(matrices, wanted, strict=True):
        tolerance = 1e-6 if found.tensor.dtype == torch.float32 else 1e-14
        torch.testing.assert_close(found.tensor, plain.tensor, rtol=0, atol=tolerance)
    return source


@in_groups
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("workspace", [0, 2**17, 2**22])  # a panel in a group, several, all
@pytest.mark.parametrize("shape", [(96, 96), (100, 100), (200, 72), (72, 200), (90, 85)], ids=str)
def test_panels_in_groups_are_those_one_by_one(
    shape: tuple[int, int], workspace: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orthogonal, "WORKSPACE_BYTES", workspace)
    monkeypatch.setattr(orthogonal, "LEAST", 32)  # reflectors in a panel
    matrices = [matrix(shape, name, dtype, gain) for name, gain in (("a", 1.0), ("b", 0.5), ("c", 2.0))]
    plain_and_grouped(matrices, monkeypatch)
    for columns in ((20, 45), (32, 64), (shape[1] - 3, shape[1])):
        box = torch.full((shape[0], columns[1] - columns[0]), torch.nan, dtype=dtype)
        plain_and_grouped([matrices[0]._replace(tensor=box, columns=columns)], monkeypatch)
    turned = torch.full(shape[::-1], torch.nan, dtype=dtype).mT  # values along columns, and a tensor along columns
    plain_and_grouped(
        [matrices[0]._replace(indices=BoxIndices(3, (1, shape[0]))), matrices[0]._replace(tensor=turned)], monkeypatch
    )


@in_groups
@pytest.mark.parametrize(
    ("order", "count", "workspace", "tables"),
    [
        (320, 1, 2**25, 1),
        (320, 4, 2**25, 1),
        (320, 4, 2**22, 2),  # two matrices at a time
        (330, 1, 2**25, 2),  # five panels, and one of 10
        (320, 1, 2**20, 2),  # four panels, and the first one
        (320, 3, 2**20, 6),  # one matrix at a time
        (320, 1, 0, 5),
    ],
)
def test_groups_are_as_large_as_the_workspace(
    order: int, count: int, workspace: int, tables: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orthogonal, "WORKSPACE_BYTES", workspace)
    matrices = [matrix((order, order), str(position)) for position in range(count)]
    source = plain_and_grouped(matrices, monkeypatch)
    assert source.tables == tables
    assert 2 * source.most <= workspace or workspace == 0  # beside V there is V T


class Nothing:
    """A source that leaves memory as it is."""

    def fill_all(self, targets: Sequence[Target]) -> None: ...


@by_products
def test_groups_take_few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most an eighth of the calls, counted without memory: 301 of 2673. Without views: 97 of 914."""
    monkeypatch.setattr(orthogonal, "WORKSPACE_BYTES", 2**28)
    of = matrix((1, 1))._replace(tensor=torch.empty(4096, 4096, device="meta"), shape=(4096, 4096))
    counts = []
    for grouped in (False, True):
        monkeypatch.setattr(orthogonal, "makes_groups", lambda device, grouped=grouped: grouped)
        with Counted() as counted:
            orthogonal.fill([of], Nothing())
        counts.append(counted)
    panels, groups = counts
    assert groups.calls <= panels.calls / 8 and groups.launches <= panels.launches / 8


# ---- Haar: the law, not only the orthogonality. Every test rejects at a probability of 1e-6. ----

ALPHA = 1e-6
ORDER, SAMPLES = 4, 4000


@pytest.fixture(scope="module")
def haar() -> F64:
    tensors = [torch.empty(ORDER, ORDER, dtype=torch.float64) for _ in range(SAMPLES)]
    fastinit.init_(tensors, "orthogonal", seed=1)
    return torch.stack(tensors).numpy()


@pytest.fixture(scope="module")
def uncorrected() -> F64:
    """The Q of a QR factorisation as LAPACK leaves it: orthogonal, but not Haar."""
    return np.linalg.qr(np.random.default_rng(0).standard_normal((SAMPLES, ORDER, ORDER)))[0]


def first_entry(q: F64) -> float:
    """(1 + q_11) / 2 has the Beta distribution with both parameters (n - 1) / 2."""
    half = (ORDER - 1) / 2
    return float(stats.kstest((1.0 + q[:, 0, 0]) / 2.0, stats.beta(half, half).cdf).pvalue)


def every_entry(q: F64) -> float:
    """All entries have that distribution, those of every row and of every column: the least of 16, corrected."""
    half = (ORDER - 1) / 2
    flat = (1.0 + q.reshape(len(q), -1)) / 2.0
    return min(1.0, flat.shape[1] * min(stats.kstest(entry, stats.beta(half, half).cdf).pvalue for entry in flat.T))


def determinant(q: F64) -> float:
    """Rotations and reflections are equally likely."""
    return float(stats.binomtest(int((np.linalg.det(q) > 0.0).sum()), len(q)).pvalue)


def traces(q: F64) -> float:
    """E tr Q = 0, E (tr Q)^2 = 1, E tr Q^2 = 1 (Diaconis, Shahshahani 1994), by normal approximation, corrected."""
    trace, squared = np.trace(q, axis1=1, axis2=2), np.trace(q @ q, axis1=1, axis2=2)
    found = []
    for values, mean in ((trace, 0.0), (trace**2, 1.0), (squared, 1.0)):
        found.append(2.0 * stats.norm.sf(abs(values.mean() - mean) / (values.std() / math.sqrt(len(values)))))
    return min(1.0, 3.0 * min(found))


def angles(q: F64) -> float:
    """Spacings of the eigenvalues' angles, against those of scipy's Haar matrices (two-sample Kolmogorov-Smirnov)."""

    def spacings(of: F64) -> F64:
        found = np.sort(np.angle(np.linalg.eigvals(of)), axis=1)
        return np.diff(found, axis=1)[:, ORDER // 2 - 1]  # one of each matrix, so that they are independent

    theirs = stats.ortho_group.rvs(ORDER, size=SAMPLES, random_state=np.random.default_rng(3))
    return float(stats.ks_2samp(spacings(q), spacings(theirs)).pvalue)


TESTS: dict[str, Callable[[F64], float]] = {
    "first entry": first_entry,
    "every entry": every_entry,
    "determinant": determinant,
    "traces": traces,
    "angles": angles,
}


@pytest.mark.parametrize("test", TESTS.values(), ids=TESTS)
def test_the_law_is_haar(test: Callable[[F64], float], haar: F64) -> None:
    assert test(haar) > ALPHA
    assert test(haar.transpose(0, 2, 1)) > ALPHA  # so is that of the inverse
    fixed = stats.ortho_group.rvs(ORDER, random_state=np.random.default_rng(4))
    assert test(fixed @ haar) > ALPHA and test(haar @ fixed) > ALPHA  # and of any product with a fixed one


@pytest.mark.parametrize("test", TESTS.values(), ids=TESTS)
def test_a_factorisation_without_signs_is_rejected(test: Callable[[F64], float], uncorrected: F64) -> None:
    assert test(uncorrected) < ALPHA


def test_rows_and_columns_can_be_exchanged(haar: F64) -> None:
    """The joint law of two entries depends only on whether they share a row or a column."""
    statistics = [haar[:, 0, 0] * haar[:, 0, 1], haar[:, 2, 3] * haar[:, 2, 0], haar[:, 0, 1] * haar[:, 3, 1]]
    for other in statistics[1:]:
        assert stats.ks_2samp(statistics[0], other).pvalue > ALPHA


def test_wide_and_tall_matrices_have_uniform_vectors() -> None:
    for shape in ((6, 3), (3, 6)):
        tensors = [torch.empty(shape, dtype=torch.float64) for _ in range(2000)]
        fastinit.init_(tensors, "orthogonal", seed=2)
        entries = torch.stack(tensors).numpy().reshape(2000, -1)
        for entry in entries.T:
            assert stats.kstest((1.0 + entry) / 2.0, stats.beta(2.5, 2.5).cdf).pvalue > ALPHA / 18


# ---- Dtypes, layouts, blocks ----


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_low_precision_is_rounded_once_from_float32(dtype: torch.dtype) -> None:
    for shape in ((50, 30), (30, 50)):
        torch.testing.assert_close(filled(shape, dtype=dtype), filled(shape).to(dtype), rtol=0, atol=1e-3)
        assert (filled(shape, dtype=dtype) == filled(shape).to(dtype)).double().mean() > 0.99


@in_every_way
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_layout_gives_the_same_matrix(dtype: torch.dtype) -> None:
    plain = filled((12, 6, 3, 3), dtype=dtype)
    layouts = [
        torch.empty(12, 6, 3, 3, dtype=dtype).to(memory_format=torch.channels_last),
        torch.empty(3, 3, 6, 12, dtype=dtype).permute(3, 2, 1, 0),
        torch.empty(24, 6, 3, 6, dtype=dtype)[::2, :, :, 1::2],
    ]
    for tensor in layouts:
        fastinit.init_([tensor], "orthogonal", names=["w"], seed=SEED)
        torch.testing.assert_close(tensor, plain, rtol=0, atol=4e-6 if dtype.itemsize >= 4 else 1e-3)
    transposed = torch.empty(8, 20).t()
    fastinit.init_([transposed], "orthogonal", names=["w"], seed=SEED)
    torch.testing.assert_close(transposed, filled((20, 8)), rtol=0, atol=2e-6)


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -2])
def test_columns_along_any_axis_as_in_jax(axis: int) -> None:
    tensor = filled((3, 3, 8, 20), fastinit.Orthogonal(2.0, column_axis=axis))
    moved = tensor.movedim(axis, -1)
    flat = moved.reshape(-1, moved.shape[-1])
    small = flat @ flat.mT if flat.shape[0] < flat.shape[1] else flat.mT @ flat
    torch.testing.assert_close(small, 4.0 * torch.eye(len(small)), rtol=0, atol=1e-5)


def test_a_column_axis_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"column_axis: expected an axis of shape \(3, 4\), got 2"):
        fastinit.init_([torch.empty(3, 4)], fastinit.Orthogonal(column_axis=2))


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_blocks_along_any_dimension_have_random_numbers_of_their_own(dim: int) -> None:
    tensor = torch.empty(8, 8, 8)
    half = Orthogonal(1.0, 4, 64) if dim == 0 else Orthogonal(1.0, 8, 32)
    target = Target("w", tensor, tensor.shape, tensor.dtype, tensor.device, Blocks(dim, (4, 4), (half, half)))
    Program([target], "native").run_(SEED, None)
    first, second = (block.flatten(1) for block in tensor.split(4, dim))
    for block in (first, second):
        torch.testing.assert_close(block @ block.mT, torch.eye(len(block)), rtol=0, atol=1e-5)
    assert (first - second).abs().min() > 0.0
    assert abs((first * second).sum()) < 3.0  # of norm 8 both, and independent


def test_gates_of_an_lstm_are_orthogonal_each() -> None:
    lstm = nn.LSTM(16, 16)
    fastinit.init_model_(lstm, "orthogonal", fan="module", seed=0)
    for gate in lstm.weight_hh_l0.detach().split(16):
        torch.testing.assert_close(gate @ gate.mT, torch.eye(16), rtol=0, atol=2e-6)


# ---- Singular values, and the identity ----

SPECTRA: dict[str, tuple[str | tuple[float, ...] | Callable[[int], list[float]], list[float]]] = {
    "flat": ("flat", [1.0] * 6),
    "linear": ("linear", [1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
    "power": ("power", [1.0, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6]),
    "given": ((3.0, 2.0, 1.0, 0.5, 0.25, 0.0), [3.0, 2.0, 1.0, 0.5, 0.25, 0.0]),
    "a function": (lambda rank: [2.0**-i for i in range(rank)], [2.0**-i for i in range(6)]),
}


@pytest.mark.parametrize("shape", [(6, 6), (10, 6), (6, 10), (6, 2, 5)], ids=str)
@pytest.mark.parametrize(("values", "wanted"), SPECTRA.values(), ids=SPECTRA)
def test_singular_values_are_those_given(
    values: str | tuple[float, ...], wanted: list[float], shape: tuple[int, ...]
) -> None:
    tensor = filled(shape, fastinit.Spectral(values, gain=1.5), dtype=torch.float64)
    found = torch.linalg.svdvals(tensor.reshape(shape[0], -1))
    torch.testing.assert_close(found, 1.5 * torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    distribution = fastinit.Spectral(values, gain=1.5).distribution(fastinit.Context(shape))
    assert distribution.std() == pytest.approx(tensor.square().mean().sqrt().item(), rel=1e-12)


def test_marchenko_pastur_values_are_those_of_a_gaussian_matrix() -> None:
    for rows, columns in ((300, 300), (200, 400), (400, 100)):
        spectrum = fastinit.Spectral("marchenko_pastur").distribution(fastinit.Context((rows, columns)))
        assert isinstance(spectrum, distributions.Spectral)
        wanted = spectrum.values
        gaussian = np.random.default_rng(0).standard_normal((rows, columns)) / math.sqrt(max(rows, columns))
        found = np.linalg.svd(gaussian, compute_uv=False)
        # The values of one matrix keep to the quantiles within a few spacings (they repel each other).
        assert np.abs(found - np.array(wanted)).max() < 0.06 and abs(found.mean() - np.mean(wanted)) < 2e-3


@pytest.mark.slow
def test_singular_vectors_are_independent_and_uniform() -> None:
    tensors = [torch.empty(4, 3, dtype=torch.float64) for _ in range(2000)]
    fastinit.init_(tensors, fastinit.Spectral((1.0, 0.0, 0.0)), seed=3)
    outer = torch.stack(tensors).numpy()  # u v^T
    left = np.linalg.norm(outer, axis=2)[:, 0] ** 2  # u_1^2 in four dimensions
    right = np.linalg.norm(outer, axis=1)[:, 0] ** 2  # v_1^2 in three
    assert stats.kstest(left, stats.beta(0.5, 1.5).cdf).pvalue > ALPHA
    assert stats.kstest(right, stats.beta(0.5, 1.0).cdf).pvalue > ALPHA
    assert abs(stats.pearsonr(left, right).statistic) < 5.0 / math.sqrt(2000)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("flatt", "did you mean 'flat'"),
        ((1.0, -1.0), r"values\[1\]: expected a finite number >= 0, got -1.0"),
        ((1.0, math.nan), r"values\[1\]: expected a finite number"),
        ((1.0, 2.0), "values: expected 3, the rank of 3 x 5, got 2"),
        (lambda rank: [1.0] * (rank + 1), "values: expected 3, the rank of 3 x 5, got 4"),
    ],
)
def test_singular_values_that_are_none_are_refused(values: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fastinit.init_([torch.empty(3, 5)], fastinit.Spectral(values))


def test_the_identity_plus_an_orthogonal_matrix() -> None:
    tensor = filled((24, 24), fastinit.IdentityPlusOrthogonal(2.0, 0.25))
    rest = (tensor - 2.0 * torch.eye(24)) / 0.25
    torch.testing.assert_close(rest @ rest.mT, torch.eye(24), rtol=0, atol=1e-5)
    distribution = fastinit.IdentityPlusOrthogonal(2.0, 0.25).distribution(fastinit.Context((24, 24)))
    assert distribution.mean() == pytest.approx(2.0 / 24)
    assert distribution.std() == pytest.approx(tensor.std(correction=0).item(), rel=0.05)
    with pytest.raises(ValueError, match="square"):
        fastinit.init_([torch.empty(3, 4)], "identity_plus_orthogonal")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_identity_plus_an_orthogonal_matrix_is_rounded_once(dtype: torch.dtype) -> None:
    scheme = fastinit.IdentityPlusOrthogonal(1.0, 0.3)
    assert torch.equal(filled((400, 400), scheme, dtype=dtype), filled((400, 400), scheme).to(dtype))


# ---- Cost ----

MEMORY = f"""{PEAKS}
import torch, fastinit
from fastinit.run.orthogonal import PANEL, WORKSPACE_BYTES

for shape in [(3072, 3072), (4096, 1024), (1024, 4096)]:
    tensor = torch.empty(shape)
    fastinit.init_([tensor], "orthogonal", seed=0)  # the libraries' own buffers
    before = forget_peak()
    fastinit.init_([tensor], "orthogonal", seed=0)
    assert peak_memory() - before <= WORKSPACE_BYTES + PANEL * max(shape) * 4, (shape, peak_memory() - before)
"""


@by_products
@pytest.mark.slow
@needs_peaks
def test_memory_beyond_a_matrix_is_that_of_the_workspace_and_a_panel() -> None:
    subprocess.run([sys.executable, "-c", MEMORY], check=True)


def test_the_native_engine_is_what_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fallback factorises: here it must not."""
    monkeypatch.setattr(torch.linalg, "qr", lambda *_: pytest.fail("factorised"))
    assert filled((9, 9)).isfinite().all() and engine.NATIVE_DEVICES
