"""The kernel that blends, and writes where masks are true, without a GPU: run as test_cuda_on_cpu.py runs the one that
fills, from its source and from its PTX, against the CPU backend, to the bit. What the tensors hold is any bits, NaN and
infinities too."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ptx_lint
import pytest
import torch
from conftest import DTYPES, FLOAT8_DTYPES
from drivers import ROOT, break_by, breakable_driver, compile_driver, compile_ptx, ptx_driver
from test_cuda_on_cpu import (
    CHUNK,
    DISTRIBUTIONS,
    SIZES,
    Emulated,
    make_table,
    rows_of,
    table_of_rows,
)
from test_cuda_on_cpu import pytestmark as pytestmark

from fastinit import _native
from fastinit.schemes.distributions import Diagonal, Distribution, Normal

KEEP, SCALE = 0.8, -0.3
EVERY_DTYPE = [*DTYPES, *FLOAT8_DTYPES]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """Writes tables, as fill.cu does for both kernels."""
    return compile_driver(tmp_path_factory.mktemp("host"), "fill")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compile_driver(tmp_path_factory.mktemp("source"), "rewrite")


@pytest.fixture(scope="module")
def ptx(tmp_path_factory: pytest.TempPathFactory) -> str:
    return compile_ptx(tmp_path_factory.mktemp("ptx"), source=ROOT / "csrc/cuda/rewrite.cu")


@pytest.fixture(scope="module", params=["source", pytest.param("ptx", marks=pytest.mark.slow)])
def emulated(request: pytest.FixtureRequest, host: ctypes.CDLL, tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    if request.param == "source":
        return Emulated(host, request.getfixturevalue("source"))
    folder = tmp_path_factory.mktemp("ptx_driver")
    return Emulated(host, ptx_driver(folder, "rewrite", request.getfixturevalue("ptx")))


def any_bits(numel: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(numel)
    return torch.randint(0, 256, (numel * dtype.itemsize,), dtype=torch.uint8, generator=generator).view(dtype)


def joined(parts: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    table = make_table(sum(map(len, parts)))
    at = 0
    for part in parts:
        table[at : at + len(part)] = part
        at += len(part)
    return table


def assert_same_storage(
    tensors: Sequence[torch.Tensor], on_cpu: Callable[[], object], emulated: Callable[[], object]
) -> None:
    """Write by the CPU backend, put back what the tensors held, write by the emulated GPU, and compare all storage."""
    storages = [torch.tensor([], dtype=torch.uint8).set_(tensor.untyped_storage()) for tensor in tensors]
    before = [storage.clone() for storage in storages]
    on_cpu()
    wanted = [storage.clone() for storage in storages]
    assert not all(map(torch.equal, wanted, before))
    for storage, old in zip(storages, before, strict=True):
        storage.copy_(old)
    emulated()
    for storage, want, tensor in zip(storages, wanted, tensors, strict=True):
        if not torch.equal(storage, want):
            different = torch.nonzero(storage != want).flatten() // tensor.element_size()
            pytest.fail(f"{tuple(tensor.shape)} {tensor.dtype}: differs at {different[:10]}")


def both(emulated: Emulated, table: np.ndarray[Any, Any], tensors: Sequence[torch.Tensor], seed: int = 77) -> None:
    module = _native.module
    assert module is not None and module.prepare(table) is None
    assert_same_storage(
        tensors,
        lambda: module.blend_cpu(table, KEEP, SCALE, seed, 1),
        lambda: emulated.blend(table, KEEP, SCALE, seed),
    )


def both_where(emulated: Emulated, cases: Sequence[tuple[torch.Tensor, Distribution]], seed: int = 77) -> None:
    """All, none, or some of the elements, by masks that are aligned otherwise than the tensors."""
    parts = [rows_of(f"{i}", tensor, distribution) for i, (tensor, distribution) in enumerate(cases)]
    table = joined(parts)
    module = _native.module
    assert module is not None and module.prepare(table) is None
    tensors = [tensor for tensor, _ in cases]
    generator = torch.Generator().manual_seed(seed)
    masks, addresses = [], []
    for i, (tensor, part) in enumerate(zip(tensors, parts, strict=True)):
        numel = tensor.untyped_storage().nbytes() // tensor.element_size()
        masks.append(torch.rand(numel + 8, generator=generator) < [0.5, 1.0, 0.1, 0.0, 0.9][i % 5])
        at = part["data"].astype(np.int64) - tensor.untyped_storage().data_ptr()
        addresses.append(masks[-1].data_ptr() + i % 3 + at // tensor.element_size())
    where = np.concatenate(addresses).astype(np.uint64)
    assert_same_storage(
        tensors, lambda: module.fill_where_cpu(table, where, seed, 1), lambda: emulated.fill_where(table, where, seed)
    )


@pytest.mark.parametrize("dtype", EVERY_DTYPE, ids=str)
def test_masks_of_every_size_alignment_and_layout(emulated: Emulated, dtype: torch.dtype) -> None:
    for distribution in DISTRIBUTIONS.values():
        both_where(emulated, [(each, distribution) for each in every_layout(dtype)])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", EVERY_DTYPE, ids=str)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_every_size_alignment_and_layout(emulated: Emulated, distribution: Distribution, dtype: torch.dtype) -> None:
    tensors = every_layout(dtype)
    both(emulated, joined([rows_of(f"{i}", each, distribution) for i, each in enumerate(tensors)]), tensors)


def every_layout(dtype: torch.dtype) -> list[torch.Tensor]:
    tensors = [any_bits(size + 8, dtype)[4 : 4 + size] for size in [0, *SIZES]]
    tensors += [any_bits(CHUNK + 40, dtype)[offset:-13] for offset in range(1, 8)]
    matrix, images = any_bits(130 * 70, dtype).view(130, 70), any_bits(20 * 9 * 5 * 3, dtype).view(20, 9, 5, 3)
    tensors += [matrix.clone().t(), matrix.clone()[:, 3:64], matrix.clone()[::2, ::3], images.permute(0, 3, 1, 2)]
    tensors += [any_bits(64 * 96, dtype).view(64, 96)[:, :64], any_bits(9 * 5000, dtype).view(9, 5000)[:, 1:4500]]
    return tensors


@pytest.mark.parametrize("dtype", EVERY_DTYPE, ids=str)
@pytest.mark.parametrize("distribution", [Normal(0.25, 2.0), Diagonal(0.7, 3, 65, 9, 640)], ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["long rows", "neighbouring rows"])
def test_rows_of_any_length_and_offset(
    emulated: Emulated, distribution: Distribution, dtype: torch.dtype, transposed: bool
) -> None:
    both(emulated, *table_of_rows(transposed, distribution, dtype, [3, 2**33 - 1030, 2**40 + 1], any_bits))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, *FLOAT8_DTYPES], ids=str)
def test_every_old_number_of_few_bits(emulated: Emulated, dtype: torch.dtype) -> None:
    if dtype.itemsize == 1:
        tensor = torch.arange(256 * 5).to(torch.uint8).view(dtype)
    else:
        tensor = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    both(emulated, rows_of("w", tensor, Normal(0.25, 2.0)), [tensor])


@pytest.mark.slow  # compiles the kernel
def test_nothing_inexact_in_the_ptx(ptx: str) -> None:
    assert ptx_lint.violations(ptx) == []


# Each of these must be seen.
BREAKS = {
    "a wrong bound": (
        "fill_chunk.h",
        "static_cast<unsigned>(end - begin)) continue;",
        "static_cast<unsigned>(end - begin - BREAK)) continue;",
    ),
    "the wrong value": (
        "fill_chunk.h",
        "values[i * kStoreValues + k], dtype);",
        "values[i * kStoreValues + (BREAK ? 0 : k)], dtype);",
    ),
    "no value moves down": ("fill_chunk.h", "values[k - 1] = values[k];", "values[k - 1] = values[BREAK ? 0 : k];"),
    "the mask of another task": (
        "stores.h",
        "static_cast<uint64_t>(index) * sizeof",
        "static_cast<uint64_t>(BREAK ? index / 2 : index) * sizeof",
    ),
}


@pytest.fixture(scope="module")
def breakable(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return breakable_driver(tmp_path_factory.mktemp("breakable"), "rewrite", BREAKS)


@pytest.mark.slow  # compiles the kernel once more
@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_kernel_is_noticed(host: ctypes.CDLL, breakable: ctypes.CDLL, name: str) -> None:
    emulated = Emulated(host, breakable)
    normal = Normal(0.0, 1.0)
    tensors = [any_bits(CHUNK + 11, torch.float32)[3:], any_bits(130 * 70, torch.float32).view(130, 70).t()]

    def check() -> None:
        both(emulated, joined([rows_of("w", each, normal) for each in tensors]), tensors)
        both_where(emulated, [(each, normal) for each in tensors])

    break_by(breakable, BREAKS, None)
    check()
    break_by(breakable, BREAKS, name)
    with pytest.raises(pytest.fail.Exception, match="differs at"):
        check()


def test_a_failed_launch_is_an_exception_and_writes_nothing(host: ctypes.CDLL, source: ctypes.CDLL) -> None:
    emulated = Emulated(host, source)
    tensor = any_bits(100, torch.float32)
    before = tensor.clone().view(torch.uint8)
    table = rows_of("weight", tensor, Normal(0.0, 1.0))
    assert _native.module is not None and _native.module.prepare(table) is None
    emulated.fail_next_launch()
    with pytest.raises(RuntimeError, match="CUDA error while launching a kernel: cudaErrorLaunchOutOfResources"):
        emulated.blend(table, KEEP, SCALE, 1)
    assert torch.equal(tensor.view(torch.uint8), before)
