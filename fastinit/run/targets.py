"""Targets: values to write and a tensor to write them to, whole or in blocks. Who writes them is elsewhere."""

from __future__ import annotations

from operator import mul
from typing import NamedTuple

import torch

from fastinit.errors import ParameterError
from fastinit.run.index_maps import BoxIndices, whole
from fastinit.schemes.distributions import Distribution


class Target(NamedTuple):
    """Values of `shape`, and a tensor to write them to.

    The values are a box of the parameter `name`, and `indices` says which of its elements they are; None: all of it.
    Where a rank holds a shard, the tensor is a box of the values and begins at `begin`; None: it has them all.
    """

    name: str
    tensor: torch.Tensor
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    distribution: Distribution
    indices: BoxIndices | None = None
    begin: tuple[int, ...] | None = None


# The dtypes of the real and imaginary parts of complex numbers.
PARTS = {torch.complex64: torch.float32, torch.complex128: torch.float64}


def parts_of(target: Target) -> list[Target]:
    """A target of complex values as one of twice as many real ones, or as two if its parts are distributed differently.

    Complex value i is the real values 2 i and 2 i + 1 of the parameter's stream (docs/STREAM.md, section 7).
    """
    both = target.distribution.of_parts()
    assert both is not None, "the run asks before"
    offset, strides = indices_of(target)
    view = torch.view_as_real(target.tensor.detach())
    indices = BoxIndices(2 * offset, (*(2 * stride for stride in strides), 1))
    begin = None if target.begin is None else (*target.begin, 0)
    real = Target(target.name, view, torch.Size((*target.shape, 2)), view.dtype, target.device, both[0], indices, begin)
    if both[0] is both[1]:
        return [real]
    shape, strides = torch.Size((*target.shape, 1)), indices.strides
    return [
        real._replace(
            tensor=view[..., part : part + 1],
            shape=shape,
            distribution=distribution,
            indices=BoxIndices(indices.offset + part, strides),
        )
        for part, distribution in enumerate(both)
    ]


def indices_of(target: Target) -> BoxIndices:
    """The indices of a target's values in its parameter."""
    return target.indices or whole(target.shape)


def indices_of_tensor(target: Target) -> BoxIndices | None:
    """The indices of a target's tensor in its parameter; None: the tensor has all of it."""
    if target.begin is None:
        return target.indices
    offset, strides = indices_of(target)
    return BoxIndices(offset + sum(map(mul, target.begin, strides)), strides)


def begin_of(target: Target) -> tuple[int, ...]:
    """Where the tensor's first element is among the target's values."""
    return target.begin or (0,) * len(target.shape)


def name_of_block(target: Target) -> str:
    """A name for random numbers that are not the elements' own. Every block of a parameter has another."""
    offset = 0 if target.indices is None else target.indices.offset
    return f"{target.name}@{offset}" if offset else target.name


def blocks_of(target: Target) -> list[Target]:
    """A target for each block of a fused parameter, with a view of the tensor; any other target as it is."""
    split = target.distribution.blocks()
    if split is None:
        return [target]
    dim = split.dim
    indices, tensor = indices_of(target), target.tensor.detach()
    first = begin_of(target)[dim]  # of the tensor's elements
    found, begin = [], 0
    for size, of_block in zip(split.sizes, split.each, strict=True):
        low, high = max(begin, first), min(begin + size, first + tensor.shape[dim])
        if low < high:
            view = tensor.narrow(dim, low - first, high - low)
            shape = torch.Size((*target.shape[:dim], size, *target.shape[dim + 1 :]))
            within = (*begin_of(target)[:dim], low - begin, *begin_of(target)[dim + 1 :])
            strides = indices.strides
            if split.drops_dim:
                view, shape = view.squeeze(dim), torch.Size(_without(shape, dim))
                within, strides = _without(within, dim), _without(strides, dim)
            at = BoxIndices(indices.offset + begin * indices.strides[dim], strides)
            of_tensor = None if view.shape == shape else within
            found.append(Target(target.name, view, shape, target.dtype, target.device, of_block, at, of_tensor))
        begin += size
    return found


def _without(each: tuple[int, ...], dim: int) -> tuple[int, ...]:
    return (*each[:dim], *each[dim + 1 :])


def sampled_blocks(target: Target) -> list[Target]:
    """A target for each block, all the way down. Their distributions count the parameter's elements.

    Raises:
        ParameterError: a distribution that cannot be told for a block.
    """
    split = target.distribution.blocks()
    if split is None:
        return [_located(target)]
    if split.of_whole:
        found: list[Target] = []
        for block in blocks_of(_located(target)):
            found += [block] if block.distribution.blocks() is None else sampled_blocks(block)
        return found
    return [each for block in blocks_of(target) for each in sampled_blocks(block)]


def _located(target: Target) -> Target:
    """The target with a distribution that counts the parameter's elements instead of the target's own."""
    if target.indices is None:
        return target
    try:
        distribution = target.distribution.located(target.shape, target.indices.offset, target.indices.strides)
    except ValueError as error:
        raise ParameterError(target.name, str(error)) from error
    return target._replace(distribution=distribution)
