"""The short way of a tensor, or of a list of them, to its values: dense tensors, each drawn from one distribution.

It is one call of native code (csrc/direct.h). Values, seeds and versions are those of the long way (plans/,
engine.py), which costs many times as much as filling small tensors does. The long way takes everything else, and tells
what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch

from fastinit import _native
from fastinit._torch import MODES, increment_version
from fastinit.run.composed import orthogonal_matrix
from fastinit.run.engine import keys_of_zeros
from fastinit.run.matrix_table import is_small, orthogonal_table
from fastinit.run.memory import EXCHANGE_API
from fastinit.run.streams import name_id
from fastinit.run.table import Table
from fastinit.run.targets import Target
from fastinit.schemes.distributions import Distribution, Normal, Orthogonal, Sparse

# From a tensor, a function that makes a scheme, its arguments and the fans to the distribution; None: the long way.
Resolve = Callable[[torch.Tensor, Callable[..., Any], tuple[Any, ...], Any], Distribution | None]


# Writes to a tensor as the scheme make(*arguments) says, under the empty name, with a seed drawn from a generator
# (None: torch's default one), and returns True; or does nothing, and returns False.
Fill = Callable[[object, Callable[..., Any], tuple[Any, ...], object, torch.Generator | None], bool]


def short_way(resolve: Resolve) -> Fill:
    """A function that fills single tensors. What `resolve` gives for one tensor holds for all of its shape and dtype.

    Without the native code, or what it needs of torch, the function does nothing.
    """
    if _native.module is None or EXCHANGE_API is None or MODES is None:
        return lambda tensor, make, arguments, fan, generator: False

    def work(
        tensor: torch.Tensor, make: Callable[..., Any], arguments: tuple[Any, ...], fan: Any
    ) -> tuple[Any, ...] | None:
        try:
            return _work(resolve(tensor, make, arguments, fan), tensor)
        except Exception:  # for the long way to tell
            return None

    fill: Fill = _native.module.Direct(work, _torch_functions(MODES)).fill
    return fill


def fill_all(
    tensors: Sequence[torch.Tensor],
    names: Sequence[str] | None,
    resolve: Callable[[torch.Tensor], Distribution | None],
    seed: int | None,
    generator: torch.Generator | None,
) -> bool:
    """Write to all tensors in one pass, with one seed; or do nothing: False. No tensor may be a shard of any kind.

    What `resolve` gives for one tensor holds for all of its shape and dtype. `names` None: positions.
    """
    direct = _lists()
    if direct is None:
        return False

    def work(tensor: torch.Tensor) -> tuple[Any, ...] | None:
        try:
            return _work(resolve(tensor), tensor)
        except Exception:  # for the long way to tell
            return None

    name_ids = _ids_of_positions(len(tensors)) if names is None else b"".join(map(name_id, names))
    filled: bool = direct.fill_all(tuple(tensors), work, name_ids, seed, generator)
    return filled


@lru_cache(maxsize=1)
def _lists() -> Any:
    if _native.module is None or EXCHANGE_API is None or MODES is None:
        return None
    return _native.module.Direct(None, _torch_functions(MODES))


@lru_cache(maxsize=8)
def _ids_of_positions(count: int) -> bytes:
    return b"".join(name_id(str(position)) for position in range(count))


def _work(distribution: Distribution | None, tensor: torch.Tensor) -> tuple[Any, ...] | None:
    """What the native code has to do, as csrc/direct.h takes it. It sets the tensor's address later."""
    if tensor.numel() == 0:  # it may be a shard whose elements are elsewhere
        return None
    if distribution is None or distribution.blocks() is not None:
        return None
    # Another tensor stands in, since the address of this one may be of no use.
    like = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    target = Target("", like, like.shape, like.dtype, like.device, distribution)
    if distribution.needs == "element":
        return "fill", distribution.is_random(), _row(target)
    if isinstance(distribution, Orthogonal):
        matrix = orthogonal_matrix(target, distribution)
        if not is_small(matrix):
            return None
        view = matrix.tensor.view(matrix.shape)  # fails where no matrix has such strides
        return "orthogonal", True, orthogonal_table([matrix], [view]).tobytes()
    if isinstance(distribution, Sparse):
        values = target._replace(distribution=Normal(0.0, distribution.sigma))
        keys = keys_of_zeros(target, 0, like.shape[1])
        return "sparse", True, _row(values), _row(keys), like.shape[0], distribution.zeros
    return None


def _row(target: Target) -> bytes:
    return Table([target]).rows.tobytes()


def _torch_functions(modes: tuple[Callable[[], Any], ...]) -> dict[str, Any]:
    tensor, storage = torch.Tensor, torch.UntypedStorage
    return {
        "exchange_api": EXCHANGE_API,
        "modes": modes,
        "tensor_types": (torch.Tensor, torch.nn.Parameter),
        "generator_type": torch.Generator,
        "is_on_cpu": _is_on_cpu,
        "is_neg": tensor.is_neg,
        "untyped_storage": tensor.untyped_storage,
        "storage_address": storage.data_ptr,
        "storage_bytes": storage.nbytes,
        "storage_resizable": storage.resizable,
        "new_word": _new_word,
        "random_": tensor.random_,
        "get_num_threads": torch.get_num_threads,
        "increment_version": increment_version,
    }


def _is_on_cpu(generator: torch.Generator) -> bool:
    return generator.device.type == "cpu"


def _new_word() -> torch.Tensor:
    with torch.inference_mode(False):
        return torch.empty((), dtype=torch.int64, device="cpu")
