"""Shards of Megatron-LM and Transformer Engine: plain local tensors whose attributes say how they were divided.

- `tensor_model_parallel`: whether the tensor is divided over the ranks of tensor parallelism.
- `partition_dim`: the dimension that is divided.
- `partition_stride`: the global dimension is `stride` blocks, as the gates of a fused projection are, and every rank
  holds its part of each of them, one part behind the other.
- `allreduce`: False for experts, which have ranks of their own.

The tensor does not say which part it is. Megatron's parallel_state knows this, or the caller does (`tensor_parallel`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch

from fastinit.distributed.agreement import ranks_of
from fastinit.distributed.pieces import Held, Piece
from fastinit.distributed.shards import MeshSplit, boxes_held, view_of
from fastinit.errors import ParameterError


class _Ranks(NamedTuple):
    """This rank's place among those that hold a tensor's parts. `ranks` lists all of them; empty: nobody knows them."""

    rank: int
    size: int
    ranks: tuple[int, ...] = ()
    groups: frozenset[frozenset[int]] = frozenset()


class _Given(NamedTuple):
    dense: _Ranks
    expert: _Ranks | None
    experts: tuple[int, int] | None  # rank and size of expert parallelism


_given: ContextVar[_Given | None] = ContextVar("fastinit.tensor_parallel", default=None)


@contextmanager
def tensor_parallel(
    rank: int,
    size: int,
    *,
    group: Any = None,
    expert_rank: int | None = None,
    expert_size: int | None = None,
    expert_parallel_rank: int = 0,
    expert_parallel_size: int = 1,
) -> Iterator[None]:
    """Say which parts this rank holds of the tensors that Megatron-LM or Transformer Engine has divided.

    Where Megatron's `parallel_state` is loaded and initialised, it is asked, and nobody needs this context. Elsewhere
    everything that plans, writes or reads such a model belongs inside.

    Args:
        rank, size: this rank among those of tensor parallelism, and their number.
        group: their process group. It serves `seed=None` and `fingerprint`, which need to know the other ranks.
        expert_rank, expert_size: the same for the tensor parallelism within experts. None: experts are divided as all
            other tensors are.
        expert_parallel_rank, expert_parallel_size: this rank among those that share out whole experts.

    Raises:
        ValueError: a rank is not in [0, size), or not this process's place in the group.

    >>> weight = torch.nn.Parameter(torch.empty(2, 3))
    >>> weight.tensor_model_parallel, weight.partition_dim = True, 0
    >>> with tensor_parallel(rank=1, size=4):
    ...     held = held_of_megatron(weight, "weight")
    >>> held.shape, held.pieces[0].begin
    (torch.Size([8, 3]), (2, 0))
    """
    _check_rank("rank", rank, "size", size)
    _check_rank("expert_parallel_rank", expert_parallel_rank, "expert_parallel_size", expert_parallel_size)
    if (expert_rank is None) != (expert_size is None):
        raise ValueError("expert_rank, expert_size: expected both or none of them")
    expert = None
    if expert_rank is not None and expert_size is not None:
        _check_rank("expert_rank", expert_rank, "expert_size", expert_size)
        expert = _Ranks(expert_rank, expert_size)
    members: tuple[int, ...] = ()
    if group is not None:
        members = tuple(torch.distributed.get_process_group_ranks(group))
        if len(members) != size:
            raise ValueError(f"group: expected one of {size} ranks, got {len(members)}")
        place = torch.distributed.get_rank(group)
        if place not in (rank, -1):  # two ranks would write the same part, and nobody another part
            raise ValueError(f"rank: expected {place}, the place of this process in its group, got {rank}")
    dense = _Ranks(rank, size, members, frozenset({frozenset(members)}) if members else frozenset())
    token = _given.set(_Given(dense, expert, (expert_parallel_rank, expert_parallel_size)))
    try:
        yield
    finally:
        _given.reset(token)


def _check_rank(name: str, rank: object, size_name: str, size: object) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"{size_name}: expected an int of 1 or more, got {size!r}")
    if isinstance(rank, bool) or not isinstance(rank, int) or not 0 <= rank < size:
        raise ValueError(f"{name}: expected an int in [0, {size}), got {rank!r}")


def is_megatron(tensor: Any) -> bool:
    """Whether a tensor is divided over ranks of tensor parallelism."""
    return getattr(tensor, "tensor_model_parallel", False) is True


def held_of_megatron(tensor: torch.Tensor, name: str) -> Held:
    """What this rank holds of a tensor that is divided over ranks of tensor parallelism.

    Raises:
        ParameterError: the attributes contradict the tensor, or nobody says which part it is.
    """
    dim = getattr(tensor, "partition_dim", None)
    if isinstance(dim, bool) or not isinstance(dim, int) or not 0 <= dim < tensor.dim():
        raise ParameterError(
            name,
            f"its tensor_model_parallel is True; expected a partition_dim in [0, {tensor.dim()}) for its local shape "
            f"{tuple(tensor.shape)}, got {dim!r}",
        )
    stride = getattr(tensor, "partition_stride", 1)
    if isinstance(stride, bool) or not isinstance(stride, int) or stride < 1 or tensor.shape[dim] % stride != 0:
        raise ParameterError(
            name,
            f"expected a partition_stride that divides the {tensor.shape[dim]} elements of its local dimension {dim}, "
            f"got {stride!r}",
        )
    of = _ranks_of(tensor, name)
    local = list(tensor.shape)
    shape = torch.Size((*local[:dim], local[dim] * of.size, *local[dim + 1 :]))
    own = tensor.detach()
    pieces = [
        Piece(box.begin, view_of(own, box)) for box in boxes_held(shape, [MeshSplit(dim, of.size, of.rank, stride)])
    ]
    return Held(shape, pieces, ranks=of.ranks, groups=of.groups)


def _is_expert(tensor: torch.Tensor) -> bool:
    return getattr(tensor, "allreduce", True) is False


def _ranks_of(tensor: torch.Tensor, name: str) -> _Ranks:
    given = _given.get()
    if given is not None:
        return given.expert if given.expert is not None and _is_expert(tensor) else given.dense
    state = _parallel_state()
    of = None if state is None else _asked(state, "expert_tensor" if _is_expert(tensor) else "tensor_model")
    if of is None:
        raise ParameterError(
            name,
            f"is one of the parts of a tensor that Megatron-LM or Transformer Engine has divided along dimension "
            f"{getattr(tensor, 'partition_dim', None)}, and nobody says which: megatron.core.parallel_state is not "
            "initialised; call inside fastinit.tensor_parallel(rank=..., size=...)",
        )
    return of


def _parallel_state() -> Any:
    """Megatron's module that knows the ranks, if it is loaded and initialised."""
    state: Any = sys.modules.get("megatron.core.parallel_state")
    if state is None:
        return None
    is_initialized = getattr(state, "model_parallel_is_initialized", None)
    return state if is_initialized is None or is_initialized() else None


def _asked(state: Any, what: str) -> _Ranks | None:
    """What parallel_state says of "tensor_model", "expert_tensor" or "expert_model" parallelism; None: nothing."""
    prefix = {"tensor_model": "tensor_model", "expert_tensor": "expert_tensor", "expert_model": "expert_model"}[what]
    try:
        rank = getattr(state, f"get_{prefix}_parallel_rank")()
        size = getattr(state, f"get_{prefix}_parallel_world_size")()
    except (AttributeError, AssertionError, RuntimeError, ValueError):
        return None
    if not (isinstance(rank, int) and isinstance(size, int) and 0 <= rank < size):
        return None
    data = "expert_data" if what.startswith("expert") else "data"
    members = _group(state, f"get_{prefix}_parallel_group")
    replicas = _group(state, f"get_{data}_parallel_group")
    groups = frozenset(frozenset(each) for each in (members, replicas) if each)
    return _Ranks(rank, size, members if len(members) == size else (), groups if members else frozenset())


def _group(state: Any, function: str) -> tuple[int, ...]:
    """The ranks of a process group that parallel_state gives; empty: it gives none."""
    with suppress(AttributeError, AssertionError, RuntimeError, ValueError, TypeError):
        group = getattr(state, function)()
        return tuple(torch.distributed.get_process_group_ranks(group)) if ranks_of(group) else ()
    return ()


# The attributes in which Megatron's own layers keep the global size of the dimension that they divide.
_GLOBAL_SIZES = {
    "ColumnParallelLinear": "output_size",
    "RowParallelLinear": "input_size",
    "VocabParallelEmbedding": "num_embeddings",
}


def check_in_module(module: torch.nn.Module, tensor: torch.Tensor, name: str, *, is_renamed: bool) -> None:
    """Raise ParameterError if the module of a parameter contradicts what its attributes say, or if its name is not
    that in the whole model. Parameters of other makes pass.

    - Transformer Engine marks weights as divided even where a module has no `parallel_mode`.
    - Megatron's layers keep the global size.
    - Experts that several ranks share out have local numbers in their names. Two ranks must not give one name to two
      experts.

    is_renamed: whether the caller has said what the names are in the whole model.
    """
    if not is_megatron(tensor) and not _is_expert(tensor):
        return
    if is_megatron(tensor):
        of = _ranks_of(tensor, name)
        if of.size > 1 and getattr(module, "parallel_mode", "") is None:
            raise ParameterError(
                name,
                "its tensor_model_parallel is True, but its module has no parallel_mode; set the attribute to False if "
                "every rank holds all of it",
            )
        kind: Any = type(module)
        own = next((_GLOBAL_SIZES[base.__name__] for base in kind.__mro__ if base.__name__ in _GLOBAL_SIZES), None)
        size = None if own is None else getattr(module, own, None)
        found = held_of_megatron(tensor, name).shape[tensor.partition_dim]  # type: ignore[attr-defined]
        if isinstance(size, int) and size != found:
            raise ParameterError(
                name,
                f"expected a global size of {size} along dimension {tensor.partition_dim}, "  # type: ignore[attr-defined]
                f"as its module's {own} says, got {found}: {of.size} ranks with local shape {tuple(tensor.shape)}",
            )
    if _is_expert(tensor) and not is_renamed and (count := _expert_parallel_size()) != 1:
        shared = "ranks share out the experts" if count is None else f"{count} ranks share out the experts"
        raise ParameterError(
            name,
            f"is an expert's (allreduce=False), and {shared}, so that several experts have this name; give names=, "
            "which says what they are called in the whole model",
        )


def _expert_parallel_size() -> int | None:
    """How many ranks share out the experts; None: nobody knows."""
    given = _given.get()
    if given is not None:
        return given.experts[1] if given.experts is not None else 1
    state = _parallel_state()
    of = None if state is None else _asked(state, "expert_model")
    return None if of is None else of.size
