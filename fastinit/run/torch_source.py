"""Writes one tensor through torch, where the native code is missing or does not apply, and for backend="torch"."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, singledispatch

import torch

from fastinit import _torch
from fastinit.run import composed
from fastinit.run.at_exit import check_exit
from fastinit.run.index_maps import box_of
from fastinit.run.orthogonal import Matrix
from fastinit.run.streams import derive_stream, draw_seed
from fastinit.run.targets import Target
from fastinit.schemes.distributions import Constant, Diagonal, Distribution, Normal, TruncNormal, Uniform


def fill(target: Target, seed: int | None, generator: torch.Generator | None) -> None:
    """Write one tensor with torch's own random numbers.

    Without a seed, the numbers come from `generator` or from torch's default generator of the device, just as a loop of
    torch.nn.init calls would draw them. With a seed, every name has a generator of its own, seeded by its stream.
    """
    check_exit()
    if seed is not None and target.distribution.is_random():
        generator = torch.Generator(target.device)
        generator.manual_seed(derive_stream(seed, target.name).key)
    if target.begin is None:
        composed.fill_all([target], TorchSource(generator, seed))
        return
    # Each of torch's numbers depends on how many came before it, so a shard is cut out of the whole tensor.
    every = torch.empty(target.shape, dtype=target.dtype, device=target.device)
    composed.fill_all([target._replace(tensor=every, begin=None)], TorchSource(generator, seed))
    target.tensor.detach().copy_(box_of(every, target.begin, target.tensor.shape))


@cache
def check_dtype(distribution: Distribution, dtype: torch.dtype, device: torch.device) -> None:
    """Try on four elements whether torch can write a distribution in a dtype. Only a failure tells that it cannot.

    Raises:
        TypeError: it cannot, in torch's words.
    """
    source = TorchSource(torch.Generator(device))
    try:
        scratch = torch.zeros(2, 2, dtype=dtype, device=device)
        scratch.copy_(torch.zeros(2, 2, dtype=torch.float64, device=device))  # composed values are copied like this
        sampled = [block for block in distribution.each_block() if block.needs == "element"]
        source.fill_all([Target("", scratch, scratch.shape, dtype, device, block) for block in sampled])
    except (RuntimeError, NotImplementedError) as error:
        raise TypeError(f"torch cannot write {distribution} in {dtype}: {error}") from error


class TorchSource:
    """Random values of a torch generator, in the order in which torch.nn.init draws them."""

    def __init__(self, generator: torch.Generator | None, seed: int | None = None) -> None:
        self._generator = generator
        self._seed = seed

    @property
    def seed(self) -> int:
        return draw_seed(self._generator) if self._seed is None else self._seed

    def fill_all(self, targets: Sequence[Target]) -> None:
        for target in targets:
            _draw(target.distribution, target.tensor, self._generator)

    def zero_rows(self, target: Target, zeros: int) -> None:
        # This is what torch.nn.init.sparse_ does, except that torch ignores the generator here.
        rows, columns = target.shape
        device = "cpu" if self._generator is None else self._generator.device
        for column in range(columns):
            chosen = torch.randperm(rows, generator=self._generator, device=device)[:zeros]
            target.tensor[chosen, column] = 0

    def orthogonal(self, matrices: Sequence[Matrix]) -> None:
        # This is what torch.nn.init.orthogonal_ does, except that torch takes no bfloat16, strides or complex numbers.
        for matrix in matrices:
            dtype = matrix.tensor.dtype if matrix.tensor.dtype.itemsize >= 4 else torch.float32
            normals = torch.empty(matrix.shape, dtype=dtype, device=matrix.tensor.device)
            normals.normal_(generator=self._generator)
            matrix.tensor.copy_(haar_by_factorisation(normals, matrix.gain).reshape(matrix.tensor.shape))


def haar_by_factorisation(normals: torch.Tensor, gain: float) -> torch.Tensor:
    """`gain` times the Q of the QR factorisation of normals, or of their transpose, made Haar distributed.

    Q becomes unique, and thereby Haar, when the diagonal of R is positive (Mezzadri 2007, section 5). Where the
    diagonal is zero, the sign is plus.
    """
    wide = normals.shape[0] < normals.shape[1]
    q, r = torch.linalg.qr(normals.mT if wide else normals)
    diagonal = r.diagonal()
    if diagonal.is_complex():
        size = diagonal.abs()
        q *= torch.where(size > 0, diagonal / size, torch.ones_like(diagonal))
    else:
        q *= torch.where(diagonal < 0, -1.0, 1.0)
    if gain != 1.0:
        q *= gain
    found: torch.Tensor = q.mT if wide else q
    return found


@singledispatch
def _draw(distribution: Distribution, tensor: torch.Tensor, generator: torch.Generator | None) -> None:
    raise TypeError(f"expected a distribution that is sampled element by element, got {distribution!r}")


@_draw.register
def _(constant: Constant, tensor: torch.Tensor, generator: torch.Generator | None) -> None:
    _torch.fill_(tensor, constant.value)


@_draw.register
def _(uniform: Uniform, tensor: torch.Tensor, generator: torch.Generator | None) -> None:
    _torch.uniform_(tensor, uniform.low, uniform.high, generator=generator)


@_draw.register
def _(normal: Normal, tensor: torch.Tensor, generator: torch.Generator | None) -> None:
    _torch.normal_(tensor, normal.center, normal.sigma, generator=generator)


@_draw.register
def _(normal: TruncNormal, tensor: torch.Tensor, generator: torch.Generator | None) -> None:
    if normal.sigma == 0.0:  # torch divides by it
        _torch.fill_(tensor, normal.mean())
    else:
        _torch.trunc_normal_(tensor, normal.center, normal.sigma, normal.low, normal.high, generator=generator)


@_draw.register
@torch.no_grad()
def _(diagonal: Diagonal, tensor: torch.Tensor, generator: torch.Generator | None) -> None:
    # A strided view serves, because not all dtypes have indexing.
    values = tensor if tensor.is_contiguous() else torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    values.zero_()
    size = tensor.numel() // diagonal.period, diagonal.length
    values.view(-1).as_strided(size, (diagonal.period, diagonal.step), values.storage_offset() + diagonal.first).fill_(
        diagonal.value
    )
    if values is not tensor:
        tensor.copy_(values)
