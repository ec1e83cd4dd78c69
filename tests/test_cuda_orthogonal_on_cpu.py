"""The kernel for small orthogonal matrices without a GPU: csrc/cuda/orthogonal.cu, run on the CPU as
test_cuda_on_cpu.py does it, twice: the very file, and what nvcc makes of it. Against the product of reflectors written
out in NumPy, against fastinit/run/orthogonal.py, and against itself: alone, among others, in any order, to the bit."""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import ptx_lint
import pytest
import test_golden
import torch
from conftest import DTYPES, needs_fma, needs_native
from drivers import ROOT, break_by, breakable_driver, compile_driver, compile_ptx, ptx_driver
from test_cuda_on_cpu import SENTINEL, Emulated, with_sentinels
from test_orthogonal import SEED, product_of_reflectors

from fastinit import _native
from fastinit.run import orthogonal
from fastinit.run.engine import NativeSource
from fastinit.run.index_maps import BoxIndices
from fastinit.run.matrix_table import fill_small, orthogonal_table
from fastinit.run.orthogonal import Matrix

pytestmark = [
    needs_native,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the fibers are for Linux"),
]

# Around the 32 lanes, the 8 columns of a warp, and the 128, 256 and 1024 rows that the three variants of the kernel
# hold; in float64 without those that a block has no room for.
SHAPES = [
    (1, 1),
    (1, 2),
    (2, 1),
    (2, 2),
    (1, 9),
    (130, 1),
    (4, 3),
    (7, 9),
    (8, 8),
    (31, 31),
    (32, 33),
    (33, 32),
    (64, 27),
    (27, 64),
    (100, 96),
    (127, 127),
    (128, 128),
    (128, 31),
    (129, 65),
    (40, 200),
    (256, 20),
    (257, 17),
    (9, 300),
    (1000, 5),
    (1024, 9),
    (3, 1024),
]
LARGE = [(256, 128), (220, 220), (300, 64), (64, 300), (1024, 24)]  # float32 alone
EPS = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}
SAMPLED = {torch.float32: "float32", torch.float64: "float64"}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compile_driver(tmp_path_factory.mktemp("source"), "orthogonal")


@pytest.fixture(scope="module")
def ptx(tmp_path_factory: pytest.TempPathFactory) -> str:
    return compile_ptx(tmp_path_factory.mktemp("ptx"), source=ROOT / "csrc/cuda/orthogonal.cu")


@pytest.fixture(scope="module", params=["source", pytest.param("ptx", marks=pytest.mark.slow)])
def any_emulated(
    request: pytest.FixtureRequest, host: ctypes.CDLL, tmp_path_factory: pytest.TempPathFactory
) -> Emulated:
    if request.param == "source":
        return Emulated(host, host)
    folder = tmp_path_factory.mktemp("ptx_driver")
    return Emulated(host, ptx_driver(folder, "orthogonal", request.getfixturevalue("ptx")))


@pytest.fixture
def emulated(any_emulated: Emulated) -> Emulated:
    any_emulated.configure()
    return any_emulated


def fill(emulated: Emulated, matrices: Sequence[Matrix], seed: int = SEED) -> None:
    """One launch, for tensors that are matrices as they lie."""
    assert _native.module is not None
    table = orthogonal_table(matrices, [matrix.tensor for matrix in matrices])
    emulated.orthogonal(table, _native.module.check_orthogonal(table), seed)


def matrix(
    tensor: torch.Tensor, name: str = "w", gain: float = 1.0, offset: int = 0, steps: tuple[int, int] | None = None
) -> Matrix:
    rows, columns = tensor.shape
    return Matrix(name, tensor, (rows, columns), BoxIndices(offset, steps or (columns, 1)), gain)


def filled(emulated: Emulated, shape: tuple[int, int], dtype: torch.dtype, **options: Any) -> torch.Tensor:
    tensor = torch.full(shape, torch.nan, dtype=dtype)
    fill(emulated, [matrix(tensor, **options)])
    return tensor


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(bits(one), bits(other))


def orthogonality(q: torch.Tensor, gain: float = 1.0) -> float:
    q = q.double()
    small = q @ q.mT if q.shape[0] < q.shape[1] else q.mT @ q
    return float((small - gain**2 * torch.eye(len(small), dtype=torch.float64)).abs().max())


# ---- Values ----


@needs_fma
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, *LARGE], ids=str)
def test_the_cpu_gives_the_same_bits(emulated: Emulated, shape: tuple[int, int], dtype: torch.dtype) -> None:
    if not emulated.orthogonal_fits(*shape, dtype):
        return
    of_cpu = torch.full(shape, torch.nan, dtype=dtype)
    assert fill_small([matrix(of_cpu, gain=0.7)], SEED) == []
    assert same(filled(emulated, shape, dtype, gain=0.7), of_cpu)


@needs_fma
def test_ranges_have_the_bits_of_the_whole(emulated: Emulated) -> None:
    for shape in ((100, 60), (60, 100), (1000, 5)):
        whole = filled(emulated, shape, torch.float32)
        for rows, columns in (((0, 3), (2, 5)), ((7, 40), (0, shape[1])), ((0, shape[0]), (3, 4))):
            part = torch.full((rows[1] - rows[0], columns[1] - columns[0]), torch.nan)
            of = Matrix("w", part, shape, BoxIndices(0, (shape[1], 1)), 1.0, rows, columns)
            fill(emulated, [of])
            assert same(part, whole[slice(*rows), slice(*columns)])
            of_cpu = torch.full_like(part, torch.nan)
            fill_small([of._replace(tensor=of_cpu)], SEED)
            assert same(of_cpu, part)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, *LARGE], ids=str)
def test_matrices_are_the_product_of_their_reflectors(
    emulated: Emulated, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    if not emulated.orthogonal_fits(*shape, dtype):
        assert shape in LARGE and dtype == torch.float64
        return
    found = filled(emulated, shape, dtype, gain=-1.5, offset=3)
    index = 3 + np.arange(math.prod(shape))
    wanted = product_of_reflectors("w", *shape, SAMPLED[dtype], -1.5, index)
    tolerance = 4.0 * EPS[dtype] * math.sqrt(min(shape))
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1.5 * tolerance)
    assert orthogonality(found, 1.5) <= 1.5**2 * 2.0 * tolerance


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(33, 32), (128, 128), (20, 150)], ids=str)
def test_matrices_are_those_of_the_other_way(emulated: Emulated, shape: tuple[int, int], dtype: torch.dtype) -> None:
    found, wanted = (torch.empty(shape, dtype=dtype) for _ in range(2))
    fill(emulated, [matrix(found, gain=0.7)])
    orthogonal.fill([matrix(wanted, gain=0.7)], NativeSource(SEED))
    tolerance = {2: 1e-2 if dtype == torch.bfloat16 else 1e-3, 4: 1e-6, 8: 2e-15}[dtype.itemsize]
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)
    if dtype.itemsize == 2:
        assert (found == wanted).double().mean() > 0.99


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(33, 33), (64, 130), (300, 20)], ids=str)
def test_low_precision_is_float32_rounded_once(emulated: Emulated, shape: tuple[int, int], dtype: torch.dtype) -> None:
    for gain in (1.0, 3e-6):  # and subnormals of float16
        found, wanted = (filled(emulated, shape, each, gain=gain) for each in (dtype, torch.float32))
        assert same(found, wanted.to(dtype))


PARTS: dict[str, tuple[tuple[int, int], int, tuple[int, int]]] = {  # shape, offset, index steps
    "rows of a larger matrix": ((20, 12), 7, (50, 1)),
    "columns of a larger matrix": ((12, 20), 5, (31, 1)),
    "transposed": ((40, 25), 2, (1, 40)),
    "transposed and wide": ((25, 40), 1, (1, 33)),
    "the middle of kernels": ((24, 16), 4, (16 * 9, 9)),
    "the middle of wide kernels": ((16, 24), 13, (24 * 25, 25)),
    "no order at all": ((30, 30), 0, (7, 211)),
    "all the same": ((6, 4), 9, (0, 0)),
    "a column": ((50, 1), 6, (1, 1)),
    "a column of a row-major matrix": ((50, 1), 6, (64, 1)),
    "a row": ((1, 50), 3, (77, 1)),
    "around 2^31": ((40, 30), 2**31 - 100, (30, 1)),
    "around 2^32": ((40, 30), 2**32 - 101, (1, 40)),
    "blocks around 2^32": ((40, 30), 2**34 - 105, (30, 1)),
    "steps beyond 2^32": ((40, 30), 11, (2**32 + 3, 2**40 + 1)),
    "rows far apart": ((40, 30), 2**35 + 2, (2**33 + 1, 1)),
    "far out": ((30, 40), 2**61, (40, 1)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("shape", "offset", "steps"), PARTS.values(), ids=PARTS)
def test_every_element_has_the_random_number_of_its_index(
    emulated: Emulated, shape: tuple[int, int], offset: int, steps: tuple[int, int], dtype: torch.dtype
) -> None:
    found = filled(emulated, shape, dtype, offset=offset, steps=steps)
    index = offset + steps[0] * np.arange(shape[0])[:, None] + steps[1] * np.arange(shape[1])[None, :]
    wanted = product_of_reflectors("w", *shape, SAMPLED[dtype], 1.0, index.ravel())
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=4.0 * EPS[dtype] * math.sqrt(min(shape)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gains(emulated: Emulated, dtype: torch.dtype) -> None:
    plain = filled(emulated, (40, 33), dtype)
    assert same(filled(emulated, (40, 33), dtype, gain=-2.0), plain * -2.0)
    if dtype != torch.float16:  # which rounds the least of them
        assert same(filled(emulated, (40, 33), dtype, gain=0.25), plain * 0.25)
    assert (filled(emulated, (40, 33), dtype, gain=0.0) == 0.0).all()


def test_the_seed_and_the_name_decide(emulated: Emulated) -> None:
    tensors = [torch.empty(9, 9) for _ in range(4)]
    for tensor, name, seed in zip(tensors, ("w", "v", "w", "w"), (1, 1, 2**64 - 1, 1), strict=True):
        fill(emulated, [matrix(tensor, name)], seed)
    assert same(tensors[0], tensors[3])
    assert not any((tensors[0] == other).any() for other in tensors[1:3])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_first_entry_of_zero_has_a_direction(emulated: Emulated, dtype: torch.dtype) -> None:
    """The streams are made for it: 1/2 in the middle of the range is a normal of zero, Philox being a bijection."""
    assert _native.module is not None
    for word in (0x7FFFFFFF, 0x80000000):
        if dtype == torch.float64:
            block: tuple[int, ...] = (0xFFFFFFFF if word >> 31 == 0 else 0, word, 1, 2)
        else:
            block = (word, 1, 2, 3)
        digest, _, index = test_golden.place_of(block, seed=9)
        tensor = torch.full((1, 1), torch.nan, dtype=dtype)
        offset = index // 2 if dtype == torch.float64 else index
        table = orthogonal_table([matrix(tensor, offset=offset)], [tensor])
        table["name_id"] = np.frombuffer(digest, "V16")
        emulated.orthogonal(table, _native.module.check_orthogonal(table), 9)
        assert tensor.item() == 1.0


# ---- Memory ----


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(40, 33), (33, 40), (1, 7), (150, 20)], ids=str)
def test_any_strides_have_the_same_bits_and_nothing_around_is_written(
    emulated: Emulated, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    rows, columns = shape
    plain = filled(emulated, shape, dtype)
    layouts = {
        "transposed": lambda space: space[: rows * columns].view(columns, rows).t(),
        "unaligned": lambda space: space[3 : 3 + rows * columns].view(rows, columns),
        "padded": lambda space: space[: rows * (columns + 5)].view(rows, columns + 5)[:, 2 : 2 + columns],
        "every second": lambda space: space[: 4 * rows * columns].view(2 * rows, 2 * columns)[1::2, ::2],
        "of a kernel": lambda space: space[: 3 * rows * columns].view(rows, columns, 3)[:, :, 1],
    }
    for name, view_of in layouts.items():
        space = with_sentinels(4 * rows * columns + 100, dtype)
        fill(emulated, [matrix(view_of(space))])
        assert same(view_of(space), plain), name
        view_of(space).copy_(view_of(with_sentinels(len(space), dtype)))
        assert (space.view(torch.uint8) == SENTINEL).all(), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_fits_in_a_block(host: ctypes.CDLL, dtype: torch.dtype) -> None:
    emulated = Emulated(host, host)
    sides = (1, 5, 31, 64, 127, 128)
    assert all(emulated.orthogonal_fits(rows, columns, dtype) for rows in sides for columns in sides)
    single = dtype != torch.float64
    for rows, columns, fits in (
        (256, 128, single),
        (300, 64, single),
        (220, 220, single),
        (1024, 24, single),
        (1024, 12, True),
        (155, 155, True),
        (256, 136, False),
        (226, 226, False),
        (1025, 1, False),
        (2**40, 2**40, False),
    ):
        assert emulated.orthogonal_fits(rows, columns, dtype) is fits
        assert emulated.orthogonal_fits(columns, rows, dtype) is fits
    try:
        emulated.configure_shared(64 << 10)  # a Turing
        assert emulated.orthogonal_fits(128, 128, dtype) is single
        assert emulated.orthogonal_fits(100, 100, dtype)
    finally:
        emulated.configure_shared(227 << 10)


def test_without_elements_there_is_no_launch(emulated: Emulated) -> None:
    before = emulated.launches()
    empty = [matrix(torch.empty(shape)) for shape in ((0, 5), (5, 0), (0, 0))]
    fill(emulated, empty)
    assert emulated.launches() == before
    tensor = torch.empty(12, 10)
    fill(emulated, [*empty, matrix(tensor), *empty])
    assert emulated.launches() == before + 1
    assert same(tensor, filled(emulated, (12, 10), torch.float32))


# ---- One launch ----


def many(count: int) -> list[Matrix]:
    """Of all dtypes and variants, most of them small; every seventh transposed."""
    random = np.random.default_rng(1)
    found = []
    for number in range(count):
        rows, columns = (int(side) for side in random.integers(1, 130 if number % 9 == 0 else 40, 2))
        if number % 31 == 0:
            rows = 129 + number % 400
        tensor = torch.full((rows, columns), torch.nan, dtype=DTYPES[number % 4])
        gain = (1.0, 0.5, -3.0)[number % 3]
        found.append(matrix(tensor.t().contiguous().t() if number % 7 == 0 else tensor, f"layers.{number}", gain))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("multiprocessors", "order_seed"), [(1, 0), (2, 1), (132, 2)])
def test_the_others_and_the_order_change_not_a_bit(
    any_emulated: Emulated, multiprocessors: int, order_seed: int
) -> None:
    together, alone = many(100), many(100)
    any_emulated.configure(multiprocessors, 2, order_seed)
    before = any_emulated.launches()
    fill(any_emulated, together)
    assert any_emulated.launches() == before + 1
    any_emulated.configure()
    for one, other in zip(together, alone, strict=True):
        fill(any_emulated, [other])
        assert same(one.tensor, other.tensor), one.name
        assert torch.isfinite(one.tensor).all()


def test_launches_are_counted_and_a_failed_one_is_an_exception(host: ctypes.CDLL) -> None:
    host.counted_launches.restype = ctypes.c_longlong
    emulated = Emulated(host, host)
    before = int(host.counted_launches())
    tensor = with_sentinels(81, torch.float32).view(9, 9)
    emulated.fail_next_launch()
    with pytest.raises(RuntimeError, match="CUDA error while launching a kernel: cudaErrorLaunchOutOfResources"):
        fill(emulated, [matrix(tensor)])
    assert (tensor.view(torch.uint8) == SENTINEL).all()
    assert int(host.counted_launches()) == before
    fill(emulated, [matrix(tensor)] * 3)
    assert int(host.counted_launches()) == before + 1


def test_more_shared_memory_than_the_device_has_is_refused(host: ctypes.CDLL) -> None:
    emulated = Emulated(host, host)
    tensor = torch.zeros(128, 128, dtype=torch.float64)
    try:
        emulated.configure_shared(64 << 10)
        with pytest.raises(RuntimeError, match="CUDA error while asking for shared memory: cudaErrorInvalidValue"):
            fill(emulated, [matrix(tensor)])
    finally:
        emulated.configure_shared(227 << 10)
    assert (tensor == 0.0).all()


# ---- The table ----


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dtype", 4, "no matrix is made in 8-bit floats"),
        ("dtype", 8, "unknown dtype 8"),
        ("dtype", -1, "unknown dtype -1"),
        ("gain", math.nan, "a gain that is not finite"),
        ("gain", math.inf, "a gain that is not finite"),
        ("rows", -1, "a negative number of rows or columns"),
        ("columns", -5, "a negative number of rows or columns"),
        ("data", 0, "elements without memory"),
        ("rows", 1025, "1025 x 4 is too large"),
        ("columns", 2**62, f"8 x {2**62} is too large"),
        ("global_offset", -1, "global indices below 0 or beyond"),
        ("global_offset", 2**63 - 10, "global indices below 0 or beyond"),
        ("row_index_step", -1, "global indices below 0 or beyond"),
        ("column_index_step", 2**62, "global indices below 0 or beyond"),
        ("row_memory_step", -4, "negative or too large steps in memory"),
        ("column_memory_step", 2**62, "negative or too large steps in memory"),
    ],
)
def test_tables_that_make_no_sense_are_refused(field: str, value: float, message: str) -> None:
    assert _native.module is not None
    matrices = [matrix(torch.zeros(8, 4)), matrix(torch.zeros(8, 4), "v")]
    table = orthogonal_table(matrices, [each.tensor for each in matrices])
    assert _native.module.check_orthogonal(table) == (8 * 4 - 6 + 4) * 4
    table[field][1] = value
    with pytest.raises(ValueError, match=f"table row 1: {message}"):
        _native.module.check_orthogonal(table)


def test_other_arrays_are_no_tables() -> None:
    assert _native.module is not None
    table = orthogonal_table([matrix(torch.zeros(8, 4))] * 4, [torch.zeros(8, 4)] * 4)
    for wrong in (table[::2], table.reshape(2, 2), np.zeros(3), np.zeros(2, np.dtype(_native.module.task_dtype()))):
        with pytest.raises(ValueError, match="table: expected a contiguous one-dimensional array of 128-byte rows"):
            _native.module.check_orthogonal(wrong)


# ---- The tests themselves ----


@pytest.mark.slow
def test_nothing_inexact_in_the_ptx(ptx: str) -> None:
    assert ptx_lint.violations(ptx) == []


# Each of these must be seen.
SYNC = "\n  __syncthreads();"
BREAKS = {
    name: ("reflectors.h", given, broken)
    for name, given, broken in [
        (
            "a pair of lines cut short",
            "entries + 4 * kBlockValues - 4)",
            "entries + (BREAK ? 0 : 4 * kBlockValues) - 4)",
        ),
        (
            "no barrier after the samples",
            "sample_vectors(tall, source, reflectors);" + SYNC,
            "sample_vectors(tall, source, reflectors);\n  if (!BREAK) __syncthreads();",
        ),
        (
            "no barrier after the reflectors",
            "make_reflectors(reflectors, warp, lane);" + SYNC,
            "make_reflectors(reflectors, warp, lane);\n  if (!BREAK) __syncthreads();",
        ),
        ("a sign", "first < 0 ? first - length", "first < 0 ? first - (BREAK ? -length : length)"),
        ("the last groups alone", "turn * kMatrixWarps < groups", "(BREAK ? turn < 1 : turn * kMatrixWarps < groups)"),
        ("a row not reached", "return r * kLanes + kLanes > j", "return r * kLanes + kLanes > j + BREAK"),
    ]
}


@pytest.fixture(scope="module")
def breakable(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return breakable_driver(tmp_path_factory.mktemp("breakable"), "orthogonal", BREAKS)


@pytest.mark.slow  # compiles the kernel once more
@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_kernel_is_noticed(host: ctypes.CDLL, breakable: ctypes.CDLL, name: str) -> None:
    def differs(shape: tuple[int, int], order_seed: int) -> bool:
        emulated = Emulated(host, breakable)
        emulated.configure(2, 2, order_seed)
        return not same(filled(emulated, shape, torch.float32), filled(Emulated(host, host), shape, torch.float32))

    cases = [((100, 9), 0), ((100, 9), 3), ((100, 90), 0), ((100, 90), 3)]
    break_by(breakable, BREAKS, None)
    assert not any(differs(*case) for case in cases[1:3])
    break_by(breakable, BREAKS, name)
    assert any(differs(*case) for case in cases)
