"""What is made of whole tensors of random values, against NumPy (docs/STREAM.md, section 7)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import torch
from conftest import DTYPES, needs_native
from torch import nn

import fastinit
from fastinit.run import engine
from fastinit.run.engine import Program
from fastinit.run.targets import Target
from fastinit.schemes.distributions import Blocks, Distribution, Normal, Orthogonal, Sparse, ZeroRow

pytestmark = needs_native

SEED = 5


def filled(scheme: str | fastinit.Scheme, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    tensor = torch.full(shape, torch.nan, dtype=dtype)
    fastinit.init_([tensor], scheme, names=["w"], seed=SEED)
    return tensor


def written(tensor: torch.Tensor, distribution: Distribution) -> torch.Tensor:
    """`tensor`, with a distribution that no scheme was asked for."""
    target = Target("w", tensor, tensor.shape, tensor.dtype, tensor.device, distribution)
    Program([target], "native").run_(SEED, None)
    return tensor


@pytest.mark.parametrize("keys_at_once", [1, 100, 2**20])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sparse_matrices_are_those_of_the_format(
    dtype: torch.dtype, keys_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_KEYS_AT_ONCE", keys_at_once)
    rows, columns, zeros = 37, 23, 12
    found = filled(fastinit.Sparse(sparsity=0.31, std=0.5), (rows, columns), dtype)
    keys = reference.sample("uniform", (0.0, 1.0), "float64", SEED, "w:zeros", np.arange(rows * columns))
    chosen = keys.reshape(columns, rows).argsort(axis=1, kind="stable")[:, :zeros]
    wanted = filled(fastinit.Normal(std=0.5), (rows, columns), dtype)
    for column in range(columns):
        wanted[torch.from_numpy(chosen[column]), column] = 0.0
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_time_steps_are_those_of_the_format(dtype: torch.dtype) -> None:
    found = filled(fastinit.TimeStep(1e-3, 1e-1, 2e-3), (500,), dtype)
    logs = reference.sample("uniform", (math.log(1e-3), math.log(1e-1)), "float64", SEED, "w", np.arange(500))
    steps = np.maximum(2e-3, np.exp(logs))
    wanted = steps + np.log(-np.expm1(-steps))
    assert (steps == 2e-3).sum() > 30
    torch.testing.assert_close(found, torch.from_numpy(wanted).to(dtype), rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced", "shuffled"])
def test_blocks_keep_the_indices_of_the_whole(dim: int, layout: str) -> None:
    shape = (6, 8, 10)
    tensor = {
        "contiguous": torch.empty(shape),
        "transposed": torch.empty(shape[::-1]).permute(2, 1, 0),
        "sliced": torch.empty(12, 8, 30)[::2, :, 5:15],
        "shuffled": torch.empty(8, 10, 6).permute(2, 0, 1),
    }[layout]
    sizes = (2, 1, shape[dim] - 3)
    # Twice the sigma is twice every value, to the bit.
    written(tensor, Blocks(dim, sizes, (Normal(0.0, 1.0), Normal(0.0, 2.0), Normal(0.0, 4.0))))
    wanted = filled("normal", shape)
    for block, factor in zip(wanted.split(sizes, dim), (1.0, 2.0, 4.0), strict=True):
        block *= factor
    assert torch.equal(tensor, wanted)


def test_a_zero_row_leaves_the_other_rows_as_they_are() -> None:
    tensor = torch.empty(10, 6).t()
    blocks = Blocks(1, (4, 6), (Normal(0.0, 1.0), Normal(0.0, 2.0)))
    written(tensor, ZeroRow(3, 6, blocks))
    wanted = filled("normal", (6, 10))
    wanted[:, 4:] *= 2.0
    wanted[3] = 0.0
    assert torch.equal(tensor, wanted)


@pytest.mark.parametrize("dim", [0, 1])
def test_every_block_is_orthogonal_by_itself(dim: int) -> None:
    tensor = torch.empty(12, 12)
    sizes = (4, 4, 4)
    tall = Orthogonal(1.0, 4, 12)
    written(tensor, Blocks(dim, sizes, (tall, tall, tall)))
    for block in tensor.split(4, dim):
        small = block @ block.mT if dim == 0 else block.mT @ block
        torch.testing.assert_close(small, torch.eye(4), rtol=0, atol=1e-6)


def test_a_sampled_block_beside_a_composed_one() -> None:
    tensor = torch.empty(12, 8)
    written(tensor, Blocks(0, (8, 4), (Orthogonal(1.0, 8, 8), Normal(0.0, 1.0))))
    torch.testing.assert_close(tensor[:8].mT @ tensor[:8], torch.eye(8), rtol=0, atol=1e-6)
    assert torch.equal(tensor[8:], filled("normal", (12, 8))[8:])


def test_an_orthogonal_embedding_is_orthogonal_but_for_its_padding_row() -> None:
    embedding = nn.Embedding(20, 6, padding_idx=4)
    fastinit.init_model_(embedding, "orthogonal", seed=SEED)
    whole = torch.empty(20, 6)
    fastinit.init_([whole], "orthogonal", names=["weight"], seed=SEED)
    whole[4] = 0.0
    assert torch.equal(embedding.weight, whole)


def test_composed_values_do_not_depend_on_threads_or_layout(all_threads: None) -> None:
    sparse = Sparse(1.0, 5, 16)
    outcomes = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        outcomes += [written(torch.empty(16, 9), sparse), written(torch.empty(9, 16).t(), sparse)]
    assert all(torch.equal(outcomes[0], each) for each in outcomes)


def test_version_counters_see_composed_writes() -> None:
    for scheme in ("orthogonal", "zer_o", "log_range", "time_step", fastinit.Sparse(0.5)):
        tensor = torch.empty(6, 6)
        before = tensor._version
        fastinit.init_([tensor], scheme, seed=0)
        assert tensor._version > before, scheme


def test_leaves_that_require_gradients_are_written_without_a_history() -> None:
    for scheme in ("orthogonal", "zer_o", "log_range", "time_step", fastinit.Sparse(0.5)):
        parameter = nn.Parameter(torch.empty(6, 6))
        fastinit.init_([parameter], scheme, seed=0)
        assert parameter.is_leaf and parameter.grad_fn is None and parameter.requires_grad


@pytest.mark.parametrize("dim", [0, 1])
def test_sparse_blocks_have_zeros_of_their_own(dim: int) -> None:
    tensor = torch.empty(40, 40)
    half = Sparse(1.0, 10, 20) if dim == 0 else Sparse(1.0, 20, 40)
    written(tensor, Blocks(dim, (20, 20), (half, half)))
    first, second = (block == 0 for block in tensor.split(20, dim))
    assert (first.sum(0) == half.zeros).all() and (second.sum(0) == half.zeros).all()
    assert not torch.equal(first, second)
