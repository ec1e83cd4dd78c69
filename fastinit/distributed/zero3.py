"""Shards of DeepSpeed's ZeRO-3: a rank holds a range of the parameter's elements, in row-major order, and padding.

A parameter that is partitioned has no elements of its own. Its attributes say the rest:

- `ds_id` marks it. `ds_shape` and `ds_numel` are the global shape and the number of elements.
- `ds_tensor` is this rank's part, of one dimension. All parts are of one size; the last ones end in padding.
- `ds_status`: NOT_AVAILABLE, AVAILABLE (gathered: every rank also has the whole) or INFLIGHT (being gathered).
- `ds_process_group`: the ranks that hold the parts, in their order.
- `ds_tensor.status` and `ds_tensor.final_location` tell whether the part is in memory, or on NVMe.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from fastinit.distributed.agreement import ranks_of
from fastinit.distributed.pieces import Held, Piece, pieces_of_range
from fastinit.errors import ParameterError

_MARKS = ("ds_id", "ds_shape", "ds_tensor", "ds_status")


def is_zero3(tensor: Any) -> bool:
    """Whether ZeRO-3 manages a parameter, in whatever state it is."""
    attributes = getattr(tensor, "__dict__", {})
    return any(mark in attributes for mark in _MARKS)


def local_tensors(tensor: Any) -> list[torch.Tensor]:
    """This rank's part, and the parameter itself, which may be gathered."""
    part = tensor.__dict__.get("ds_tensor")
    return [part, tensor] if isinstance(part, torch.Tensor) else [tensor]


_NEEDED = ("ds_shape", "ds_numel", "ds_tensor", "ds_status", "ds_process_group")
_ADVICE = "initialise the model before ZeRO-3 partitions it, or after deepspeed.zero.Init has"


def held_of_zero3(tensor: torch.Tensor, name: str) -> Held:
    """What this rank holds of a parameter under ZeRO-3. A gathered one is written whole, too.

    Raises:
        ParameterError: attributes are missing or contradict each other; the part is not in memory, or holds other
            numbers than the parameter's (quantised); a gathering is under way.
    """

    def refusal(problem: str) -> ParameterError:
        return ParameterError(name, f"is partitioned by DeepSpeed's ZeRO-3, {problem}")

    own = tensor.__dict__
    missing = [each for each in _NEEDED if each not in own]
    if missing:
        raise refusal(f"but has no {', '.join(missing)}, which say what this rank holds of it; {_ADVICE}")
    shape, part = torch.Size(own["ds_shape"]), own["ds_tensor"]
    if getattr(tensor, "tensor_model_parallel", False) is True:
        raise refusal("and divided by tensor parallelism, too (tensor_model_parallel); this is not supported")
    if not isinstance(part, torch.Tensor) or part.dim() != 1 or not part.is_contiguous():
        raise refusal(f"expected a contiguous ds_tensor of one dimension, got {_told(part)}; {_ADVICE}")
    location = _word(getattr(part, "final_location", None))
    if location == "nvme" or _word(getattr(part, "status", "available")) != "available":
        raise refusal(
            f"and its part is not in memory (ds_tensor.status {_word(getattr(part, 'status', None))}, final_location "
            f"{location}); initialise the model before its parameters go to NVMe"
        )
    if own.get("ds_secondary_tensor") is not None or hasattr(part, "ds_quant_scale"):
        raise refusal("with a secondary or quantised partition (ZeRO++), which would not follow; initialise it before")
    status = _word(own["ds_status"])
    if status not in ("available", "not_available"):
        raise refusal(f"and its ds_status is {status}; wait until it is gathered, or partitioned")
    rank, size = own["ds_process_group"].rank(), own["ds_process_group"].size()
    numel, each = math.prod(shape), part.numel()
    if own["ds_numel"] != numel or each != -(-numel // size) or not 0 <= rank < size:
        raise refusal(
            f"expected parts of {-(-numel // size)} elements, {numel} (ds_shape {tuple(shape)}) over {size} ranks; got "
            f"ds_numel {own['ds_numel']} and a ds_tensor of {each} on rank {rank}"
        )
    pieces, padding = pieces_of_range(shape, rank * each, part.detach())
    mirrors = []
    if status == "available":
        if tensor.shape != shape:
            raise refusal(f"and gathered (ds_status): expected shape {tuple(shape)}, got {tuple(tensor.shape)}")
        whole = tensor.detach()
        if whole.untyped_storage().data_ptr() != part.untyped_storage().data_ptr():
            mirrors = [Piece((0,) * len(shape), whole)]
    elif tensor.numel() != 0:
        raise refusal(f"not gathered (ds_status): expected it to be empty, got shape {tuple(tensor.shape)}")
    ranks = tuple(sorted(ranks_of(own["ds_process_group"])))
    ranks = ranks if len(ranks) == size else ()
    groups = frozenset({frozenset(ranks)}) if ranks else frozenset()
    return Held(shape, pieces, padding, mirrors, ranks, groups)


def _word(state: Any) -> str:
    """The name of a member of DeepSpeed's enumerations, in small letters."""
    return str(getattr(state, "name", state)).lower()


def _told(part: object) -> str:
    return f"shape {tuple(part.shape)}" if isinstance(part, torch.Tensor) else repr(part)
