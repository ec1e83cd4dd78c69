"""The CUDA backend on a GPU: what the CPU gives, to the bit; one launch; on the current stream, without waiting.

Skipped without a GPU and an extension built for it. With FASTINIT_TEST_CUDA_DEVICE=cpu everything that asks nothing of
CUDA's own runs on the CPU instead, which tests the tests.
"""
# mypy: disable-error-code="no-untyped-call"
# Streams, events and split() of torch have no types.

from __future__ import annotations

import contextlib
import copy
import gc
import math
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import make_golden
import numpy as np
import pytest
import reference
import test_golden
import torch
from conftest import DTYPES, fill_native_row, needs_fma
from reference import DType, Kind
from test_bits import bits
from torch import nn

import fastinit
import fastinit.run.table
from fastinit import _native
from fastinit.cli.demo import GPT2, Size
from fastinit.plans.planned import Plan
from fastinit.rules.lists import plan_tensors
from fastinit.run import engine, rewriting
from fastinit.run.streams import name_id
from fastinit.run.targets import Target
from fastinit.schemes.base import Scheme
from fastinit.schemes.distributions import Constant, Diagonal, Distribution, Normal, TruncNormal, Uniform

DEVICE = torch.device(os.environ.get("FASTINIT_TEST_CUDA_DEVICE", "cuda"))
ON_GPU = DEVICE.type == "cuda"
CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[1]


def _missing() -> str | None:
    if _native.module is None:
        return f"needs the native code: {_native.reason}"
    if ON_GPU and not _native.module.HAS_CUDA:
        return "needs an extension built for CUDA"
    if ON_GPU and not torch.cuda.is_available():
        return "needs a GPU"
    return None


pytestmark = pytest.mark.cuda
if (missing := _missing()) is not None:
    pytest.skip(missing, allow_module_level=True)
needs_gpu = pytest.mark.skipif(not ON_GPU, reason="about CUDA's own")

INFINITY = math.inf
DISTRIBUTIONS: dict[str, Distribution] = {
    "constant": Constant(0.3),
    "uniform": Uniform(-0.7, 1.1),
    "normal": Normal(0.1, 0.8),
    "trunc_normal": TruncNormal(0.0, 0.02, -0.04, 0.04),
    "one-sided trunc_normal": TruncNormal(0.0, 1.0, -0.5, INFINITY),
    "mirrored trunc_normal": TruncNormal(1.0, 0.5, -INFINITY, -0.25),
    "level trunc_normal": TruncNormal(0.0, 1.0, -0.003, 0.002),
    "far trunc_normal": TruncNormal(0.0, 1.0, 4.5, INFINITY),  # every value takes its second word
    "diagonal": Diagonal(0.7, 3, 65, 9, 640),
}
CHUNK = 8192  # values (csrc/cuda/chunks.h)
SIZES = (0, 1, 3, 4, 5, 15, 16, 17, CHUNK - 1, CHUNK, CHUNK + 1, 1_000_003)
MARK = 77.0  # what memory holds before: no distribution here gives it
by_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS.keys())
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


# ---- Filling ----


@dataclass(frozen=True)
class Given:
    """A scheme that is one distribution, whatever the shape."""

    of: Distribution

    def distribution(self, context: fastinit.Context) -> Distribution:
        return self.of


def native() -> ModuleType:
    assert _native.module is not None
    return _native.module


def plan_of(tensors: Mapping[str, torch.Tensor], distribution: Distribution, seed: int | None = 11) -> Plan:
    """A plan for tensors by name; never through torch.nn.init."""
    names = list(tensors)
    return plan_tensors(list(tensors.values()), Given(distribution), names=names, seed=seed, backend="native")


def program_of(entries: Sequence[tuple[str, torch.Tensor, Distribution]]) -> engine.Program:
    """As a plan has it inside, where every tensor may have a distribution of its own."""
    targets = [
        Target(name, tensor, tensor.shape, tensor.dtype, tensor.device, distribution)
        for name, tensor, distribution in entries
    ]
    return engine.Program(targets, "native")


def fill_all(tensors: Mapping[str, torch.Tensor], distribution: Distribution, seed: int = 11) -> None:
    """With any distribution, also a diagonal that a plan would refuse for these shapes."""
    program_of([(name, tensor, distribution) for name, tensor in tensors.items() if tensor.numel()]).run_(seed, None)


def marked(
    shape: int | tuple[int, ...], dtype: torch.dtype = torch.float32, device: torch.device = DEVICE
) -> torch.Tensor:
    return torch.full((shape,) if isinstance(shape, int) else shape, MARK, dtype=dtype, device=device)


def on_cpu(
    name: str, shape: int | tuple[int, ...], distribution: Distribution, dtype: torch.dtype, seed: int = 11
) -> torch.Tensor:
    """What the CPU gives."""
    tensor = marked(shape, dtype, CPU)
    fill_all({name: tensor}, distribution, seed)
    return tensor


class NativeRow(NamedTuple):
    """A row of the native table (csrc/core/task.h): the index map is `fields`, or one whole row."""

    tensor: torch.Tensor
    distribution: Distribution
    name_id: bytes
    fields: Mapping[str, int] = {}  # nobody writes to it


def fill_native_rows(rows: Sequence[NativeRow], seed: int) -> None:
    """Fill tensors on the device by one native table, as conftest.fill_native_row does on the CPU."""
    if not ON_GPU:
        for row in rows:
            fill_native_row(row.tensor, row.distribution, seed=seed, name_id=row.name_id, **row.fields)
        return
    table = np.zeros(len(rows), np.dtype(native().task_dtype()))
    for place, (tensor, distribution, digest, fields) in enumerate(rows):
        entry = table[place : place + 1]
        entry["data"], entry["numel"] = tensor.data_ptr(), tensor.numel()
        entry["row_length"], entry["rows_per_slab"], entry["element_memory_step"] = tensor.numel(), 1, 1
        for field, value in fields.items():
            entry[field] = value
        entry["name_id"] = np.frombuffer(digest, "V16")
        entry["dtype"] = fastinit.run.table.DTYPES[tensor.dtype]
        entry["distribution"] = distribution.code
        entry["parameter"] = distribution.parameters() + (0.0,) * (5 - len(distribution.parameters()))
    assert native().prepare(table) is None
    image, num_chunks = native().cuda_table(table)
    on_device = torch.from_numpy(image).to(DEVICE)
    native().fill_cuda(
        address=on_device.data_ptr(),
        num_tasks=len(rows),
        num_chunks=num_chunks,
        seed=seed,
        device=torch.cuda.current_device(),
        stream=torch.cuda.current_stream().cuda_stream,
    )


# ---- Comparing ----


def assert_same(actual: torch.Tensor, expected: torch.Tensor, what: object = "") -> None:
    assert actual.dtype == expected.dtype and actual.shape == expected.shape, what
    left, right = actual.detach().cpu(), expected.detach().cpu()
    if not torch.equal(bits(left), bits(right)):
        different = (bits(left) != bits(right)).flatten().nonzero().flatten()
        at = int(different[0])
        raise AssertionError(
            f"{what}: {different.numel()} of {actual.numel()} differ, the first at {at}: "
            f"{left.flatten()[at].item()!r}, expected {right.flatten()[at].item()!r}"
        )


def assert_same_parameters(actual: nn.Module, expected: nn.Module) -> None:
    there = dict(actual.named_parameters())
    for name, parameter in expected.named_parameters():
        assert_same(there[name], parameter, name)


def test_comparison_tells_zeros_and_single_elements_apart() -> None:
    zeros = torch.zeros(3, device=DEVICE)
    assert_same(zeros, torch.zeros(3))
    with pytest.raises(AssertionError, match=r"1 of 3 differ, the first at 1: 0\.0, expected -0\.0"):
        assert_same(zeros, torch.tensor([0.0, -0.0, 0.0]))
    with pytest.raises(AssertionError):
        assert_same(zeros, torch.zeros(3, dtype=torch.float64))


# ---- The CPU's bits ----


@by_dtype
@by_distribution
def test_bits_at_all_sizes(distribution: Distribution, dtype: torch.dtype) -> None:
    """In one plan, where the chunks of one tensor follow those of another, and each tensor alone."""
    together = {f"size.{size}": marked(size, dtype) for size in SIZES}
    fill_all(together, distribution)
    for name, size in zip(together, SIZES, strict=True):
        expected = on_cpu(name, size, distribution, dtype)
        alone = marked(size, dtype)
        fill_all({name: alone}, distribution)
        assert_same(together[name], expected, f"{name} of many")
        assert_same(alone, expected, f"{name} alone")


@by_dtype
@by_distribution
def test_bits_at_every_alignment_and_nothing_around(distribution: Distribution, dtype: torch.dtype) -> None:
    places = [(offset, size) for offset in range(1, 8) for size in (1, 5, 33, CHUNK - 1, 2 * CHUNK + 3)]
    wholes = [marked(offset + size + 40, dtype) for offset, size in places]
    views = {
        f"{offset}.{size}": whole[offset : offset + size] for (offset, size), whole in zip(places, wholes, strict=True)
    }
    fill_all(views, distribution)
    for (offset, size), whole in zip(places, wholes, strict=True):
        name = f"{offset}.{size}"
        expected = marked(whole.numel(), dtype, CPU)
        expected[offset : offset + size] = on_cpu(name, size, distribution, dtype)
        assert_same(whole, expected, name)


def views_of(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> dict[str, tuple[torch.Tensor, ...]]:
    """Views of one shape that lie differently in memory, each after the memory that it lies in."""
    numel = math.prod(shape)
    unaligned = marked(numel + 3, dtype, device)
    backwards = marked(shape[::-1], dtype, device)
    padded = marked(tuple(size + 3 for size in shape), dtype, device)
    strided = marked(tuple(2 * size for size in shape), dtype, device)
    columns = marked((*shape[:-1], 3 * shape[-1]), dtype, device)
    found: dict[str, tuple[torch.Tensor, ...]] = {
        "unaligned": (unaligned, unaligned[1 : numel + 1].view(shape)),
        "transposed": (backwards, backwards.permute(tuple(range(len(shape)))[::-1])),
        "padded": (padded, padded[tuple(slice(1, size + 1) for size in shape)]),
        "every second": (strided, strided[tuple(slice(None, None, 2) for _ in shape)]),
        "columns": (columns, columns[..., shape[-1] : 2 * shape[-1]]),
    }
    if len(shape) == 4:
        last = marked((shape[0], shape[2], shape[3], shape[1]), dtype, device)
        found["channels_last"] = (last, last.permute(0, 3, 1, 2))
        assert last.permute(0, 3, 1, 2).is_contiguous(memory_format=torch.channels_last)
    if len(shape) == 5:
        shuffled = marked((shape[2], shape[0], shape[4], shape[1], shape[3]), dtype, device)
        found["shuffled"] = (shuffled, shuffled.permute(1, 3, 0, 4, 2))
    return found


SHAPES = [
    (7,),
    (1000, 37),
    (300, 512),
    (1031, 33),
    (9, 2051),
    (300, 129),
    (3, 5, 7),
    (64, 32, 3, 3),
    (5, 1, 4, 6),
    (3, 4, 2, 5, 6),
    (2, 3, 2, 3, 2, 3),
    (1, 1, 1),
]


@by_dtype
@by_distribution
def test_bits_follow_the_logical_index_in_every_layout(distribution: Distribution, dtype: torch.dtype) -> None:
    """The whole memory is compared, so that nothing outside of the views was written either."""
    views = {f"{shape}.{layout}": view for shape in SHAPES for layout, view in views_of(shape, dtype, DEVICE).items()}
    twins = {f"{shape}.{layout}": view for shape in SHAPES for layout, view in views_of(shape, dtype, CPU).items()}
    fill_all({name: view for name, (_, view) in views.items()}, distribution)
    fill_all({name: view for name, (_, view) in twins.items()}, distribution)
    for name, (memory, view) in views.items():
        assert_same(memory, twins[name][0], name)
        assert (view != MARK).all(), name


@by_dtype
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "padded"])
@pytest.mark.parametrize("zero_row", [0, 17, 49])
def test_bits_of_embeddings_with_a_padding_row(zero_row: int, layout: str, dtype: torch.dtype) -> None:
    def weights(device: torch.device) -> torch.Tensor:
        if layout == "transposed":
            return marked((300, 50), dtype, device).t()
        if layout == "padded":
            return marked((50, 310), dtype, device)[:, 5:305]
        return marked((50, 300), dtype, device)

    embedding = nn.Embedding(50, 300, padding_idx=zero_row, device=DEVICE, dtype=dtype)
    embedding.weight.data = weights(DEVICE)
    twin = nn.Embedding(50, 300, padding_idx=zero_row, dtype=dtype)
    twin.weight.data = weights(CPU)
    for module in (embedding, twin):
        fastinit.init_model_(module, "normal", seed=5, backend="native")
    assert_same_parameters(embedding, twin)
    assert (embedding.weight[zero_row] == 0).all() and embedding.weight[zero_row - 1].count_nonzero() > 290


@by_dtype
def test_identities_equal_those_of_torch(dtype: torch.dtype) -> None:
    matrix, wide, strided = marked((130, 70), dtype), marked((70, 300), dtype), marked((70, 130), dtype).t()
    for tensor in (matrix, wide, strided):
        fastinit.init_([tensor], fastinit.Eye(), backend="native")
        assert_same(tensor, torch.eye(*tensor.shape, dtype=dtype), tuple(tensor.shape))
    for shape in ((12, 5, 3), (12, 7, 4, 3), (6, 9, 3, 2, 5)):
        for groups in (1, 3):
            tensor, expected = marked(shape, dtype), torch.empty(shape, dtype=dtype)
            fastinit.init_([tensor], fastinit.Dirac(groups), backend="native")
            assert_same(tensor, torch.nn.init.dirac_(expected, groups), (shape, groups))


OFFSETS = (0, 1, 2, 3, 4, 63, 8191, 2**31 - 7, 2**32 - 9, 2**34 - 5, 2**40 + 1, 2**62 - 5, 2**62)


@by_dtype
@by_distribution
def test_bits_from_any_global_index(distribution: Distribution, dtype: torch.dtype) -> None:
    """Contiguous shards: around the places where an index, its word or its block outgrows 32 bits."""
    rows, expected = [], []
    for offset in OFFSETS:
        for size in (1, 4, 30, CHUNK + 5):
            fields = {"global_offset": offset}
            rows.append(NativeRow(marked(size, dtype), distribution, name_id("w"), fields))
            twin = marked(size, dtype, CPU)
            fill_native_row(twin, distribution, seed=3, name_id=name_id("w"), **fields)
            expected.append(twin)
    fill_native_rows(rows, seed=3)
    for row, twin in zip(rows, expected, strict=True):
        assert_same(row.tensor, twin, f"{row.fields} {twin.numel()}")


def random_index_map(random: np.random.Generator) -> tuple[dict[str, int], tuple[int, ...], tuple[int, ...], int]:
    """The fields of a map of slabs, rows and columns with gaps; and sizes, strides and offset of its memory."""
    kind = random.choice(["any", "long rows", "neighbouring rows"])
    longest = 5000 if kind == "long rows" else 200
    length, rows, slabs = (int(random.integers(1, most)) for most in (longest, 40, 5))
    element_step, row_gap, slab_gap = (int(random.integers(1, 4)), int(random.integers(9)), int(random.integers(9)))
    if kind == "long rows":
        element_step = 1
    row_step = length * element_step + row_gap
    slab_step = rows * row_step + slab_gap
    if kind == "neighbouring rows":
        row_step, element_step = 1, rows + row_gap
        slab_step = length * element_step + slab_gap
    row_index_step = length + int(random.integers(3)) * int(random.integers(1, 1000))
    offset = int(random.choice(OFFSETS))
    fields = {
        "global_offset": offset,
        "row_length": length,
        "rows_per_slab": rows,
        "row_index_step": row_index_step,
        "slab_index_step": rows * row_index_step + int(random.integers(3)) * 1000,
        "element_memory_step": element_step,
        "row_memory_step": row_step,
        "slab_memory_step": slab_step,
    }
    return fields, (slabs, rows, length), (slab_step, row_step, element_step), int(random.integers(9))


@by_dtype
@by_distribution
def test_bits_of_shards_with_any_index_map(distribution: Distribution, dtype: torch.dtype) -> None:
    """Shards of columns, of channels, in memory with gaps. The whole memory is compared."""
    random = np.random.default_rng(1)
    rows, memories, expected = [], [], []
    for _ in range(40):
        fields, sizes, strides, begin = random_index_map(random)
        numel = begin + sizes[0] * strides[0] + 20
        memory, twin = marked(numel, dtype), marked(numel, dtype, CPU)
        rows.append(NativeRow(memory.as_strided(sizes, strides, begin), distribution, name_id("w"), fields))
        fill_native_row(twin.as_strided(sizes, strides, begin), distribution, seed=3, name_id=name_id("w"), **fields)
        memories.append(memory)
        expected.append(twin)
    fill_native_rows(rows, seed=3)
    for row, memory, twin in zip(rows, memories, expected, strict=True):
        assert_same(memory, twin, row.fields)


def test_a_shard_of_columns_equals_the_slice_of_the_whole() -> None:
    whole = marked((500, 1000))
    plan_of({"w": whole}, DISTRIBUTIONS["normal"], seed=3).run_()
    shard = marked((500, 300))
    fields = {"global_offset": 100, "row_length": 300, "rows_per_slab": 500, "row_index_step": 1000}
    fill_native_rows(
        [NativeRow(shard, DISTRIBUTIONS["normal"], name_id("w"), {**fields, "row_memory_step": 300})], seed=3
    )
    assert_same(shard, whole[:, 100:400])


# ---- Golden values, and the reference that shares no code with either backend ----


def on_device(kind: Kind, parameters: tuple[float, ...], dtype: DType, seed: int, name: str, count: int) -> Any:
    tensor = marked(count, getattr(torch, dtype))
    # Without the planner, which refuses what a golden case has: a constant beyond the range of its dtype.
    program_of([(name, tensor, test_golden.scheme(kind, parameters).distribution(fastinit.Context(())))]).run_(
        seed, None
    )
    return test_golden.as_values(tensor.cpu())


@pytest.mark.parametrize(("case", "dtype"), test_golden.golden_cases())
def test_golden_values(case: dict[str, Any], dtype: DType) -> None:
    golden = test_golden.GOLDEN
    kind, parameters = case["kind"], tuple(float(parameter) for parameter in case["parameters"])
    expected = case["values"][dtype]
    if expected is None:
        with pytest.raises(ValueError, match="no value of"):
            on_device(kind, parameters, dtype, case["seed"], case["name"], 1)
        return
    values = on_device(kind, parameters, dtype, case["seed"], case["name"], golden["hashed"])
    assert make_golden.bit_patterns(values[: make_golden.COUNT]) == expected["first"]
    assert make_golden.digest(values) == expected["sha256"]
    later = marked(make_golden.COUNT, getattr(torch, dtype))
    distribution = test_golden.scheme(kind, parameters).distribution(fastinit.Context(()))
    fields = {"global_offset": golden["later_index"]}
    fill_native_rows([NativeRow(later, distribution, name_id(case["name"]), fields)], case["seed"])
    assert make_golden.bit_patterns(test_golden.as_values(later.cpu())) == expected["later"]


@pytest.mark.parametrize("entry", test_golden.GOLDEN["names"], ids=lambda entry: ascii(entry["name"])[:20])
def test_golden_streams(entry: dict[str, Any]) -> None:
    """The device derives streams by itself. U[-2^31, 2^31] in float64 shows the bits of a word."""
    for expected in entry["streams"]:
        bounds = (-(2.0**31), 2.0**31)
        values = on_device("uniform", bounds, "float64", expected["seed"], entry["name"], 2)
        upper = np.floor(values).astype(np.int64).astype(np.uint64).astype(np.uint32)
        words = expected["words"].split()
        assert [f"{int(word):08x}" for word in upper] == [words[1], words[3]]


@pytest.mark.filterwarnings("ignore:.* many values are the same", "ignore:.* which are zero in")
def test_reference_on_any_numbers() -> None:
    """Random distributions, down to the least and up to the largest numbers."""
    random = np.random.default_rng(100)
    compared = 0
    for _ in range(600):
        kind, parameters = test_golden.any_distribution(random)
        dtype: DType = random.choice(test_golden.DTYPES)
        count = int(random.choice([1000, 9000])) if random.integers(2) else int(random.integers(1, 70))
        tensor = marked(count, getattr(torch, dtype))
        try:
            scheme = test_golden.scheme(kind, parameters)
            fastinit.init_([tensor], scheme, names=["w"], seed=7, backend="native")
        except ValueError:  # what is refused is the same for all devices: test_golden.py
            continue
        expected = reference.sample(kind, parameters, dtype, 7, "w", np.arange(count))
        compared += 1
        try:
            test_golden.assert_same(test_golden.as_values(tensor.cpu()), expected)
        except AssertionError as error:
            raise AssertionError(f"{kind}{parameters} in {dtype}: {error}") from error
    assert compared > 200


@pytest.mark.parametrize(("kind", "parameters"), test_golden.EDGES, ids=str)
def test_reference_at_words_on_the_edge(kind: Kind, parameters: tuple[float, ...]) -> None:
    """Words that 2^32 draws would hardly meet: the streams are made for them, Philox being a bijection."""
    distribution = test_golden.scheme(kind, parameters).distribution(fastinit.Context(()))
    words = test_golden.edge_words(kind, parameters)
    words += [0] * (-len(words) % 4)
    rows, expected = [], []
    for begin in range(0, len(words), 4):
        block = tuple(words[begin : begin + 4])
        digest, stream, index = test_golden.place_of(block, seed=9)
        dtypes: tuple[DType, ...] = ("float32", "float16", "bfloat16")
        for dtype in dtypes:
            values = reference.sample_stream(kind, parameters, dtype, stream, index + np.arange(4))
            expected.append(values)
            tensor = marked(4, getattr(torch, dtype))
            rows.append(NativeRow(tensor, distribution, digest, {"global_offset": index}))
        long_words = [words[begin] << 32, words[begin + 1] << 32 | 0xFFFFFFFF]
        digest, stream, index = test_golden.place_of(
            tuple(part for word in long_words for part in (word & 0xFFFFFFFF, word >> 32)), seed=9
        )
        expected.append(reference.sample_stream(kind, parameters, "float64", stream, index // 2 + np.arange(2)))
        tensor = marked(2, torch.float64)
        rows.append(NativeRow(tensor, distribution, digest, {"global_offset": index // 2}))
    fill_native_rows(rows, seed=9)
    for row, values in zip(rows, expected, strict=True):
        test_golden.assert_same(test_golden.as_values(row.tensor.cpu()), values)


# ---- Models and lists ----


def convolutional() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 7, bias=False),
        nn.BatchNorm2d(16),
        nn.Conv2d(16, 32, 3, groups=4),
        nn.GroupNorm(4, 32),
        nn.ConvTranspose2d(32, 8, 4),
        nn.Conv1d(5, 6, 3),
        nn.Conv3d(2, 3, 3),
        nn.Linear(129, 65),
        nn.Embedding(11, 6, padding_idx=2),
        nn.LSTM(6, 5),
    )


def channels_last(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    return model


def transformer() -> GPT2:
    return GPT2(Size(layers=2, width=96, heads=4, vocabulary=1003, context=64))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "transformer": transformer,
    "convolutional": convolutional,
    "convolutional, channels_last": lambda: channels_last(convolutional()[:5]),
}
MODEL_SCHEMES: dict[str, str | Scheme] = {
    "xavier_uniform": "xavier_uniform",
    "kaiming_normal": "kaiming_normal",
    "lecun_normal": "lecun_normal",
    "trunc_normal": fastinit.TruncNormal(0.0, 0.02, (-2.0, 2.0), unit="sigma"),
}


@by_dtype
@pytest.mark.parametrize("scheme", MODEL_SCHEMES.values(), ids=MODEL_SCHEMES.keys())
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_bits_of_whole_models(make: Callable[[], nn.Module], scheme: str | Scheme, dtype: torch.dtype) -> None:
    twin = make().to(dtype)
    model = copy.deepcopy(twin).to(DEVICE)
    for each in (model, twin):
        fastinit.init_model_(each, scheme, fan="torch", seed=3, backend="native")
    assert_same_parameters(model, twin)


def test_models_built_under_fused_and_deferred_have_the_bits_of_the_cpu() -> None:
    with fastinit.fused(seed=3):
        twin = transformer()
    with torch.device(DEVICE), fastinit.fused(seed=3):
        model = transformer()
    with fastinit.deferred():
        pending = transformer()
    fastinit.materialize_(pending, "own", seed=3, device=DEVICE)
    for each in (model, pending):
        assert all(parameter.device.type == DEVICE.type for parameter in each.parameters())
        assert_same_parameters(each, twin)


def test_code_under_fused_that_moves_its_model_has_the_bits_of_the_cpu() -> None:
    with fastinit.fused(seed=4):
        model = nn.Sequential(nn.Linear(30, 50).to(DEVICE), nn.Conv2d(3, 4, 5, device=DEVICE))
        nn.init.trunc_normal_(model[0].weight, std=0.02)
        with torch.no_grad():
            model[1].weight.mul_(0.5)
    with fastinit.fused(seed=4):
        twin = nn.Sequential(nn.Linear(30, 50), nn.Conv2d(3, 4, 5))
        nn.init.trunc_normal_(twin[0].weight, std=0.02)
        with torch.no_grad():
            twin[1].weight.mul_(0.5)
    assert_same_parameters(model, twin)


FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "uniform_": (-0.5, 1.5),
    "normal_": (0.5, 2.0),
    "trunc_normal_": (0.0, 1.0, -1.5, 2.0),
    "constant_": (0.3,),
    "ones_": (),
    "eye_": (),
    "xavier_uniform_": (2.0,),
    "xavier_normal_": (),
    "kaiming_uniform_": (1.0, "fan_out"),
    "kaiming_normal_": (),
    "sparse_": (0.3,),
}


@by_dtype
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_that_bear_the_names_of_torch_have_the_bits_of_the_cpu(name: str, dtype: torch.dtype) -> None:
    function = getattr(fastinit.functional, name)
    for shape in ((7, 5), (300, 70)):
        results = []
        for device in (DEVICE, CPU):
            torch.manual_seed(21)
            results.append(function(marked(shape, dtype, device), *FUNCTIONS[name]))
        assert_same(results[0], results[1], shape)


@needs_gpu
def test_functions_that_bear_the_names_of_torch_take_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastinit.functional, "_run_plan", lambda *arguments: pytest.fail("took the long way"))
    tensor = marked((300, 70))
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    for where in (torch.cuda.current_stream(), stream):
        with torch.cuda.stream(where):
            torch.cuda._sleep(10**7)  # whoever writes on another stream is earlier than the zeros
            tensor.zero_()
            torch.manual_seed(5)
            version, launches = tensor._version, native().cuda_launches()
            fastinit.functional.normal_(tensor)
            assert native().cuda_launches() == launches + 1 and tensor._version == version + 1
        where.synchronize()
        torch.manual_seed(5)
        assert_same(tensor, fastinit.functional.normal_(marked((300, 70), device=CPU)))


@needs_gpu
def test_functions_that_bear_the_names_of_torch_are_refused_in_graphs(graph: Any) -> None:
    tensor, other = marked(1000), marked(1000)
    fastinit.functional.normal_(tensor)
    before = tensor.clone()
    with torch.cuda.graph(graph):
        other.zero_()  # torch warns of a graph of nothing
        with pytest.raises(ValueError, match="seed: expected an int while a CUDA graph is captured"):
            fastinit.functional.normal_(tensor)
    graph.replay()
    assert_same(tensor, before)


@pytest.fixture
def ranks_of_four() -> Iterator[Callable[[int], None]]:
    """Makes this process be any rank of four, beside which there are no others."""
    pytest.importorskip("torch.testing._internal.distributed.fake_pg")  # registers the backend

    def become(rank: int) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        torch.distributed.init_process_group("fake", store=torch.distributed.HashStore(), rank=rank, world_size=4)

    yield become
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_shards_are_slices_of_what_the_cpu_gives(ranks_of_four: Callable[[int], None]) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    rows, columns = 50, 36
    whole = on_cpu("w", (rows, columns), DISTRIBUTIONS["normal"], torch.bfloat16)
    for rank in range(4):
        ranks_of_four(rank)
        mesh = init_device_mesh(DEVICE.type, (4,))
        for dimension in (0, 1):
            expected = whole.chunk(4, dimension)[rank]
            local = marked(tuple(expected.shape), torch.bfloat16)
            shard = DTensor.from_local(
                local, mesh, [Shard(dimension)], run_check=False, shape=whole.shape, stride=whole.stride()
            )
            plan_of({"w": shard}, DISTRIBUTIONS["normal"]).run_()
            assert_same(local, expected, (rank, dimension))


def test_models_of_several_dtypes_and_devices_in_one_plan() -> None:
    tensors = {
        f"{number}": marked((number + 3, 5), DTYPES[number % 4], DEVICE if number % 3 else CPU) for number in range(30)
    }
    plan_of(tensors, DISTRIBUTIONS["normal"]).run_()
    for name, tensor in tensors.items():
        assert tensor.device.type == (DEVICE.type if int(name) % 3 else "cpu")
        assert_same(tensor, on_cpu(name, tuple(tensor.shape), DISTRIBUTIONS["normal"], tensor.dtype), name)


@needs_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_devices_in_one_plan() -> None:
    devices = [torch.device("cuda", index) for index in range(2)]
    tensors = {f"{number}": marked((number + 3, 500), device=devices[number % 2]) for number in range(20)}
    plan = plan_of(tensors, DISTRIBUTIONS["normal"])
    before = native().cuda_launches()
    plan.run_()
    assert native().cuda_launches() == before + 2, "one a device"
    assert torch.cuda.current_device() == 0
    for name, tensor in tensors.items():
        assert_same(tensor, on_cpu(name, tuple(tensor.shape), DISTRIBUTIONS["normal"], tensor.dtype), name)
    with torch.cuda.device(1):  # another current device changes nothing
        plan.run_()
    for name, tensor in tensors.items():
        assert_same(tensor, on_cpu(name, tuple(tensor.shape), DISTRIBUTIONS["normal"], tensor.dtype), name)


def mixed_entries(count: int) -> list[tuple[str, torch.Tensor, Distribution]]:
    """Tensors of all distributions and dtypes, of many sizes, some of them strided."""
    kinds = list(DISTRIBUTIONS.values())
    entries = []
    for number in range(count):
        rows, columns = number * 37 % 61 + 1, number * 53 % 97 + 1
        tensor = marked((rows, columns), DTYPES[number // len(kinds) % 4])
        entries.append((f"mixed.{number}", tensor.t() if number % 7 == 0 else tensor, kinds[number % len(kinds)]))
    return entries


def assert_entries(entries: Sequence[tuple[str, torch.Tensor, Distribution]], seed: int) -> None:
    for name, tensor, distribution in entries:
        assert_same(tensor, on_cpu(name, tuple(tensor.shape), distribution, tensor.dtype, seed), name)


def test_tensors_of_every_kind_in_one_plan() -> None:
    entries = mixed_entries(600)
    program_of(entries).run_(11, None)
    assert_entries(entries, 11)


def test_seeds_and_names_decide_and_runs_repeat() -> None:
    tensor = marked(70_001)
    outcomes = []
    for seed in (1, 2, 2**32 + 1, 2**64 - 1, 1):
        plan = plan_of({"w": tensor}, DISTRIBUTIONS["uniform"], seed)
        plan.run_()
        outcomes.append(tensor.clone())
        assert_same(tensor, on_cpu("w", 70_001, DISTRIBUTIONS["uniform"], torch.float32, seed), seed)
        tensor.fill_(MARK)
        plan.run_()
        assert_same(tensor, outcomes[-1], "the same plan again")
    assert_same(outcomes[0], outcomes[4])
    assert not any(torch.equal(outcomes[0], other) for other in outcomes[1:4])
    plan_of({"another": tensor}, DISTRIBUTIONS["uniform"], 1).run_()
    assert not torch.equal(tensor, outcomes[0])


def test_a_seed_drawn_from_torch_is_the_same_for_both_devices() -> None:
    outcomes = []
    for device in (DEVICE, CPU):
        torch.manual_seed(5)
        tensors = {"first": marked(1000, device=device), "second": marked(1000, device=device)}
        plan = plan_of(tensors, DISTRIBUTIONS["normal"], seed=None)
        plan.run_()
        outcomes.append(tensors["second"].clone())
        plan.run_()
        assert not torch.equal(tensors["second"], outcomes[-1]), "a second run draws another seed"
    assert_same(*outcomes)
    generator = torch.Generator(DEVICE).manual_seed(5)
    tensor = marked(1000)
    fastinit.init_([tensor], "normal", generator=generator, backend="native")
    again = marked(1000)
    fastinit.init_([again], "normal", generator=generator.manual_seed(5), backend="native")
    assert_same(tensor, again)


def test_order_and_company_change_nothing() -> None:
    """A hundred runs, the tensors in another order each time, and each time without some of them."""
    random = np.random.default_rng(0)
    entries = mixed_entries(40)
    program_of(entries).run_(11, None)
    expected = [bits(tensor).clone() for _, tensor, _ in entries]
    for _ in range(100):
        for _, tensor, _ in entries:
            tensor.fill_(MARK)
        chosen = random.permutation(len(entries))[: int(random.integers(1, len(entries) + 1))]
        program_of([entries[number] for number in chosen]).run_(11, None)
        for number in chosen:
            assert torch.equal(bits(entries[number][1]), expected[number]), entries[number][0]


# ---- At home in torch ----


def test_leaves_that_require_grad_stay_leaves_and_version_counters_are_bumped() -> None:
    module = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 5)).to(DEVICE)
    loss = module(torch.ones(2, 30, device=DEVICE)).square().sum()
    before = [parameter._version for parameter in module.parameters()]
    fastinit.init_model_(module, "xavier_uniform", backend="native")
    for parameter, old in zip(module.parameters(), before, strict=True):
        assert parameter._version > old
        assert parameter.requires_grad and parameter.is_leaf and parameter.grad_fn is None
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_inference_tensors_are_written_in_inference_mode_only() -> None:
    with torch.inference_mode():
        tensor = marked(1000)
        fastinit.init_([tensor], "normal", names=["w"], seed=11, backend="native")
        assert_same(tensor, on_cpu("w", 1000, Normal(0.0, 1.0), torch.float32))
    with pytest.raises(ValueError, match="inference tensor"):
        fastinit.init_([tensor], "normal")


def test_fallback_is_announced_once_and_torch_can_be_asked_for() -> None:
    engine._warn_once.cache_clear()
    tensors = [torch.zeros(10, 10, dtype=torch.complex64, device=DEVICE) for _ in range(2)]
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                fastinit.init_([*tensors, marked((5, 10))], "orthogonal", seed=1)
    finally:
        engine._warn_once.cache_clear()
    said = [str(each.message) for each in caught if issubclass(each.category, fastinit.FallbackWarning)]
    assert len(said) == 1 and "complex64" in said[0]
    assert all((tensor != 0).all() for tensor in tensors)
    with pytest.raises(ValueError, match=r"0: backend='native' cannot fill it: .*complex64"):
        fastinit.init_(tensors, "orthogonal", backend="native")
    by_torch = [marked(50), marked(50)]
    for tensor in by_torch:
        fastinit.init_([tensor], "normal", seed=1, backend="torch")
    assert_same(*by_torch)
    assert (by_torch[0] != MARK).all()


# ---- Errors ----


def two_parameters() -> nn.ParameterDict:
    return nn.ParameterDict({"first": nn.Parameter(marked((4, 4))), "weight": nn.Parameter(marked((8, 6)))})


@needs_gpu
def test_a_tensor_moved_to_another_device_is_refused() -> None:
    model = two_parameters()
    plan = fastinit.plan(model, "normal", seed=0, backend="native")
    model["weight"].data = model["weight"].data.cpu()
    launches = native().cuda_launches()
    with pytest.raises(ValueError, match=r"weight: planned as \(8, 6\) .* on cuda:0, is now .* on cpu; make"):
        plan.run_()
    assert (model["first"] == MARK).all() and (model["weight"] == MARK).all()
    assert native().cuda_launches() == launches


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor[:4],
        lambda tensor: tensor.double(),
        lambda tensor: tensor.t().contiguous(),
        lambda tensor: torch.cat([tensor, tensor]),
    ],
    ids=["shorter", "another dtype", "another shape", "longer"],
)
def test_tensors_changed_after_planning_are_refused(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    model = two_parameters()
    plan = fastinit.plan(model, "normal", seed=0, backend="native")
    model["weight"].data = change(model["weight"].data)
    with pytest.raises(ValueError, match=r"weight: planned as \(8, 6\) .*, is now .*; make a new plan"):
        plan.run_()
    assert all((parameter == MARK).all() for parameter in model.parameters())


def test_storage_freed_or_resized_after_planning_is_refused() -> None:
    for size in (0, 8):
        model = two_parameters()
        plan = fastinit.plan(model, "normal", seed=0, backend="native")
        plan.run_()  # a second run must look again
        with torch.no_grad():
            model["first"].fill_(MARK)
        storage = model["weight"].data.untyped_storage()
        storage.resize_(size)
        with pytest.raises(ValueError, match=f"weight: its storage of {size} bytes is smaller"):
            plan.run_()
        assert (model["first"] == MARK).all()
        storage.resize_(8 * 6 * 4)
        plan.run_()  # memory again, wherever it is now
        assert_same(model["weight"], on_cpu("weight", (8, 6), Normal(0.0, 1.0), torch.float32, seed=0))


def test_tensors_moved_within_the_device_are_followed() -> None:
    model = two_parameters()
    plan = fastinit.plan(model, "normal", seed=0, backend="native")
    plan.run_()
    old = model["weight"].data
    old.fill_(MARK)
    model["weight"].data = marked((8, 6))
    plan.run_()
    assert (old == MARK).all()
    assert_same(model["weight"], on_cpu("weight", (8, 6), Normal(0.0, 1.0), torch.float32, seed=0))


def test_tensors_that_share_memory_are_refused() -> None:
    base = marked(20)
    with pytest.raises(ValueError, match="second: shares memory with first"):
        fastinit.init_([base[:12], base[8:]], "normal", names=["first", "second"], backend="native")
    with pytest.raises(ValueError, match=r"w: several elements share memory"):
        fastinit.init_([marked((3, 1)).expand(3, 4)], "normal", names=["w"], backend="native")
    assert (base == MARK).all()


@needs_gpu
def test_a_device_that_is_not_there_is_an_error_and_others_stay_usable() -> None:
    tensor = marked(1000)
    table = fastinit.run.table.Table([Target("w", tensor, tensor.shape, tensor.dtype, tensor.device, Normal(0.0, 1.0))])
    image, num_chunks = native().cuda_table(table.rows)
    on_gpu = torch.from_numpy(image).to(DEVICE)
    arguments = {"address": on_gpu.data_ptr(), "num_tasks": 1, "num_chunks": num_chunks, "seed": 11, "stream": 0}
    launches = native().cuda_launches()
    for ordinal in (torch.cuda.device_count(), -1):
        with pytest.raises(RuntimeError, match=r"CUDA error while .*: cudaErrorInvalidDevice, "):
            native().fill_cuda(device=ordinal, **arguments)
    assert native().cuda_launches() == launches
    assert (tensor == MARK).all()  # torch finds no error of ours
    torch.cuda.synchronize()
    native().fill_cuda(device=0, **arguments)
    torch.cuda.synchronize()
    assert_same(tensor, on_cpu("w", 1000, Normal(0.0, 1.0), torch.float32))
    plan_of({"another": tensor}, DISTRIBUTIONS["uniform"]).run_()
    assert_same(tensor, on_cpu("another", 1000, DISTRIBUTIONS["uniform"], torch.float32))


@needs_gpu
def test_a_table_that_finds_no_memory_is_an_error_and_nothing_is_written() -> None:
    tensors = {f"{number}": tensor for number, tensor in enumerate(marked((20_000, 4)).unbind())}
    plan = plan_of(tensors, DISTRIBUTIONS["normal"])  # its table takes some 5 MB
    launches = native().cuda_launches()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.0)
    hoard = []
    try:
        with contextlib.suppress(torch.cuda.OutOfMemoryError):
            for _ in range(1000):  # what is left of the memory that torch has already
                hoard.append(torch.empty(2 << 20, dtype=torch.uint8, device=DEVICE))
        with pytest.raises(torch.cuda.OutOfMemoryError):
            plan.run_()
    finally:
        hoard.clear()
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert native().cuda_launches() == launches
    assert all((tensor == MARK).all() for tensor in list(tensors.values())[::1000])
    plan.run_()
    assert native().cuda_launches() == launches + 1
    assert_same(tensors["19999"], on_cpu("19999", 4, DISTRIBUTIONS["normal"], torch.float32))


# ---- Blending ----


def blend_all(tensors: Mapping[str, torch.Tensor], distribution: Distribution) -> None:
    """Nothing may be left for other ways than the kernel."""
    entries = [(name, tensor, distribution) for name, tensor in tensors.items() if tensor.numel()]
    assert program_of(entries).blend_in_place(0.75, -0.3, 11) == []


@by_dtype
@by_distribution
def test_blends_of_every_layout_have_the_bits_of_the_cpu(distribution: Distribution, dtype: torch.dtype) -> None:
    views = {f"{shape}.{layout}": view for shape in SHAPES for layout, view in views_of(shape, dtype, DEVICE).items()}
    twins = {f"{shape}.{layout}": view for shape in SHAPES for layout, view in views_of(shape, dtype, CPU).items()}
    for size in SIZES:
        views[f"{size}"], twins[f"{size}"] = (
            (memory, memory[2:-1]) for memory in (marked(size + 3, dtype, DEVICE), marked(size + 3, dtype, CPU))
        )
    blend_all({name: view for name, (_, view) in views.items()}, distribution)
    blend_all({name: view for name, (_, view) in twins.items()}, distribution)
    for name, (memory, _) in views.items():
        assert_same(memory, twins[name][0], name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_old_number_is_blended_as_by_the_cpu(dtype: torch.dtype) -> None:
    old = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    here, there = old.to(DEVICE, copy=True), old.clone()
    for tensor in (here, there):
        blend_all({"w": tensor}, DISTRIBUTIONS["normal"])
    assert_same(here, there)


@by_dtype
@by_distribution
def test_masked_writes_of_every_layout_have_the_bits_of_the_cpu(distribution: Distribution, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    for shape in SHAPES:
        views, twins = views_of(shape, dtype, DEVICE), views_of(shape, dtype, CPU)
        for layout, (memory, view) in views.items():
            if view.numel() == 0:
                continue
            mask = torch.rand(view.shape, generator=generator) < 0.6
            for tensor in (view, twins[layout][1]):
                target = Target("w", tensor, tensor.shape, dtype, tensor.device, distribution)
                rewriting.write_where([(target, mask.to(tensor.device))], "native", 11)
            assert_same(memory, twins[layout][0], f"{shape}.{layout}")


@needs_gpu
def test_a_blend_is_one_launch_and_makes_no_memory() -> None:
    tensors = {f"{number}": marked((1000, 4 * number + 1)) for number in range(20)}
    plan = plan_of(tensors, DISTRIBUTIONS["normal"])
    plan.blend_(0.5, 0.5)
    torch.cuda.reset_peak_memory_stats()
    before, held = native().cuda_launches(), torch.cuda.memory_allocated()
    plan.blend_(0.5, 0.5)
    assert native().cuda_launches() == before + 1
    assert torch.cuda.max_memory_allocated() == held


@needs_gpu
def test_a_masked_write_is_one_launch() -> None:
    tensors = {f"{number}": marked((1000, 4 * number + 1)) for number in range(20)}
    masks = {name: torch.ones_like(tensor, dtype=torch.bool) for name, tensor in tensors.items()}
    plan = plan_of(tensors, DISTRIBUTIONS["normal"])
    before = native().cuda_launches()
    plan.run_(where=masks)
    assert native().cuda_launches() == before + 1


# ---- One launch, on the current stream, without waiting ----


@needs_gpu
@pytest.mark.parametrize("count", [1, 600])
def test_one_launch_for_tensors_of_every_kind(count: int) -> None:
    program = program_of(mixed_entries(count))
    for seed in (11, 12):
        before = native().cuda_launches()
        program.run_(seed, None)
        assert native().cuda_launches() == before + 1


def test_one_launch_for_ten_thousand_tensors() -> None:
    memory = marked((10_000, 1000))
    plan = plan_of({f"{number}": row for number, row in enumerate(memory.unbind())}, DISTRIBUTIONS["uniform"])
    before = native().cuda_launches() if ON_GPU else 0
    plan.run_()
    if ON_GPU:
        assert native().cuda_launches() == before + 1
    values = memory.cpu()
    assert (values != MARK).all()
    for number in (0, 1, 4999, 9998, 9999):
        assert_same(values[number], on_cpu(f"{number}", 1000, DISTRIBUTIONS["uniform"], torch.float32), number)


LONG = 600_000_000  # clock cycles: 0.3 s at a full clock, more at a resting one


def warmed_up_stream() -> torch.cuda.Stream:
    """A stream of its own, with what the first use of anything takes (memory, loading of kernels) behind it."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(1000)
        plan_of({"warm": marked(1000)}, DISTRIBUTIONS["normal"]).run_()
        torch.cuda.Event().record()
    torch.cuda.synchronize()
    return stream


@needs_gpu
def test_runs_on_the_current_stream_and_does_not_wait() -> None:
    tensor, seen_early, seen_after = (marked(1_000_003) for _ in range(3))
    plan = plan_of({"w": tensor}, DISTRIBUTIONS["normal"])
    stream = warmed_up_stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(LONG)
        awake = torch.cuda.Event()
        awake.record()
        plan.run_()  # the first, which uploads the table
        plan.run_()
        returned_at_once = not awake.query()
        seen_after.copy_(tensor)  # ordered by the stream alone
    seen_early.copy_(tensor)  # on the default stream, which waits for no other
    torch.cuda.default_stream().synchronize()
    seen_while_asleep = not awake.query()
    torch.cuda.synchronize()
    assert returned_at_once, "run_() waited for the stream"
    assert seen_while_asleep, "the kernel slept too short for this test to show anything"
    assert (seen_early == MARK).all(), "the tensor was written before the work that stood before it in the stream"
    expected = on_cpu("w", 1_000_003, DISTRIBUTIONS["normal"], torch.float32)
    assert_same(seen_after, expected)
    assert_same(tensor, expected)


@needs_gpu
def test_one_plan_on_two_streams() -> None:
    tensor = marked(100_003)
    plan = plan_of({"w": tensor}, DISTRIBUTIONS["normal"])
    expected = on_cpu("w", 100_003, DISTRIBUTIONS["normal"], torch.float32)
    for stream in (torch.cuda.default_stream(), torch.cuda.Stream(), torch.cuda.Stream()):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            tensor.fill_(MARK)
            plan.run_()
        torch.cuda.current_stream().wait_stream(stream)
        assert_same(tensor, expected)


@needs_gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_never_synchronises() -> None:
    tensor = marked(10_000)
    first, second = (plan_of({name: tensor}, DISTRIBUTIONS["normal"]) for name in ("first", "second"))
    first.run_()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchronizing"):
            tensor[0].item()  # the mode works
        first.run_()
        second.run_()  # uploads its table
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_same(tensor, on_cpu("second", 10_000, DISTRIBUTIONS["normal"], torch.float32))


def test_threads_run_plans_at_once() -> None:
    expected = on_cpu("w", 200_003, DISTRIBUTIONS["normal"], torch.float32)
    outcomes = [marked(200_003) for _ in range(6)]
    if ON_GPU:
        torch.cuda.synchronize()
    errors: list[BaseException] = []

    def run(tensor: torch.Tensor) -> None:
        try:
            if not ON_GPU:
                plan_of({"w": tensor}, DISTRIBUTIONS["normal"]).run_()
                return
            with torch.cuda.stream(torch.cuda.Stream()):
                for _ in range(5):
                    plan_of({"w": tensor}, DISTRIBUTIONS["normal"]).run_()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(tensor,)) for tensor in outcomes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if ON_GPU:
        torch.cuda.synchronize()
    assert not errors
    for outcome in outcomes:
        assert_same(outcome, expected)


@needs_gpu
def test_takes_no_memory_but_the_table() -> None:
    entries = mixed_entries(600)
    program = program_of(entries)
    rows = 2 * len(entries)  # at the most: no layout here takes more than two
    table_bytes = rows * int(np.dtype(native().task_dtype()).itemsize) + 4 * (rows + 1)
    torch.cuda.synchronize()
    for allowed in (table_bytes + 512, 0):  # torch rounds up to 512; a second run takes nothing
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        program.run_(11, None)
        assert torch.cuda.max_memory_allocated() - before <= allowed
    assert_entries(entries, 11)


# ---- CUDA graphs ----


@pytest.fixture
def graph() -> Iterator[Any]:
    """A graph, and its memory given back after the test."""
    made = torch.cuda.CUDAGraph()
    yield made
    torch.cuda.synchronize()
    made.reset()


def overwrite_free_memory() -> None:
    """So that a graph that reads memory which nobody keeps for it finds something else there."""
    gc.collect()
    junk = [torch.full((size,), 255, dtype=torch.uint8, device=DEVICE) for size in (512, 4096, 1 << 17) * 50]
    junk += [torch.full((size,), 255, dtype=torch.uint8).pin_memory() for size in (512, 4096, 1 << 17) * 20]
    torch.cuda.synchronize()
    del junk


def assert_replays(graph: Any, entries: Sequence[tuple[str, torch.Tensor, Distribution]], seed: int) -> None:
    for _ in range(3):
        for _, tensor, _ in entries:
            tensor.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert_entries(entries, seed)
        overwrite_free_memory()


@needs_gpu
def test_graph_of_a_plan_that_ran_before(graph: Any) -> None:
    entries = mixed_entries(60)
    program = program_of(entries)
    program.run_(11, None)
    with torch.cuda.graph(graph):
        program.run_(12, None)
    assert_entries(entries, 11)  # a capture runs nothing
    del program
    assert_replays(graph, entries, 12)


@needs_gpu
def test_graph_of_a_plan_made_in_it(graph: Any) -> None:
    entries = mixed_entries(60)
    program_of(mixed_entries(3)).run_(11, None)
    with torch.cuda.graph(graph):
        program_of(entries).run_(12, None)
    assert all((tensor == MARK).all() for _, tensor, _ in entries)
    assert_replays(graph, entries, 12)


@needs_gpu
def test_graph_of_init_model_amid_other_work(graph: Any) -> None:
    model = transformer().to(DEVICE)
    other, total = torch.ones(1000, device=DEVICE), torch.zeros((), device=DEVICE)
    with torch.cuda.graph(graph):
        other.mul_(2)
        fastinit.init_model_(model, "xavier_uniform", seed=7, backend="native")
        total.copy_(model.wte.weight.detach().square().sum())
    twin = fastinit.init_model_(transformer(), "xavier_uniform", seed=7)
    expected = twin.wte.weight.detach().double().square().sum().item()
    for count in (1, 2, 3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        total.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert_same_parameters(model, twin)
        assert total.item() == pytest.approx(expected, rel=1e-4)  # what comes after sees the values
        assert (other == 2.0**count).all()


@needs_gpu
def test_graph_replays_what_was_captured_while_the_plan_goes_on(graph: Any) -> None:
    tensor = marked(10_000)
    program = program_of([("w", tensor, DISTRIBUTIONS["normal"])])
    program.run_(1, None)
    with torch.cuda.graph(graph):
        program.run_(2, None)
    for seed in (3, 4):
        program.run_(seed, None)
        assert_same(tensor, on_cpu("w", 10_000, DISTRIBUTIONS["normal"], torch.float32, seed))
        graph.replay()
        assert_same(tensor, on_cpu("w", 10_000, DISTRIBUTIONS["normal"], torch.float32, 2))


@needs_gpu
def test_graph_without_a_seed_is_refused(graph: Any) -> None:
    tensor, other = marked(1000), marked(1000)
    plan = plan_of({"w": tensor}, DISTRIBUTIONS["normal"], seed=None)
    with torch.cuda.graph(graph):
        other.zero_()  # torch warns of a graph of nothing
        with pytest.raises(ValueError, match="seed: expected an int while a CUDA graph is captured"):
            plan.run_()
    graph.replay()
    assert (other == 0).all() and (tensor == MARK).all()
    plan.run_()
    assert (tensor != MARK).all()


@needs_gpu
def test_graph_replays_with_the_seed_that_is_on_the_device(graph: Any) -> None:
    model = transformer().to(DEVICE)
    plan = fastinit.plan(model, "xavier_uniform", seed=None, backend="native")
    seed = torch.tensor(1, device=DEVICE)
    with torch.cuda.graph(graph):
        plan.run_(seed=seed)
    for value in (7, 2**62 + 5, -3):
        seed.fill_(value)
        graph.replay()
        twin = fastinit.init_model_(transformer(), "xavier_uniform", seed=value % 2**64)
        assert_same_parameters(model, twin)


@needs_gpu
def test_graph_with_a_seed_on_the_device_is_refused_for_what_no_kernel_fills(graph: Any) -> None:
    other = marked(1000)
    model = nn.Linear(3000, 3000).to(DEVICE)
    before = model.weight.detach().clone()
    plan = fastinit.plan(model, "orthogonal", seed=None, backend="native")
    seed = torch.tensor(1, device=DEVICE)
    with torch.cuda.graph(graph):
        other.zero_()  # torch warns of a graph of nothing
        with pytest.raises(ValueError, match="seed: a tensor serves a CUDA graph only where kernels"):
            plan.run_(seed=seed)
    assert_same(model.weight, before)


@needs_gpu
@pytest.mark.parametrize("scheme", [fastinit.Sparse(0.1), fastinit.TimeStep(), "orthogonal"], ids=str)
def test_graph_of_what_takes_more_than_kernels_is_refused(scheme: Any, graph: Any) -> None:
    other, shape = marked(1000), (3000,) if isinstance(scheme, fastinit.TimeStep) else (3000, 3000)
    tensor = torch.zeros(shape, device=DEVICE)
    with torch.cuda.graph(graph):
        other.zero_()  # torch warns of a graph of nothing
        with pytest.raises(fastinit.ParameterError, match=r"w: .* cannot be captured into a CUDA graph"):
            fastinit.init_([tensor], scheme, names=["w"], seed=1)
    assert not tensor.any()


def test_a_seed_on_the_device_gives_the_values_of_its_number() -> None:
    for dtype in (torch.int64, torch.uint64):
        for tensors in ({"w": marked(9000)}, {"w": marked(9000), "on the CPU": marked(50, device=CPU)}):
            plan_of(tensors, DISTRIBUTIONS["normal"], seed=None).run_(seed=torch.tensor([6], dtype=dtype).to(DEVICE))
            for name, tensor in tensors.items():
                expected = on_cpu(name, tensor.shape, DISTRIBUTIONS["normal"], tensor.dtype, 6)
                assert_same(tensor, expected, name)


@needs_gpu
def test_a_seed_on_the_device_is_not_waited_for() -> None:
    tensor, seed = marked(1000), torch.tensor(1, device=DEVICE)
    plan = plan_of({"w": tensor}, DISTRIBUTIONS["normal"], seed=None)
    plan.run_(seed=seed)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        plan.run_(seed=seed)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_graph_in_a_process_that_never_filled_before() -> None:
    """The run-time, the kernel and the allocators are all new when the capture has begun."""
    code = """
import torch, fastinit
tensors = [torch.zeros(100_003, device="cuda"), torch.zeros(500, 30, device="cuda").t()]
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    fastinit.init_(tensors, "normal", seed=7, backend="native")
assert all((tensor == 0).all() for tensor in tensors)
twins = [torch.zeros(100_003), torch.zeros(500, 30).t()]
fastinit.init_(twins, "normal", seed=7, backend="native")
for _ in range(2):
    graph.replay()
    assert all(torch.equal(tensor.cpu(), twin) for tensor, twin in zip(tensors, twins))
    for tensor in tensors:
        tensor.zero_()
print("equal")
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment, check=False
    )
    assert result.returncode == 0 and result.stdout.endswith("equal\n"), result.stderr[-3000:]


# ---- Orthogonal matrices: those that a block of threads holds, and others ----

SMALL = [(1, 1), (1, 9), (9, 1), (7, 5), (33, 32), (64, 27), (20, 150), (128, 128), (127, 128), (130, 40), (1000, 6)]
SMALL_FLOAT32 = [(300, 64), (256, 128), (220, 220), (20, 1024)]
LARGE = [(300, 300), (1500, 8), (200, 700)]


@pytest.fixture
def roomy() -> None:
    """All that is small here is so for blocks of the device, too."""
    if ON_GPU and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs a GPU whose blocks have 99 KiB of shared memory")


def orthogonal_(tensors: Mapping[str, torch.Tensor], seed: int = 11, gain: float = 1.0) -> None:
    scheme = fastinit.Orthogonal(gain)
    fastinit.init_(list(tensors.values()), scheme, names=list(tensors), seed=seed, backend="native")


def assert_orthogonal(tensor: torch.Tensor, gain: float = 1.0) -> None:
    q = tensor.detach().cpu().double()
    product = q @ q.mT if q.shape[0] < q.shape[1] else q.mT @ q
    error = (product - gain**2 * torch.eye(len(product), dtype=torch.float64)).abs().max().item()
    assert error < gain**2 * {2: 0.02, 4: 1e-5, 8: 2e-14}[tensor.dtype.itemsize], (tuple(tensor.shape), error)


def small_matrices(device: torch.device = DEVICE) -> dict[str, torch.Tensor]:
    """Of every dtype and layout."""
    found = {f"{shape}.{dtype}": marked(shape, dtype, device) for shape in SMALL for dtype in DTYPES}
    found |= {f"{shape}": marked(shape, torch.float32, device) for shape in SMALL_FLOAT32}
    for layout, (_, view) in views_of((30, 50), torch.float32, device).items():
        found[layout] = view
    for layout, (_, view) in views_of((8, 4, 3, 3), torch.bfloat16, device).items():
        found[f"kernel, {layout}"] = view
    return found


def test_orthogonal_matrices_are_those_of_the_cpu_to_rounding() -> None:
    matrices, twins = small_matrices(), small_matrices(CPU)
    for shape in LARGE:
        matrices[f"large {shape}"], twins[f"large {shape}"] = marked(shape), marked(shape, device=CPU)
    for each in (matrices, twins):
        orthogonal_(each, gain=1.5)
    for name, matrix in matrices.items():
        assert_orthogonal(matrix.flatten(1), 1.5)
        tolerance = {2: 0.01, 4: 4e-6, 8: 1e-14}[matrix.dtype.itemsize]
        torch.testing.assert_close(matrix.cpu(), twins[name], rtol=0, atol=tolerance, msg=name)


def test_orthogonal_matrices_have_the_same_bits_alone_and_in_every_layout() -> None:
    """Of those in products of whole matrices, layouts differ in rounding."""
    together = small_matrices()
    orthogonal_(together)
    for name, matrix in together.items():
        alone = marked(tuple(matrix.shape), matrix.dtype) if ON_GPU else torch.empty_like(matrix)
        orthogonal_({name: alone})
        assert_same(alone, matrix, name)


@needs_fma
def test_small_orthogonal_matrices_have_the_bits_of_the_cpu(roomy: None) -> None:
    """All arithmetic of the kernel is exactly rounded, and so is that of the CPU's code, in the same order."""
    from fastinit.run.index_maps import BoxIndices
    from fastinit.run.matrix_table import fill_small
    from fastinit.run.orthogonal import Matrix

    for shape in (*SMALL, *SMALL_FLOAT32):
        for dtype in DTYPES if shape in SMALL else (torch.float32,):
            tensors = [marked(shape, dtype, device) for device in (DEVICE, CPU)]
            part = BoxIndices(3, (shape[1], 1))
            assert fill_small([Matrix(str(shape), each, shape, part, 0.7) for each in tensors], 5) == []
            assert_same(tensors[0], tensors[1], (shape, dtype))


def test_nothing_around_orthogonal_matrices_is_written() -> None:
    for dtype in DTYPES:
        for layout, (memory, view) in views_of((30, 50), dtype, DEVICE).items():
            orthogonal_({"w": view})
            assert_orthogonal(view)
            view.fill_(MARK)
            assert (memory == MARK).all(), (layout, dtype)


@needs_gpu
def test_one_launch_for_small_orthogonal_matrices(roomy: None) -> None:
    matrices = small_matrices()
    before = native().cuda_launches()
    orthogonal_(matrices)
    assert native().cuda_launches() == before + 1
    orthogonal_({"empty": marked((0, 5))})
    assert native().cuda_launches() == before + 1


@needs_gpu
def test_what_a_block_holds_is_a_matter_of_size_dtype_and_device(roomy: None) -> None:
    def fits(shape: tuple[int, int], dtype: torch.dtype) -> bool:
        index = torch.cuda.current_device()
        return bool(native().orthogonal_cuda_fits(*shape, fastinit.run.table.DTYPES[dtype], index))

    assert all(fits((rows, columns), torch.float32) for rows in (1, 64, 128) for columns in (1, 64, 128))
    assert not any(fits(shape, dtype) for shape in LARGE for dtype in DTYPES)
    assert all(fits(shape, dtype) for shape in SMALL for dtype in DTYPES)
    assert all(fits(shape, torch.float32) for shape in SMALL_FLOAT32)


def test_delta_orthogonal_kernels_are_orthogonal_at_their_middle() -> None:
    for dtype in DTYPES:
        kernels = [marked((24, 16, 3, 3), dtype, device) for device in (DEVICE, CPU)]
        for kernel in kernels:
            fastinit.init_([kernel], "delta_orthogonal", names=["w"], seed=3, backend="native")
        assert_orthogonal(kernels[0][:, :, 1, 1])
        tolerance = {2: 0.01, 4: 1e-6, 8: 1e-14}[dtype.itemsize]
        torch.testing.assert_close(kernels[0].cpu(), kernels[1], rtol=0, atol=tolerance)


@needs_gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_small_orthogonal_matrices_never_synchronise(roomy: None) -> None:
    matrices = {"small": marked((100, 60)), "of a kernel": marked((8, 3, 3, 4)).permute(0, 3, 1, 2)}
    orthogonal_(matrices)
    wanted = {name: matrix.clone() for name, matrix in matrices.items()}
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for matrix in matrices.values():
            matrix.zero_()
        orthogonal_(matrices)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for name, matrix in matrices.items():
        assert_same(matrix, wanted[name], name)


@needs_gpu
def test_graph_of_small_orthogonal_matrices(roomy: None, graph: Any) -> None:
    matrices = small_matrices()
    orthogonal_(matrices, seed=5)
    wanted = {name: matrix.clone() for name, matrix in matrices.items()}
    orthogonal_(matrices, seed=6)
    with torch.cuda.graph(graph):
        orthogonal_(matrices, seed=5)
    for _ in range(3):
        for matrix in matrices.values():
            matrix.zero_()
        overwrite_free_memory()
        graph.replay()
        torch.cuda.synchronize()
        for name, matrix in matrices.items():
            assert_same(matrix, wanted[name], name)


# ---- Beyond 32 bits ----


def needs_free_bytes(count: int) -> None:
    free, _ = torch.cuda.mem_get_info()
    if free < count:
        pytest.skip(f"needs {count / 2**30:.0f} GiB of the GPU's memory, {free / 2**30:.0f} are free")


def assert_window(window: torch.Tensor, first_index: int, distribution: Distribution) -> None:
    expected = marked(window.numel(), window.dtype, CPU)
    fill_native_row(expected, distribution, seed=11, name_id=name_id("large"), global_offset=first_index)
    assert_same(window, expected, f"from {first_index}")


@pytest.fixture
def memory_given_back() -> Iterator[None]:
    yield
    gc.collect()
    torch.cuda.empty_cache()


@needs_gpu
def test_tensor_of_more_than_2_to_the_32_elements(memory_given_back: None) -> None:
    needs_free_bytes(12 << 30)
    count = 2**32 + 12_345
    tensor = marked(count, torch.bfloat16)
    plan_of({"large": tensor}, DISTRIBUTIONS["normal"]).run_()
    for middle in (500, 2**30, 2**31, 3 * 2**30, 2**32, count - 500):
        assert_window(tensor[middle - 500 : middle + 500], middle - 500, DISTRIBUTIONS["normal"])
    assert not any((part == MARK).any().item() for part in tensor.split(1 << 28)), "a hole"


@needs_gpu
def test_transposed_tensor_of_more_than_2_to_the_31_elements(memory_given_back: None) -> None:
    needs_free_bytes(8 << 30)
    rows, columns = 33_000, 66_001
    tensor = marked((columns, rows), torch.bfloat16).t()
    plan_of({"large": tensor}, DISTRIBUTIONS["normal"]).run_()
    for row in (0, 1, 2**31 // columns, rows - 1):
        assert_window(tensor[row], row * columns, DISTRIBUTIONS["normal"])
    assert not any((part == MARK).any().item() for part in tensor.split(4000)), "a hole"


# ---- What another counts; the last test, for a profiler slows down what follows ----


@needs_gpu
def test_profiler_counts_one_kernel() -> None:
    from torch.profiler import ProfilerActivity, profile

    program = program_of(mixed_entries(600))
    program.run_(11, None)
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
            program.run_(12, None)
            torch.cuda.synchronize()
        events = profiled.events()
    on_gpu = [event.name for event in events or [] if str(event.device_type) == "DeviceType.CUDA"]
    if not on_gpu:
        pytest.skip("the profiler sees nothing of this GPU")
    assert sum("fill_kernel" in name for name in on_gpu) == 1, on_gpu
    assert not [name for name in on_gpu if "Memcpy" in name], on_gpu
