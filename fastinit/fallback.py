"""One tensor through torch.nn.init: where the native code is missing or does not apply, and for backend="torch"."""

from __future__ import annotations

import torch
from torch import nn

from fastinit.distributions import Constant, Diagonal, Distribution, Normal, Uniform
from fastinit.streams import derive_stream


def fill(
    name: str,
    tensor: torch.Tensor,
    distribution: Distribution,
    zero_row: int | None,
    seed: int | None,
    generator: torch.Generator | None,
) -> None:
    """Write one tensor with torch's own random numbers.

    Without a seed they come from `generator` or from torch's default generator of the device, just as a loop of
    torch.nn.init calls would draw them. With one, every name has a generator of its own, seeded by its stream.
    """
    if seed is not None and not isinstance(distribution, (Constant, Diagonal)):
        generator = torch.Generator(tensor.device)
        generator.manual_seed(derive_stream(seed, name).key)
    if isinstance(distribution, Constant):
        nn.init.constant_(tensor, distribution.value)
    elif isinstance(distribution, Diagonal):
        _fill_diagonal(tensor, distribution)
    elif isinstance(distribution, Uniform):
        nn.init.uniform_(tensor, distribution.low, distribution.high, generator=generator)
    elif isinstance(distribution, Normal):
        nn.init.normal_(tensor, distribution.mean, distribution.sigma, generator=generator)
    else:
        mean, sigma, low, high = distribution
        nn.init.trunc_normal_(tensor, mean, sigma, low, high, generator=generator)
    if zero_row is not None:
        with torch.no_grad():
            tensor[zero_row].zero_()


@torch.no_grad()
def _fill_diagonal(tensor: torch.Tensor, diagonal: Diagonal) -> None:
    tensor.zero_()
    indices = torch.tensor(diagonal.indices(tensor.numel()), dtype=torch.int64, device=tensor.device)
    tensor[torch.unravel_index(indices, tensor.shape)] = diagonal.value
