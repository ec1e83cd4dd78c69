"""Small orthogonal matrices by the native code: the same bits whatever computes them. What they are is tested in
test_orthogonal.py, and against the CUDA kernel in test_cuda_orthogonal_on_cpu.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import INSTRUCTION_SETS, needs_fma, needs_native

import fastinit
from fastinit import _native
from fastinit.run import matrix_table
from fastinit.run.index_maps import BoxIndices
from fastinit.run.matrix_table import fill_small, orthogonal_table
from fastinit.run.orthogonal import Matrix

SEED = 7
SHAPES = [
    (1, 1),
    (1, 5),
    (5, 1),
    (3, 4),
    (31, 17),
    (32, 32),
    (33, 64),
    (65, 40),
    (128, 128),
    (100, 129),
    (257, 256),
    (1024, 40),
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# Without fused multiply-add all but the smallest go through products.
FUSED = [isa for isa in INSTRUCTION_SETS if isa not in ("sse2", "portable")] or ["portable"]

pytestmark = [needs_native, needs_fma, pytest.mark.usefixtures("all_threads")]


def matrices(gain: float = 1.0) -> list[Matrix]:
    found = []
    for shape in SHAPES:
        for dtype in DTYPES:
            tensor = torch.full(shape, torch.nan, dtype=dtype)
            found.append(Matrix(f"{shape}{dtype}", tensor, shape, BoxIndices(0, (shape[1], 1)), gain))
    return found


def filled(gain: float = 1.0) -> list[torch.Tensor]:
    made = matrices(gain)
    assert fill_small(made, SEED) == []
    by_name = {each.name: each.tensor for each in made}
    return [by_name[each.name] for each in matrices()]


@pytest.fixture(scope="module")
def wanted() -> list[torch.Tensor]:
    return filled()


def assert_same(one: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b), (a.shape, a.dtype)


@pytest.mark.parametrize("isa", FUSED)
def test_instruction_sets_agree(isa: str, wanted: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTINIT_FORCE_ISA", isa)
    assert_same(filled(), wanted)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_the_smallest_are_made_alike_without_fused_multiply_add(
    isa: str, wanted: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTINIT_FORCE_ISA", isa)
    made = matrices()
    left = {each.name for each in fill_small(made, SEED)}
    if isa not in FUSED:
        of_float = 128 if isa == "sse2" else 64
        most = {each.name: 32 if each.tensor.dtype == torch.float64 else of_float for each in matrices()}
        assert left == {each.name for each in matrices() if max(each.shape) > most[each.name]}
    done = {each.name: each.tensor for each in made if each.name not in left}
    for each, expected in zip(matrices(), wanted, strict=True):
        assert each.name in left or torch.equal(done[each.name], expected), each.name


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads_change_not_a_bit(threads: int, wanted: list[torch.Tensor]) -> None:
    torch.set_num_threads(threads)
    assert_same(filled(), wanted)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_other_matrices_change_not_a_bit(threads: int, wanted: list[torch.Tensor]) -> None:
    """One is shared by all threads, many are a thread's each."""
    torch.set_num_threads(threads)
    alone = matrices()
    for each in alone:
        fill_small([each], SEED)
    assert_same([each.tensor for each in alone], wanted)


@pytest.mark.parametrize("rows", [None, (0, 1), (2, 3), (0, 0)], ids=str)
@pytest.mark.parametrize("columns", [None, (0, 1), (0, 3), (1, 4)], ids=str)
def test_ranges_have_the_bits_of_the_whole(
    rows: tuple[int, int] | None, columns: tuple[int, int] | None, wanted: list[torch.Tensor]
) -> None:
    for each, whole in zip(matrices(), wanted, strict=True):
        if (rows or (0, 0))[1] > whole.shape[0] or (columns or (0, 0))[1] > whole.shape[1]:
            continue
        expected = whole[slice(*(rows or (None,))), slice(*(columns or (None,)))]
        part = torch.full_like(expected, torch.nan)
        fill_small([each._replace(tensor=part, rows=rows, columns=columns)], SEED)
        assert torch.equal(part, expected)


def test_layouts_have_the_same_bits(wanted: list[torch.Tensor]) -> None:
    for each, expected in zip(matrices(), wanted, strict=True):
        rows, columns = each.shape
        transposed = torch.full((columns, rows), torch.nan, dtype=each.tensor.dtype).t()
        spaced = torch.full((rows, 2 * columns + 3), 9.0, dtype=each.tensor.dtype)
        view = spaced[:, 1 : 2 * columns : 2]
        fill_small([each._replace(tensor=transposed), each._replace(tensor=view)], SEED)
        assert torch.equal(transposed, expected) and torch.equal(view, expected)
        assert (spaced[:, 0::2] == 9.0).all() and (spaced[:, 2 * columns + 1 :] == 9.0).all()


def test_steps_and_offsets_of_random_numbers_are_those_of_the_elements() -> None:
    """A matrix at one position of the kernels, beyond 2^40: its values are those of the flat elements there."""
    shape, offset, steps = (20, 12), 2**41 + 5, (12 * 9, 9)
    made = [torch.empty(shape) for _ in range(2)]
    fill_small([Matrix("w", made[0], shape, BoxIndices(offset, steps), 1.0)], SEED)
    fastinit.run.orthogonal.fill(
        [Matrix("w", made[1], shape, BoxIndices(offset, steps), 1.0)], fastinit.run.engine.NativeSource(SEED)
    )
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=1e-6)


def test_gains_scale_exactly(wanted: list[torch.Tensor]) -> None:
    for of_gain, whole in zip(filled(-2.0), wanted, strict=True):
        if whole.dtype != torch.float16:  # whose least values are rounded by their size, not by their digits
            assert torch.equal(of_gain, -2.0 * whole)


def test_it_depends_on_the_size_alone_who_computes() -> None:
    assert matrix_table.is_small(matrices()[0])
    for shape, small in (((1024, 1024), True), ((1025, 2), False), ((3, 2000), False)):
        of = Matrix("w", torch.empty(shape), shape, BoxIndices(0, (shape[1], 1)), 1.0)
        assert matrix_table.is_small(of) is small


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("rows", -1, "negative number of rows"),
        ("rows", 2000, "too large"),
        ("end_row", 9, "range beyond the matrix"),
        ("first_column", -1, "range beyond the matrix"),
        ("data", 0, "without memory"),
        ("gain", np.nan, "gain that is not finite"),
        ("global_offset", -1, "global indices"),
        ("row_index_step", 2**62, "global indices"),
        ("row_memory_step", -1, "steps in memory"),
        ("dtype", 9, "unknown dtype 9"),
    ],
)
def test_bad_tables_are_refused(field: str, value: float, message: str) -> None:
    tensor = torch.full((8, 4), 9.0)
    table = orthogonal_table([Matrix("w", tensor, (8, 4), BoxIndices(0, (4, 1)), 1.0)], [tensor])
    table[field] = value
    assert _native.module is not None
    with pytest.raises(ValueError, match=f"table row 0: .*{message}"):
        _native.module.orthogonal_cpu(table, 0, 2)
    assert (tensor == 9.0).all()
