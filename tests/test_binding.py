"""Tables that reach the native code by themselves: whatever they hold, they are filled rightly or refused."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import needs_native
from numpy.typing import NDArray

import fastinit
from fastinit import _native
from fastinit.audit import hashing
from fastinit.run.index_maps import BoxIndices
from fastinit.run.matrix_table import orthogonal_table
from fastinit.run.orthogonal import Matrix
from fastinit.run.table import DTYPES, Table
from fastinit.run.targets import Target
from fastinit.schemes.distributions import Constant, Diagonal, Normal, Sampled, TruncNormal, Uniform

pytestmark = needs_native

native: Any = _native.module
needs_cuda_build = pytest.mark.skipif(native is None or not native.HAS_CUDA, reason="built without the CUDA backend")

KINDS: list[Sampled] = [
    Constant(0.5),
    Uniform(-1.0, 2.0),
    Normal(0.25, 2.0),
    TruncNormal(0.0, 1.0, -2.0, 3.0),
    Diagonal(1.0, 2, 33, 40, 2000),
]
INFINITY = float("inf")


Numbers = tuple[float, ...]  # what a table holds of a distribution: its code, and its parameters


def numbers_of(distribution: Sampled) -> Numbers:
    return (distribution.code, *distribution.parameters())


def table_of(tensor: torch.Tensor, distribution: Sampled | Numbers = KINDS[2]) -> NDArray[np.void]:
    """One row, for all of a contiguous tensor; not prepared."""
    table = np.zeros(1, np.dtype(native.task_dtype()))
    table["data"], table["numel"], table["row_length"] = tensor.data_ptr(), tensor.numel(), tensor.numel()
    table["rows_per_slab"] = table["element_memory_step"] = 1
    table["dtype"] = DTYPES[tensor.dtype]
    describe(table, distribution)
    return table


def describe(table: NDArray[np.void], distribution: Sampled | Numbers) -> None:
    code, *parameters = distribution if isinstance(distribution, tuple) else numbers_of(distribution)
    table["distribution"] = code
    table["parameter"] = (*parameters, *(0.0,) * (5 - len(parameters)))


def copied(table: NDArray[np.void]) -> NDArray[np.void]:
    """With the bytes between the fields, which copy() leaves out: there lies what prepare() made."""
    return table.view(np.uint8).copy().view(table.dtype)


def matrix_table_of(tensor: torch.Tensor) -> NDArray[np.void]:
    return orthogonal_table([Matrix("w", tensor, (8, 4), BoxIndices(0, (4, 1)), 1.0)], [tensor])


def hash_table_of(tensor: torch.Tensor) -> NDArray[np.void]:
    return hashing._table([hashing.Hashed(1, tensor, BoxIndices(0, (4, 1)))])


# ---- A table is only read ----


def test_a_run_leaves_the_table_of_a_plan_as_it_is() -> None:
    tensor = torch.empty(3000)
    table = Table([Target("w", tensor, tensor.shape, tensor.dtype, tensor.device, KINDS[2])])
    before = table.rows.tobytes()
    table.fill_cpu(1, 2)
    assert table.rows.tobytes() == before
    with pytest.raises(ValueError, match="read-only"):
        table.rows["data"] = 0


def test_threads_with_seeds_of_their_own_share_a_table() -> None:
    tensor = torch.empty(500_000)
    table = Table([Target("w", tensor, tensor.shape, tensor.dtype, tensor.device, KINDS[2])])
    before = table.rows.tobytes()
    candidates = []
    for seed in (1, 2):
        table.fill_cpu(seed, 1)
        candidates.append(tensor.clone())

    def fill_often(seed: int) -> None:
        for _ in range(30):
            table.fill_cpu(seed, 2)

    threads = [threading.Thread(target=fill_often, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, second = (tensor == candidate for candidate in candidates)
    assert (first | second).all()
    assert table.rows.tobytes() == before
    table.fill_cpu(1, 2)
    assert torch.equal(tensor, candidates[0])


# ---- Refused by name ----


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dtype", 8, "unknown dtype 8"),
        ("dtype", -1, "unknown dtype -1"),
        ("distribution", 5, "unknown distribution 5"),
        ("numel", -1, "negative numel"),
        ("row_length", 0, "empty rows"),
        ("rows_per_slab", -(2**63), "empty rows"),
        ("rows_per_slab", 2**62, "too large slabs"),
        ("global_offset", -1, "negative global offset"),
        ("global_offset", 2**63 - 63, "global indices"),
        ("numel", 2**62, "share memory"),
        ("element_memory_step", 2**61, "too large steps in memory"),
        ("element_memory_step", -1, "negative or too large steps in memory"),
        ("element_memory_step", 0, "share memory"),
        ("data", 0, "without memory"),
        ("data", 2**64 - 8, "beyond the last address"),
        ("data", 4098, "not a multiple of the 4 bytes"),
    ],
)
def test_maps_that_make_no_sense(field: str, value: int, message: str) -> None:
    tensor = torch.full((64,), 7.0)
    table = table_of(tensor)
    assert native.prepare(table) is None
    before = table[field].copy()
    table[field] = value
    with pytest.raises(ValueError, match=f"table row 0: .*({message})"):
        native.prepare(table)
    if field not in ("dtype", "distribution"):
        with pytest.raises(ValueError, match=f"table row 0: .*({message})"):
            native.fill_cpu(table, 0, 1)
    table[field] = before
    assert (tensor == 7.0).all()
    native.fill_cpu(table, 0, 1)
    assert (tensor != 7.0).all()


@pytest.mark.parametrize(
    "distribution",
    [
        (Uniform.code, 2.0, 1.0),
        (Uniform.code, -INFINITY, 1.0),
        (Uniform.code, float("nan"), 1.0),
        (Normal.code, INFINITY, 1.0),
        (Normal.code, 0.0, -1.0),
        (Normal.code, 0.0, float("nan")),
        (TruncNormal.code, 0.0, 1.0, 2.0, 1.0),
        (TruncNormal.code, 0.0, 1.0, INFINITY, INFINITY),
        (TruncNormal.code, 0.0, 1.0, -1.0, float("nan")),
        (TruncNormal.code, float("nan"), 1.0, -1.0, 1.0),
        (Diagonal.code, 1.0, 0, 0, 4, 64),
        (Diagonal.code, 1.0, -1, 9, 4, 64),
        (Diagonal.code, 1.0, 0, 9, 4, 27),
        (Diagonal.code, 1.0, 0, 2**62, 4, 2**62),
        (Diagonal.code, 1.0, 0, 1, 1, 2**63),
        (Diagonal.code, 1.0, 0, 1.5, 4, 64),
        (Diagonal.code, 1.0, 0, float("nan"), 4, 64),
    ],
    ids=str,
)
def test_distributions_that_are_none(distribution: Numbers) -> None:
    with pytest.raises(ValueError, match="table row 0: no such"):
        native.prepare(table_of(torch.zeros(64), distribution))


def test_parameters_that_a_constant_does_not_have() -> None:
    table = table_of(torch.zeros(64), KINDS[0])
    table["parameter"][0, 4] = float("nan")
    with pytest.raises(ValueError, match="table row 0: no such constant"):
        native.prepare(table)


def test_diagonals_whose_next_period_has_no_index() -> None:
    tensor = torch.full((64,), 7.0)
    table = table_of(tensor, Diagonal(1.0, 0, 9, 4, 2**62))
    table["global_offset"] = 2**62 - 80
    assert native.prepare(table) is None
    native.fill_cpu(table, 0, 1)
    assert (tensor == 0.0).all()
    table["global_offset"] = 2**62
    for function in (native.prepare, lambda table: native.fill_cpu(table, 0, 1)):
        with pytest.raises(ValueError, match="table row 0: a diagonal that reaches beyond"):
            function(table)


@pytest.mark.parametrize(
    ("numels", "message"), [((2**58, 2**58, 2**58), "row 2: too many"), ((2**59, 1), "row 1: too many")]
)
def test_tables_of_more_elements_than_there_can_be(numels: tuple[int, ...], message: str) -> None:
    table = np.repeat(table_of(torch.zeros(64)), len(numels))
    table["numel"] = table["row_length"] = numels
    with pytest.raises(ValueError, match=message):
        native.prepare(table)


def test_rows_that_were_not_prepared_or_changed_since() -> None:
    tensor = torch.full((64,), 7.0)
    table = table_of(tensor)
    prepared = copied(table)
    assert native.prepare(prepared) is None
    changed = [table]
    for field, value in (("parameter", (0.0, 2.0, 0.0, 0.0, 0.0)), ("dtype", 3), ("distribution", 1)):
        changed.append(copied(prepared))
        changed[-1][field] = value
    for position in range(table.itemsize - 88, table.itemsize):  # the sampler and its mark
        changed.append(copied(prepared))
        changed[-1].view(np.uint8)[position] ^= 1
    for other in changed:
        with pytest.raises(ValueError, match="row 0: was not prepared, or its distribution has changed since"):
            native.fill_cpu(other, 0, 1)
    assert (tensor == 7.0).all()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data", 4098, "not a multiple of the 4 bytes"),
        ("data", 2**64 - 8, "beyond the last address"),
        ("rows", 0, "a range beyond the matrix"),
        ("row_memory_step", 2, "share memory"),
        ("row_memory_step", 2**61, "too large steps in memory"),
        ("row_index_step", 2**63 - 1, "global indices"),
        ("dtype", -1, "unknown dtype"),
        ("gain", INFINITY, "gain"),
    ],
)
def test_orthogonal_matrices_that_make_no_sense(field: str, value: float, message: str) -> None:
    tensor = torch.full((8, 4), 7.0)
    table = matrix_table_of(tensor)
    table[field] = value
    for function in (lambda: native.orthogonal_cpu(table, 0, 1), lambda: native.check_orthogonal(table)):
        with pytest.raises(ValueError, match=f"table row 0: .*{message}"):
            function()
    assert (tensor == 7.0).all()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data", 2**64 - 8, "beyond the last address"),
        ("global_offset", -1, "global indices"),
        ("global_offset", 2**63 - 1, "global indices"),
        ("element_bytes", 16, "elements of 16 bytes"),
        ("dimensions", [(1, 1, 1)] * 5 + [(2**32, 1, 1)] * 2 + [(32, 1, 1)], "too many elements"),
        ("dimensions", [(1, 1, 1)] * 7 + [(32, -1, 1)], "negative or too large steps in memory"),
        ("dimensions", [(1, 1, 1)] * 7 + [(32, 1, 2**60)], "global indices"),
        ("dimensions", [(-8, 1, 1)] * 2 + [(1, 1, 1)] * 6, "a dimension of size -8"),
    ],
)
def test_fingerprints_that_make_no_sense(field: str, value: Any, message: str) -> None:
    table = hash_table_of(torch.zeros(8, 4))
    table[field] = value
    with pytest.raises(ValueError, match=f"table row 0: .*{message}"):
        native.fingerprint_cpu(table, 1)


def every_function(tensor: torch.Tensor) -> list[tuple[Callable[[Any], object], NDArray[np.void], bool]]:
    """What takes a table, a good one for it that writes to `tensor` (8 x 4), and whether the table is written to."""
    prepared = table_of(tensor)
    assert native.prepare(prepared) is None
    found: list[tuple[Callable[[Any], object], NDArray[np.void], bool]] = [
        (native.prepare, prepared, True),
        (lambda table: native.fill_cpu(table, 0, 1), prepared, False),
        (lambda table: native.orthogonal_cpu(table, 0, 1), matrix_table_of(tensor), False),
        (native.check_orthogonal, matrix_table_of(tensor), False),
        (lambda table: native.fingerprint_cpu(table, 1), hash_table_of(tensor), False),
    ]
    if native.HAS_CUDA:
        found.append((native.cuda_table, prepared, False))
    return found


def test_arrays_that_are_no_tables() -> None:
    tensor = torch.full((8, 4), 7.0)
    for function, good, written in every_function(tensor):
        twice = np.frombuffer(good.tobytes() * 2, good.dtype)
        shifted = np.frombuffer(b"0" + good.tobytes(), np.uint8)[1:].view(good.dtype)
        for wrong in (
            np.frombuffer(good.tobytes() * 4, good.dtype)[::2],
            twice.reshape(2, 1),
            twice.reshape(1, 2),
            twice.reshape(())[...] if twice.size == 1 else good.reshape(()),
            good.view(np.uint8),
            good.view(np.uint64),
            np.zeros(3),
            np.zeros(3, "V8"),
            shifted,
            good.tobytes(),
            memoryview(good.tobytes())[::2],
        ):
            with pytest.raises(ValueError, match="table: expected"):
                function(wrong)
        for wrong in (None, 3, [good], "table", torch.zeros(3), good.astype(object)):
            with pytest.raises((TypeError, ValueError)):
                function(wrong)
        read_only = copied(good)
        read_only.setflags(write=False)
        if written:
            with pytest.raises(ValueError, match="table: expected one that can be written to"):
                function(read_only)
        else:
            before = tensor.clone()
            function(read_only)
            tensor.copy_(before)
        function(good[:0])
    assert (tensor == 7.0).all()


def test_seeds_and_threads() -> None:
    tensor = torch.full((8, 4), 7.0)
    prepared = table_of(tensor)
    assert native.prepare(prepared) is None
    for seed in (-1, 2**64, 1.5, None, "1"):
        with pytest.raises(TypeError):
            native.fill_cpu(prepared, seed, 1)
        with pytest.raises(TypeError):
            native.orthogonal_cpu(matrix_table_of(tensor), seed, 1)
    for threads in (0, -1, -(2**31)):
        for function in (
            lambda threads=threads: native.fill_cpu(prepared, 0, threads),
            lambda threads=threads: native.orthogonal_cpu(matrix_table_of(tensor), 0, threads),
            lambda threads=threads: native.fingerprint_cpu(hash_table_of(tensor), threads),
        ):
            with pytest.raises(ValueError, match=f"threads: expected 1 or more, got {threads}"):
                function()
    with pytest.raises(TypeError):
        native.fill_cpu(prepared, 0, 2**31)
    assert (tensor == 7.0).all()
    native.fill_cpu(prepared, 0, 2**31 - 1)
    native.orthogonal_cpu(matrix_table_of(tensor), 0, 2**31 - 1)
    native.fingerprint_cpu(hash_table_of(tensor), 2**31 - 1)


def test_wrong_instruction_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.full((8, 4), 7.0)
    tables = every_function(tensor)
    for name in ("sse9", "avx2 ", "\udcff", "x" * 100_000):
        monkeypatch.setenv("FASTINIT_FORCE_ISA", name)
        for function, good, _ in (tables[1], tables[2], tables[4]):
            with pytest.raises(ValueError, match="FASTINIT_FORCE_ISA: expected one"):
                function(good)
    assert (tensor == 7.0).all()


@needs_cuda_build
def test_numbers_of_a_table_on_a_device() -> None:
    for address, tasks, chunks in ((0, 1, 1), (12, 1, 1), (64, -1, 1), (64, 1, -1), (64, 2**31, 1), (64, 1, 2**31)):
        with pytest.raises(ValueError, match=r"(address|num_tasks|num_chunks): expected"):
            native.fill_cuda(address, tasks, chunks, 0, 0, 0)
    for address, matrices, shared in ((0, 1, 64), (64, -1, 64), (64, 2**31, 64), (64, 1, -1), (64, 1, 2**20)):
        with pytest.raises(ValueError, match=r"(address|num_matrices|shared_bytes): expected"):
            native.orthogonal_cuda(address, matrices, shared, 0, 0, 0)
    with pytest.raises(ValueError, match="unknown dtype 8"):
        native.orthogonal_cuda_fits(8, 4, 8, 0)


def test_a_tensor_that_is_not_aligned_is_named() -> None:
    tensor = torch.frombuffer(bytearray(4 * 9), dtype=torch.float32, count=8, offset=1)
    with pytest.raises(ValueError, match="odd: its memory begins at an address that is not a multiple of the 4 bytes"):
        fastinit.init_([torch.empty(3), tensor], "normal", names=["even", "odd"], seed=0)
    assert (tensor == 0.0).all()


# ---- Fuzzed ----

EXTREMES = [0, 1, 2, 3, 2**31 - 1, 2**31, 2**32, 2**59, 2**60, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 0x7FF0 << 48]
EXTREMES += [0xFFF0 << 48, 0x7FF8 << 48, 0x7FEF << 48, 0x43E0 << 48, 0xBFF0 << 48]
BYTES = 4096


def mutate(table: NDArray[np.void], rng: random.Random) -> None:
    """Another word, half a word or byte of a row."""
    raw = table.view(np.uint8)
    at = rng.randrange(table.itemsize // 8) * 8
    if rng.random() < 0.2:
        raw[rng.randrange(table.itemsize)] = rng.randrange(256)
    elif rng.random() < 0.3:
        word = int(raw[at : at + 8].view(np.uint64)[0]) + rng.randrange(-3, 4)
        raw[at : at + 8].view(np.uint64)[0] = word % 2**64
    elif rng.random() < 0.3:
        raw[at : at + 4].view(np.uint32)[0] = rng.choice([0, 1, 2, 3, 4, 5, 2**31, 2**32 - 1])
    else:
        raw[at : at + 8].view(np.uint64)[0] = rng.choice([*EXTREMES, rng.randrange(2**64)])


def some_row(memory: torch.Tensor, rng: random.Random) -> NDArray[np.void]:
    """A row of any map that lies within `memory`, BYTES bytes."""
    dtype = rng.choice(list(DTYPES))
    table = np.zeros(1, np.dtype(native.task_dtype()))
    length, rows = rng.randrange(1, 20), rng.randrange(1, 4)
    table["data"] = memory.data_ptr() + dtype.itemsize * rng.randrange(4)
    table["row_length"], table["rows_per_slab"] = length, rows
    table["numel"] = rng.randrange(1, 3 * length * rows)
    table["global_offset"] = rng.choice([0, 1, rng.randrange(3000), 2**40, 2**62])
    table["row_index_step"], table["slab_index_step"] = rng.choice([length, 100]), rng.choice([length * rows, 1000])
    table["element_memory_step"] = step = rng.randrange(1, 3)
    table["row_memory_step"] = step * length
    table["slab_memory_step"] = step * length * rows
    table["dtype"] = DTYPES[dtype]
    describe(table, rng.choice(KINDS))
    return table


def places(table: NDArray[np.void]) -> list[tuple[int, int]]:
    """The address and the global index of every element."""
    row = {name: int(table[name][0]) for name in table.dtype.names or () if name not in ("name_id", "parameter")}
    bytes_of = {number: dtype.itemsize for dtype, number in DTYPES.items()}[row["dtype"]]
    found = []
    for local in range(row["numel"]):
        rows, column = divmod(local, row["row_length"])
        slab, in_slab = divmod(rows, row["rows_per_slab"])
        steps = slab * row["slab_memory_step"] + in_slab * row["row_memory_step"] + column * row["element_memory_step"]
        index = slab * row["slab_index_step"] + in_slab * row["row_index_step"] + column
        found.append((row["data"] + steps * bytes_of, row["global_offset"] + index))
    return found


def filled_alone(table: NDArray[np.void], memory: torch.Tensor) -> NDArray[np.uint8]:
    """What `memory` must hold after a fill: every element by a row of its own."""
    at = places(table)
    bytes_of = {number: dtype.itemsize for dtype, number in DTYPES.items()}[int(table["dtype"][0])]
    values = np.zeros((len(at), 8), np.uint8)
    alone = np.frombuffer(bytearray(table.tobytes() * len(at)), table.dtype)
    alone["data"] = values.ctypes.data + 8 * np.arange(len(at))
    for field in ("numel", "row_length", "rows_per_slab", "element_memory_step"):
        alone[field] = 1
    alone["global_offset"] = [index for _, index in at]
    assert native.prepare(alone) is None
    native.fill_cpu(alone, 3, 1)
    wanted = memory.numpy().copy()
    for (address, _), value in zip(at, values, strict=True):
        begin = address - memory.data_ptr()
        wanted[begin : begin + bytes_of] = value[:bytes_of]
    return wanted


@pytest.mark.slow
def test_fuzzed_tasks() -> None:
    """Refused, or filled as its elements would be alone, and nothing beside them."""
    rng = random.Random(12)
    memory = torch.zeros(BYTES, dtype=torch.uint8)
    outcomes = {"refused": 0, "filled": 0, "elsewhere": 0}
    for _ in range(4000):
        table = some_row(memory, rng)
        for _ in range(rng.randrange(4)):
            mutate(table, rng)
        try:
            prepared = native.prepare(table) is None
        except ValueError:
            prepared = False
        if not prepared:
            with pytest.raises(ValueError, match="table row 0: "):
                native.fill_cpu(table, 3, 1)
            outcomes["refused"] += 1
            continue
        if int(table["numel"][0]) > BYTES:
            outcomes["elsewhere"] += 1
            continue
        at = [address - memory.data_ptr() for address, _ in places(table)]
        if any(not 0 <= address <= BYTES - 8 for address in at):
            outcomes["elsewhere"] += 1
            continue
        memory.fill_(0xA5)
        wanted = filled_alone(table, memory)
        native.fill_cpu(table, 3, 2)
        assert np.array_equal(memory.numpy(), wanted), table
        outcomes["filled"] += 1
    assert min(outcomes.values()) > 30, outcomes
    assert outcomes["filled"] > 500 and outcomes["refused"] > 500, outcomes


def test_fuzzed_bytes_of_prepared_tasks() -> None:
    rng = random.Random(13)
    tensor = torch.full((64,), 7.0)
    good = table_of(tensor)
    assert native.prepare(good) is None
    sampled = good.itemsize - 136  # the parameters, and what follows them
    for _ in range(2000):
        table = copied(good)
        table.view(np.uint8)[sampled + rng.randrange(136)] ^= 1 << rng.randrange(8)
        with pytest.raises(ValueError, match="was not prepared, or its distribution has changed since"):
            native.fill_cpu(table, 0, 1)
    assert (tensor == 7.0).all()


def test_fuzzed_matrices() -> None:
    rng = random.Random(14)
    guarded = torch.full((20, 4), 7.0)
    tensor = guarded[6:14]
    good = matrix_table_of(tensor)
    outcomes = {"refused": 0, "filled": 0}
    for _ in range(2000):
        table = copied(good)
        for _ in range(rng.randrange(3)):
            mutate(table, rng)
        try:
            shared = native.check_orthogonal(table)
        except ValueError:
            shared = None
            with pytest.raises(ValueError, match="table row 0: "):
                native.orthogonal_cpu(table, 0, 1)
            outcomes["refused"] += 1
        row = {name: int(table[name][0]) for name in table.dtype.names or () if name not in ("name_id", "gain")}
        same_memory = all(row[name] == int(good[name][0]) for name in ("data", "row_memory_step", "column_memory_step"))
        in_range = row["end_row"] - row["first_row"] <= 8 and row["end_column"] - row["first_column"] <= 4
        if (
            shared is None
            or not same_memory
            or not in_range
            or row["dtype"] == 1
            or row["rows"] * row["columns"] > 5000
        ):
            continue
        native.orthogonal_cpu(table, 0, 1)
        outcomes["filled"] += 1
    assert (guarded[:6] == 7.0).all() and (guarded[14:] == 7.0).all()
    assert min(outcomes.values()) > 300, outcomes


def test_fuzzed_fingerprints() -> None:
    rng = random.Random(15)
    tensor = torch.arange(32.0).view(8, 4)
    good = hash_table_of(tensor)
    addresses = tensor.data_ptr(), tensor.data_ptr() + 128
    outcomes = {"refused": 0, "summed": 0}
    for _ in range(2000):
        table = copied(good)
        for _ in range(rng.randrange(3)):
            mutate(table, rng)
        begin, bytes_of = int(table["data"][0]), int(table["element_bytes"][0])
        last = sum((size - 1) * step for size, step, _ in table["dimensions"][0].astype(object))
        numel = int(table["numel"][0])
        within = addresses[0] <= begin and begin + (last + 1) * bytes_of <= addresses[1] and numel <= 32
        valid = all(size >= 1 for size, _, _ in table["dimensions"][0].tolist())
        if valid and not within:
            continue  # memory that is somebody else's, as far as anyone can tell
        try:
            native.fingerprint_cpu(table, 1)
            outcomes["summed"] += 1
        except ValueError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 100, outcomes
