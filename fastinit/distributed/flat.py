"""Shards of FullyShardedDataParallel (FSDP1): parameters of a unit become one flat parameter; a rank has a range of it.

The modules then have no parameters any more (or, under use_orig_params, the ranges in the shard). So whoever looks at a
model does so inside `unflattened`: there, modules have a stand-in for each of their parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fastinit._torch import FlatPart, flat_group, flat_memory, flat_parts
from fastinit.distributed.agreement import ranks_of
from fastinit.distributed.pieces import Held, pieces_of_range
from fastinit.errors import ParameterError

_MARK = "_fastinit_flat"  # the attribute of a parameter that stands for one: its wrapper, and its position there


_WRAPPER = "FullyShardedDataParallel"


def is_flattened(module: object) -> bool:
    """Whether a module is torch's FullyShardedDataParallel with its parameters cut into flat shards.

    They are, except within `summon_full_params`.
    """
    if type(module).__name__ != _WRAPPER:
        return False
    return getattr(getattr(module, "training_state", None), "name", "") != "SUMMON_FULL_PARAMS"


@contextmanager
def unflattened(model: nn.Module, modules: Iterable[nn.Module] | None = None) -> Iterator[None]:
    """Give modules an empty stand-in for each parameter that FSDP1 has made part of a flat one (see `is_flat`).

    Nothing is gathered. Afterwards the modules are as before. `modules`: all of the model's, if they are known.

    Raises:
        ParameterError: this torch does not tell what a flat shard consists of.
    """
    kept: list[tuple[nn.Module, dict[str, Any], dict[str, Any]]] = []
    seen: set[nn.Module] = set()
    kinds: set[Any] = set(map(type, model.modules() if modules is None else modules))
    some_are = any(kind.__name__ == _WRAPPER for kind in kinds)  # else the names need not be made

    def keep(module: nn.Module) -> None:
        if module not in seen:
            seen.add(module)
            kept.append((module, dict(module._parameters), dict(module.__dict__)))

    try:
        for prefix, wrapper in list(model.named_modules()) if some_are else ():
            if not is_flattened(wrapper):
                continue
            parts = flat_parts(wrapper)
            if parts is None:
                raise ParameterError(
                    prefix or "model",
                    "its parameters are flat shards under FullyShardedDataParallel, of which this torch does not tell "
                    "enough; do this inside FullyShardedDataParallel.summon_full_params(model), or before wrapping",
                )
            if not parts:
                continue
            flat, _, _ = flat_memory(wrapper)
            for module in wrapper.modules():
                if any(each is flat for each in module._parameters.values()):
                    keep(module)
                    for own_name in [name for name, each in module._parameters.items() if each is flat]:
                        del module._parameters[own_name]
            for position, part in enumerate(parts):
                own = _stand_in(wrapper, position, part, flat)
                for module, own_name in part.places:
                    keep(module)
                    module.__dict__.pop(own_name, None)
                    module._parameters[own_name] = own
        yield
    finally:
        for module, parameters, attributes in kept:
            module._parameters.clear()
            module._parameters.update(parameters)
            for own_name in attributes.keys() - module.__dict__.keys():
                module.__dict__[own_name] = attributes[own_name]


def _stand_in(wrapper: nn.Module, position: int, part: FlatPart, flat: torch.Tensor) -> nn.Parameter:
    of: Any = flat if part.parameter is None else part.parameter
    own = nn.Parameter(torch.empty(0, dtype=flat.dtype, device=flat.device), requires_grad=of.requires_grad)
    if part.parameter is not None:
        own.__dict__.update(part.parameter.__dict__)
    own.__dict__[_MARK] = wrapper, position
    return own


def is_flat(tensor: Any) -> bool:
    """Whether a parameter stands for one that FSDP1 has made part of a flat one."""
    return _MARK in getattr(tensor, "__dict__", {})


def local_tensors(tensor: Any) -> list[torch.Tensor]:
    """This rank's flat shard, and the flat parameter, which may be gathered."""
    flat, local, _ = flat_memory(tensor.__dict__[_MARK][0])
    return [local, flat]


def held_of_flat(tensor: Any, name: str) -> Held:
    """What this rank's flat shard has of a parameter.

    Raises:
        ParameterError: the parameter is gathered now, or its elements lie in another order.
    """
    wrapper, position = tensor.__dict__[_MARK]
    parts = flat_parts(wrapper)
    _, local, is_sharded = flat_memory(wrapper)
    if parts is None or not is_sharded:
        raise ParameterError(name, "is part of a flat parameter of FullyShardedDataParallel that is gathered now")
    part = parts[position]
    if not part.is_plain:
        raise ParameterError(
            name,
            "is part of a flat parameter of FullyShardedDataParallel, in which its elements are not in row-major order "
            "(another memory format, or a tensor of another kind); initialise it before wrapping",
        )
    memory = local.narrow(0, part.offset, part.numel)
    pieces, _ = pieces_of_range(part.shape, part.begin, memory)
    group, shards = flat_group(wrapper)
    ranks = tuple(sorted(ranks_of(group)))
    copies = 1 if shards else len(ranks)
    is_first = shards or torch.distributed.get_rank() == ranks[0]
    groups = frozenset({frozenset(ranks)})
    return Held(part.shape, pieces, ranks=ranks, groups=groups, copies=copies, is_first=is_first)
