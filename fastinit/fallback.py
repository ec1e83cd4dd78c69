"""One tensor through torch: where the native code is missing or does not apply, and for backend="torch"."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from fastinit import composed
from fastinit.distributions import Constant, Diagonal, Normal, TruncNormal, Uniform, is_random
from fastinit.forks import safe_threads
from fastinit.layout import box_of
from fastinit.orthogonal import Matrix
from fastinit.streams import derive_stream
from fastinit.table import Target


@safe_threads()
def fill(target: Target, seed: int | None, generator: torch.Generator | None) -> None:
    """Write one tensor with torch's own random numbers.

    Without a seed they come from `generator` or from torch's default generator of the device, just as a loop of
    torch.nn.init calls would draw them. With one, every name has a generator of its own, seeded by its stream.
    """
    if seed is not None and is_random(target.distribution):
        generator = torch.Generator(target.device)
        generator.manual_seed(derive_stream(seed, target.name).key)
    if target.begin is None:
        composed.fill_all([target], TorchSource(generator))
        return
    # torch's numbers depend on how many came before: a shard is cut out of the whole.
    every = torch.empty(target.shape, dtype=target.dtype, device=target.device)
    composed.fill_all([target._replace(tensor=every, begin=None)], TorchSource(generator))
    target.tensor.detach().copy_(box_of(every, target.begin, target.tensor.shape))


class TorchSource:
    """Random values of a torch generator, in the order in which torch.nn.init draws them."""

    def __init__(self, generator: torch.Generator | None) -> None:
        self._generator = generator

    def fill_all(self, targets: Sequence[Target]) -> None:
        for target in targets:
            self._fill(target)

    def _fill(self, target: Target) -> None:
        tensor, distribution = target.tensor, target.distribution
        generator = self._generator
        if isinstance(distribution, Constant):
            nn.init.constant_(tensor, distribution.value)
        elif isinstance(distribution, Diagonal):
            _fill_diagonal(tensor, distribution)
        elif isinstance(distribution, Uniform):
            nn.init.uniform_(tensor, distribution.low, distribution.high, generator=generator)
        elif isinstance(distribution, Normal):
            nn.init.normal_(tensor, distribution.center, distribution.sigma, generator=generator)
        else:
            assert isinstance(distribution, TruncNormal), "composed.fill takes the others apart"
            mean, sigma, low, high = distribution
            if sigma == 0.0:  # torch divides by it
                nn.init.constant_(tensor, min(max(mean, low), high))
                return
            nn.init.trunc_normal_(tensor, mean, sigma, low, high, generator=generator)

    def zero_rows(self, target: Target, zeros: int) -> None:
        # As torch.nn.init.sparse_ does it; torch's own forgets its generator here.
        rows, columns = target.shape
        device = "cpu" if self._generator is None else self._generator.device
        for column in range(columns):
            chosen = torch.randperm(rows, generator=self._generator, device=device)[:zeros]
            target.tensor[chosen, column] = 0

    def orthogonal(self, matrices: Sequence[Matrix]) -> None:
        # As torch.nn.init.orthogonal_ does it, which knows no bfloat16, no strides and no complex numbers.
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


@torch.no_grad()
def _fill_diagonal(tensor: torch.Tensor, diagonal: Diagonal) -> None:
    tensor.zero_()
    indices = torch.tensor(diagonal.indices(tensor.numel()), dtype=torch.int64, device=tensor.device)
    tensor[torch.unravel_index(indices, tensor.shape)] = diagonal.value
