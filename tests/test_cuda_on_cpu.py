"""The CUDA backend without a GPU: csrc/cuda/fill.cu, run on the CPU, against the CPU backend, to the bit.

Twice: "source" is the very file, compiled by g++ against tests/cuda_on_cpu; "ptx" is what nvcc makes of its kernel,
turned into C++ by ptx_to_cpp.py. Neither knows ptxas, the last step to machine code: that needs a GPU (test_cuda.py).
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ptx_lint
import pytest
import reference
import torch
from conftest import DTYPES, FLOAT8_DTYPES, needs_native
from drivers import NVCC_FLAGS, ROOT, break_by, breakable_driver, compile_driver, compile_ptx, ptx_driver

import fastinit.run.table
from fastinit import _native
from fastinit.run.index_maps import index_maps
from fastinit.run.streams import name_id
from fastinit.schemes.distributions import Constant, Diagonal, Distribution, Normal, TruncNormal, Uniform

CHUNK = 8192  # values, four a unit
DISTRIBUTIONS: dict[str, Distribution] = {
    "uniform": Uniform(-0.5, 1.5),
    "uniform_to_zero": Uniform(-1.0, 0.0),
    "normal": Normal(0.25, 2.0),
    "trunc_normal": TruncNormal(0.0, 0.02, -0.04, 0.04),
    "trunc_normal_uneven": TruncNormal(0.5, 1.0, -0.3, 4.0),
    "trunc_normal_one_sided": TruncNormal(0.0, 1.0, 1.5, 3.0),
    "trunc_normal_mirrored": TruncNormal(0.0, 1.0, -5.0, -2.0),
    "constant": Constant(1.0 / 3.0),
    "nan": Constant(float("nan")),
    "diagonal": Diagonal(0.7, 3, 65, 9, 64 * 10),
}
SIZES = [1, 3, 4, 5, 15, 16, 17, 255, 1024, 1025, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 7]
SENTINEL = 0xA5

pytestmark = [
    needs_native,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the fibers are for Linux"),
]


class Emulated:
    """A kernel's driver library, and one with the host code that belongs to it: for tables, that of fill.cu."""

    def __init__(self, host: ctypes.CDLL, kernel: ctypes.CDLL) -> None:
        self._host = host
        self._kernel = kernel
        kernel.device_launches.restype = ctypes.c_longlong
        self.configure()

    def configure(self, multiprocessors: int = 3, blocks: int = 2, order_seed: int = 0) -> None:
        """How large the emulated device is, and in what order it runs blocks and threads."""
        self._kernel.configure(multiprocessors, blocks, ctypes.c_ulonglong(order_seed))

    def configure_shared(self, shared_bytes: int) -> None:
        """How much shared memory a block of the emulated device can ask for."""
        self._kernel.configure_shared(shared_bytes)

    def launches(self) -> int:
        return int(self._kernel.device_launches())

    def fill(self, table: np.ndarray[Any, Any], seed: int, *, on_device: bool = False) -> None:
        """With a seed that is an argument of the kernel, or lies in the device's memory."""
        memory = np.array([seed], np.uint64)
        number = ctypes.c_ulonglong(0 if on_device else seed)
        self._launch(self._kernel.fill, table, number, _pointer(memory) if on_device else None)

    def blend(self, table: np.ndarray[Any, Any], keep: float, scale: float, seed: int) -> None:
        factors = ctypes.c_double(keep), ctypes.c_double(scale)
        self._launch(self._kernel.blend, table, *factors, ctypes.c_ulonglong(seed))

    def fill_where(self, table: np.ndarray[Any, Any], masks: np.ndarray[Any, Any], seed: int) -> None:
        self._launch(self._kernel.fill_where, table, _pointer(masks), ctypes.c_ulonglong(seed))

    def _launch(self, kernel: Any, table: np.ndarray[Any, Any], *arguments: Any) -> None:
        num_tasks = ctypes.c_longlong(len(table))
        self._host.table_bytes.restype = self._host.write_table.restype = ctypes.c_longlong
        image = np.zeros(self._host.table_bytes(num_tasks), np.uint8)
        num_chunks = ctypes.c_longlong(self._host.write_table(_pointer(table), num_tasks, _pointer(image)))
        message = ctypes.create_string_buffer(500)
        if error := kernel(_pointer(image), num_tasks, num_chunks, *arguments, message, 500):
            raise RuntimeError(message.value.decode() or f"CUDA error {error}")

    def orthogonal(self, table: np.ndarray[Any, Any], shared_bytes: int, seed: int) -> None:
        sizes = ctypes.c_longlong(len(table)), ctypes.c_longlong(shared_bytes), ctypes.c_ulonglong(seed)
        message = ctypes.create_string_buffer(500)
        if error := self._kernel.orthogonal(_pointer(table), *sizes, message, 500):
            raise RuntimeError(message.value.decode() or f"CUDA error {error}")

    def orthogonal_fits(self, rows: int, columns: int, dtype: torch.dtype) -> bool:
        sizes = ctypes.c_longlong(rows), ctypes.c_longlong(columns)
        return bool(self._host.orthogonal_fits(*sizes, fastinit.run.table.DTYPES[dtype]))

    def fail_next_launch(self) -> None:
        self._kernel.fail_next_launch()


def _pointer(array: np.ndarray[Any, Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compile_driver(tmp_path_factory.mktemp("source"), "fill")


@pytest.fixture(scope="module")
def ptx(tmp_path_factory: pytest.TempPathFactory) -> str:
    return compile_ptx(tmp_path_factory.mktemp("ptx"))


@pytest.fixture(scope="module", params=["source", pytest.param("ptx", marks=pytest.mark.slow)])
def any_emulated(
    request: pytest.FixtureRequest, host: ctypes.CDLL, tmp_path_factory: pytest.TempPathFactory
) -> Emulated:
    if request.param == "source":
        return Emulated(host, host)
    return Emulated(host, ptx_driver(tmp_path_factory.mktemp("ptx_driver"), "fill", request.getfixturevalue("ptx")))


@pytest.fixture
def emulated(any_emulated: Emulated) -> Emulated:
    any_emulated.configure()
    return any_emulated


def make_table(num_rows: int) -> np.ndarray[Any, Any]:
    assert _native.module is not None
    return np.zeros(num_rows, np.dtype(_native.module.task_dtype()))


def describe(row: Any, name: str, distribution: Distribution, dtype: torch.dtype) -> None:
    row["name_id"] = np.frombuffer(name_id(name), "V16")
    row["dtype"] = fastinit.run.table.DTYPES[dtype]
    row["distribution"] = distribution.code
    row["parameter"] = distribution.parameters() + (0.0,) * (5 - len(distribution.parameters()))
    row["row_length"] = row["rows_per_slab"] = row["element_memory_step"] = 1


def rows_of(name: str, tensor: torch.Tensor, distribution: Distribution) -> np.ndarray[Any, Any]:
    """The rows of any tensor, empty ones included."""
    maps = index_maps(tensor)
    table = make_table(len(maps))
    for row, index_map in zip(table, maps, strict=True):
        describe(row, name, distribution, tensor.dtype)
        row["data"] = tensor.data_ptr() + index_map.data_offset * tensor.element_size()
        for field, value in index_map._asdict().items():
            if field != "data_offset":
                row[field] = value
    return table


def with_sentinels(numel: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.full((numel * dtype.itemsize,), SENTINEL, dtype=torch.uint8).view(dtype)


def both(emulated: Emulated, cases: Sequence[tuple[str, torch.Tensor, Distribution]], seed: int = 77) -> None:
    """Fill tensors by the CPU backend, clear them, fill them by the emulated GPU, and compare all of their storage."""
    assert _native.module is not None
    parts = [rows_of(*case) for case in cases]
    table = make_table(sum(map(len, parts)))  # np.concatenate would leave the table's padding out
    at = 0
    for part in parts:
        table[at : at + len(part)] = part
        at += len(part)
    assert _native.module.prepare(table) is None
    storages = [tensor.untyped_storage() for _, tensor, _ in cases]
    _native.module.fill_cpu(table, seed, 1)
    wanted = [torch.tensor([], dtype=torch.uint8).set_(storage).clone() for storage in storages]
    for storage in storages:
        storage.fill_(SENTINEL)
    emulated.fill(table, seed)
    for (name, tensor, distribution), storage, want in zip(cases, storages, wanted, strict=True):
        given = torch.tensor([], dtype=torch.uint8).set_(storage)
        if not torch.equal(given, want):
            different = torch.nonzero(given != want).flatten() // tensor.element_size()
            pytest.fail(f"{name} {tuple(tensor.shape)} {tensor.dtype} {distribution}: differs at {different[:10]}")


@pytest.mark.parametrize("dtype", [*DTYPES, *FLOAT8_DTYPES], ids=str)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_every_size_and_alignment(emulated: Emulated, distribution: Distribution, dtype: torch.dtype) -> None:
    cases = [(f"of {size}", with_sentinels(size + 8, dtype)[4 : 4 + size], distribution) for size in [0, *SIZES]]
    for offset in range(1, 8):
        cases.append((f"from {offset}", with_sentinels(CHUNK + 40, dtype)[offset:-13], distribution))
    both(emulated, cases)


@pytest.mark.parametrize("dtype", [*DTYPES, *FLOAT8_DTYPES], ids=str)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_every_layout(emulated: Emulated, distribution: Distribution, dtype: torch.dtype) -> None:
    matrix = with_sentinels(130 * 70, dtype).view(130, 70)
    images = with_sentinels(20 * 9 * 5 * 3, dtype).view(20, 9, 5, 3)
    both(
        emulated,
        [
            ("transposed", matrix.clone().t(), distribution),
            ("padded", matrix.clone()[:, 3:64], distribution),
            ("aligned rows", with_sentinels(64 * 96, dtype).view(64, 96)[:, :64], distribution),
            ("every second", matrix.clone()[::2, ::3], distribution),
            ("channels_last", images.clone().permute(0, 3, 1, 2), distribution),
            (
                "five dimensions",
                with_sentinels(3 * 4 * 5 * 6 * 7, dtype).view(3, 4, 5, 6, 7).permute(4, 1, 3, 0, 2),
                distribution,
            ),
        ],
    )


def by_table(emulated: Emulated, table: np.ndarray[Any, Any], outputs: Sequence[torch.Tensor]) -> None:
    """Fill by the CPU backend, clear, fill by the emulated GPU, and compare all that is around, too."""
    assert _native.module is not None
    assert _native.module.prepare(table) is None
    _native.module.fill_cpu(table, 5, 1)
    wanted = [output.clone() for output in outputs]
    for output in outputs:
        output.view(torch.uint8).fill_(SENTINEL)
    emulated.fill(table, 5)
    for row, output, want in zip(table, outputs, wanted, strict=True):
        assert torch.equal(output.view(torch.uint8), want.view(torch.uint8)), row


@pytest.mark.parametrize("dtype", [*DTYPES, *FLOAT8_DTYPES], ids=str)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_shards_and_large_indices(emulated: Emulated, distribution: Distribution, dtype: torch.dtype) -> None:
    """Rows and columns of a huge tensor, by offset: only the shard has memory."""
    if isinstance(distribution, Diagonal):
        distribution = Diagonal(0.7, 3, 2**20 + 1, 2**40, 2**61)
    offsets = [1, 2, 3, 2**31 - 2, 2**32 - 3, 2**34 - 5, 2**34 + 4 * 2047, 2**40 + 1, 2**62]
    table = make_table(2 * len(offsets))
    outputs = []
    for case, (row, offset) in enumerate(zip(table, [*offsets, *offsets], strict=True)):
        describe(row, "shard", distribution, dtype)
        row["global_offset"] = offset
        length, rows = (CHUNK + 3, 1) if case < len(offsets) else (37, 23)
        step = 0 if case < len(offsets) else [1000, 2**33 + 1, 37, 38][case % 4]
        row["row_length"], row["rows_per_slab"], row["row_index_step"] = length, max(rows - 3, 1), step
        row["slab_index_step"] = step * max(rows - 3, 1) + (5 if rows > 1 else 0)
        row["row_memory_step"], row["slab_memory_step"] = length + 3, (length + 3) * max(rows - 3, 1)
        row["numel"] = length * rows
        outputs.append(with_sentinels((length + 3) * rows + 8, dtype))
        row["data"] = outputs[-1].data_ptr() + (offset % 5) * dtype.itemsize
    by_table(emulated, table, outputs)


# Around them the upper half of the counter changes: it counts blocks of 4 values, in double of 2.
PIECE_OFFSETS = [0, 1, 2, 3, 1021, 2**33 - 1030, 2**34 - 1030, 2**34 - 3, 2**40 + 1]
PIECE_GAPS = [0, 1, 2, 5, 1024]  # of a row's index and of memory


@dataclass(frozen=True)
class Rows:
    length: int
    number: int
    per_slab: int
    missing: int = 0  # elements at the end of the last row


# A warp takes up to 2048 values of a row (1024 in double) if they are at least 256.
LONG_ROWS = [
    Rows(255, 5, 5),
    Rows(256, 9, 9),
    Rows(257, 7, 3),
    Rows(1023, 5, 2, 3),
    Rows(2048, 3, 1),
    Rows(2049, 4, 2, 2047),
    Rows(2050, 2, 5),
    Rows(6151, 2, 2, 4100),
]
# A warp takes 32 rows, a block 128, and up to 128 columns.
NEIGHBOURS = [
    Rows(1, 40, 40),
    Rows(2, 33, 33),
    Rows(5, 31, 31, 3),
    Rows(9, 200, 50),
    Rows(9, 64, 3, 8),
    Rows(127, 3, 3),
    Rows(128, 32, 32),
    Rows(129, 65, 65, 1),
    Rows(131, 130, 7, 130),
    Rows(386, 34, 17, 200),
]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [*DTYPES, *FLOAT8_DTYPES], ids=str)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
@pytest.mark.parametrize("transposed", [False, True], ids=["long rows", "neighbouring rows"])
def test_rows_of_any_length_alignment_and_offset(
    emulated: Emulated, transposed: bool, distribution: Distribution, dtype: torch.dtype
) -> None:
    by_table(emulated, *table_of_rows(transposed, distribution, dtype, PIECE_OFFSETS, with_sentinels))


def table_of_rows(
    transposed: bool,
    distribution: Distribution,
    dtype: torch.dtype,
    offsets: Sequence[int],
    make_memory: Callable[[int, torch.dtype], torch.Tensor],
) -> tuple[np.ndarray[Any, Any], list[torch.Tensor]]:
    shapes = NEIGHBOURS if transposed else LONG_ROWS
    table, outputs = make_table(len(shapes) * len(offsets)), []
    for case, row in enumerate(table):
        rows, offset = shapes[case % len(shapes)], offsets[case // len(shapes)]
        describe(row, "rows", distribution, dtype)
        row["global_offset"], row["numel"] = offset, rows.length * rows.number - rows.missing
        row["row_length"], row["rows_per_slab"] = rows.length, rows.per_slab
        index_gap, memory_gap = PIECE_GAPS[case % 5], PIECE_GAPS[case // 5 % 5]
        row["row_index_step"] = rows.length + index_gap
        row["slab_index_step"] = rows.per_slab * row["row_index_step"] + (index_gap if case % 2 else 0)
        if transposed:
            row["row_memory_step"], row["element_memory_step"] = 1, rows.per_slab + memory_gap + (rows.per_slab == 1)
            row["slab_memory_step"] = rows.length * row["element_memory_step"] + case % 3
        else:
            row["row_memory_step"] = rows.length + memory_gap
            row["slab_memory_step"] = rows.per_slab * row["row_memory_step"] + case % 3
        slabs = -(-rows.number // rows.per_slab)
        outputs.append(make_memory(slabs * int(row["slab_memory_step"]) + 16, dtype))
        row["data"] = outputs[-1].data_ptr() + (case + case // 8) % 8 * dtype.itemsize
    return table, outputs


@pytest.mark.parametrize("order_seed", [1, 2])
def test_chunks_of_rows_in_any_order(emulated: Emulated, order_seed: int) -> None:
    """More chunks than blocks, amid those of other tensors."""
    emulated.configure(3, 2, order_seed)
    cases = []
    for dtype in DTYPES:
        columns, transposed = with_sentinels(41 * 2200, dtype).view(41, 2200), with_sentinels(300 * 261, dtype)
        last = with_sentinels(40 * 9 * 70, dtype).view(40, 3, 3, 70)
        cases += [
            (f"columns {dtype}", columns[:, 3:2100], Normal(0.0, 1.0)),
            (f"contiguous {dtype}", with_sentinels(CHUNK + 100, dtype), Uniform(0.0, 1.0)),
            (f"transposed {dtype}", transposed.view(300, 261).t(), Normal(0.0, 1.0)),
            (f"channels_last {dtype}", last.permute(0, 3, 1, 2), TruncNormal(0.0, 1.0, -2.0, 2.0)),
            (f"one {dtype}", with_sentinels(1, dtype), Constant(2.0)),
        ]
    both(emulated, cases)


def many_tensors() -> list[tuple[str, torch.Tensor, Distribution]]:
    """2000 of all kinds, most of them tiny."""
    chosen = [distribution for name, distribution in DISTRIBUTIONS.items() if name != "nan"]
    generator = torch.Generator().manual_seed(3)
    cases = []
    for i in range(2000):
        size = int(torch.randint(0, 40, (), generator=generator)) if i % 50 else 3000 + 37 * i
        tensor = with_sentinels(size, DTYPES[i % 4])
        cases.append((f"layers.{i}.weight", tensor, chosen[i % len(chosen)]))
    return cases


@pytest.mark.parametrize("multiprocessors", [1, 2, 132])
def test_thousands_of_tensors_in_one_launch(emulated: Emulated, multiprocessors: int) -> None:
    emulated.configure(multiprocessors, 2)
    before = emulated.launches()
    both(emulated, many_tensors())
    assert emulated.launches() == before + 1


@pytest.mark.parametrize("order_seed", [1, 2])
def test_order_of_blocks_and_threads_changes_nothing(emulated: Emulated, order_seed: int) -> None:
    emulated.configure(5, 3, order_seed)
    both(emulated, many_tensors()[:300])


@pytest.mark.parametrize("dtype", [*DTYPES, *FLOAT8_DTYPES], ids=str)
def test_equal_to_the_reference(emulated: Emulated, dtype: torch.dtype) -> None:
    """To the twin in NumPy: an error that both backends share is found here. Enough values for the tails."""
    assert _native.module is not None
    offset, numel = 2**33 + 2, 100_001
    for kind, distribution in [
        ("uniform", Uniform(-2, 1)),
        ("normal", Normal(1, 3)),
        ("trunc_normal", TruncNormal(0, 1, -5, 6)),
    ]:
        output = with_sentinels(numel, dtype)
        table = rows_of("a.weight", output, distribution)
        table["global_offset"] = offset
        assert _native.module.prepare(table) is None
        emulated.fill(table, 2**63 + 9)
        dtype_name: Any = str(dtype).removeprefix("torch.")
        wanted = reference.sample(
            kind, distribution.parameters(), dtype_name, 2**63 + 9, "a.weight", offset + np.arange(numel)
        )  # type: ignore[arg-type]
        assert output.view(torch.uint8).numpy().tobytes() == wanted.tobytes(), distribution


@pytest.mark.parametrize("seed", [0, 6, 2**64 - 3])
def test_a_seed_on_the_device_gives_the_values_of_its_number(emulated: Emulated, seed: int) -> None:
    outputs = [with_sentinels(3 * CHUNK, torch.float32) for _ in range(2)]
    for output, on_device in zip(outputs, (False, True), strict=True):
        table = rows_of("weight", output, Normal(0.0, 1.0))
        assert _native.module is not None and _native.module.prepare(table) is None
        emulated.fill(table, seed, on_device=on_device)
    assert torch.equal(*outputs) and torch.isfinite(outputs[0]).all()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "numel"), [(580, 2000), (10_000, 1000)])
def test_a_launch_a_plan(host: ctypes.CDLL, number: int, numel: int) -> None:
    """As many tensors as GPT-2 XL, and ten thousand; counted by the code's own launch function."""
    host.counted_launches.restype = ctypes.c_longlong
    emulated = Emulated(host, host)
    emulated.configure(132, 4)
    memory = torch.empty(number, numel, dtype=torch.bfloat16)
    before = int(host.counted_launches())
    both(emulated, [(f"{i}", memory[i].clone(), Normal(0.0, 0.02)) for i in range(number)])
    assert int(host.counted_launches()) == before + 1


def test_a_failed_launch_is_an_exception_and_the_next_one_works(host: ctypes.CDLL) -> None:
    emulated = Emulated(host, host)
    output = with_sentinels(100, torch.float32)
    table = rows_of("weight", output, Normal(0.0, 1.0))
    assert _native.module is not None
    assert _native.module.prepare(table) is None
    emulated.fail_next_launch()
    with pytest.raises(RuntimeError, match="CUDA error while launching a kernel: cudaErrorLaunchOutOfResources"):
        emulated.fill(table, 1)
    assert (output.view(torch.uint8) == SENTINEL).all()
    emulated.fill(table, 1)
    assert torch.isfinite(output).all()


def test_more_chunks_than_fit_are_refused(host: ctypes.CDLL) -> None:
    table = make_table(1)
    describe(table[0], "weight", Normal(0.0, 1.0), torch.float32)
    table["data"], table["numel"], table["row_length"] = 1, 2**45, 2**45
    image = np.zeros(1000, np.uint8)
    host.write_table.restype = ctypes.c_longlong
    assert host.write_table(_pointer(table), ctypes.c_longlong(1), _pointer(image)) == -1


@pytest.mark.slow  # compiles the kernel
def test_nothing_inexact_in_the_ptx(ptx: str) -> None:
    assert ptx_lint.violations(ptx) == []


# The samplers of normals alone: there are the roundings that a flag of nvcc changes.
NORMAL_KERNEL = ROOT / "tests/cuda_on_cpu/normal_kernel.cu"


@pytest.mark.slow
def test_flags_of_nvcc_decide_about_bits(tmp_path: Path, host: ctypes.CDLL) -> None:
    """The kernel of the next tests is a sound one with the flags of setup.py."""
    emulated = Emulated(host, ptx_driver(tmp_path, "fill", compile_ptx(tmp_path, source=NORMAL_KERNEL)))
    for dtype in (torch.float32, torch.float64):
        both(emulated, [("w", with_sentinels(1000, dtype), Normal(0.25, 2.0))])


@pytest.mark.slow
def test_a_contracted_kernel_is_noticed(tmp_path: Path, host: ctypes.CDLL) -> None:
    """Without --fmad=false nvcc contracts the samplers in double; those in float say themselves what is an fma."""
    flags = [flag for flag in NVCC_FLAGS if flag != "--fmad=false"]
    emulated = Emulated(host, ptx_driver(tmp_path, "fill", compile_ptx(tmp_path, *flags, source=NORMAL_KERNEL)))
    both(emulated, [("w", with_sentinels(1000, torch.float32), Normal(0.25, 2.0))])
    with pytest.raises(pytest.fail.Exception, match="differs at"):
        both(emulated, [("w", with_sentinels(1000, torch.float64), Normal(0.25, 2.0))])


CONTRACTED = """
__global__ void fill_kernel(const float* a, float* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = a[i] * 0.1f + 0.3f;
}
"""


@pytest.mark.slow
def test_contraction_would_be_noticed(tmp_path: Path) -> None:
    """Plain nvcc makes one fma of a * b + c; with the flags of setup.py it makes two roundings."""
    source = tmp_path / "contracted.cu"
    source.write_text(CONTRACTED, encoding="utf-8")
    fma = {
        flags: sum(ptx_lint.fma_counts(compile_ptx(tmp_path, *flags, source=source)).values())
        for flags in [("-O3",), tuple(NVCC_FLAGS)]
    }
    assert fma[("-O3",)] == 1
    assert fma[tuple(NVCC_FLAGS)] == 0


@pytest.mark.slow
def test_use_fast_math_would_be_noticed(tmp_path: Path) -> None:
    assert ptx_lint.violations(compile_ptx(tmp_path, source=NORMAL_KERNEL)) == []
    flags = [flag for flag in NVCC_FLAGS if not flag.startswith(("-ftz", "-prec", "--fmad"))]
    assert ptx_lint.violations(compile_ptx(tmp_path, *flags, "-use_fast_math", source=NORMAL_KERNEL)) != []


# Each of these must be seen, by the sizes and a layout from above.
BREAKS = {
    name: ("fill_chunk.h", given, broken)
    for name, given, broken in [
        ("a wrong chunk bound", "? static_cast<int>(left) : kValues;", "? static_cast<int>(left) : kValues - BREAK;"),
        ("a missing tail", "if (at + k < begin ||", "if (BREAK || at + k < begin ||"),
        ("no guard at the end", "at + k >= end", "(!BREAK && at + k >= end)"),
        ("a wrong stride", "unit += run.step * kUnits", "unit += run.step * kUnits + BREAK"),
        ("rows that never wrap", "if (place.left_in_row == 0) place", "if (!BREAK && place.left_in_row == 0) place"),
        ("a wrong bound of a piece", "(left > 0 ? left : 0) : kValues;", "(left > 0 ? left : 0) : kValues - BREAK;"),
        (
            "rows that begin with a block",
            "static_cast<int>(index % kBlockValues);",
            "BREAK ? 0 : static_cast<int>(index % kBlockValues);",
        ),
        ("a block too few", "if (i < draws) source", "if (i + BREAK < draws) source"),
    ]
}


@pytest.fixture(scope="module")
def breakable(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return breakable_driver(tmp_path_factory.mktemp("breakable"), "fill", BREAKS)


@pytest.mark.slow  # compiles the kernel once more
@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_kernel_is_noticed(host: ctypes.CDLL, breakable: ctypes.CDLL, name: str) -> None:
    emulated = Emulated(host, breakable)

    # Far from the ends of their memory, for a broken kernel writes outside of its tensor.
    def within(size: int) -> torch.Tensor:
        return with_sentinels(size + 4 * CHUNK, torch.float32)[2 * CHUNK : 2 * CHUNK + size]

    cases = [("w", within(size), Normal(0.0, 1.0)) for size in SIZES]
    cases.append(("channels_last", within(20 * 9 * 5 * 3).view(20, 9, 5, 3).permute(0, 3, 1, 2), Normal(0.0, 1.0)))
    cases.append(("every third", within(20 * 9 * 40).view(20, 9, 40)[:, 1:8, 1:28:3], Normal(0.0, 1.0)))
    cases.append(("long rows", within(9 * 5000).view(9, 5000)[:, 1:4500], Normal(0.0, 1.0)))
    break_by(breakable, BREAKS, None)
    both(emulated, cases)
    break_by(breakable, BREAKS, name)
    with pytest.raises(pytest.fail.Exception, match="differs at"):
        both(emulated, cases)
