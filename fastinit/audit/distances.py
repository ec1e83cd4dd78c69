"""How far parameters have come from where a plan began: initial values are made once more, and nothing is kept."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from fastinit.audit.fingerprints import device_of
from fastinit.audit.verification import check_comparable, held_by, matching, split
from fastinit.distributed.flat import unflattened
from fastinit.distributed.held import held_of
from fastinit.errors import ParameterError
from fastinit.plans.planned import Plan
from fastinit.run.at_exit import waited_for_at_exit
from fastinit.run.exact import safe_threads
from fastinit.run.names import Renamer, Renaming
from fastinit.run.scratch import staged
from fastinit.run.table import Table


class Distance(NamedTuple):
    """How far a parameter w is from its initial value v. Norms are Euclidean, over all of its elements.

    norm: |w|.
    initial: |v|.
    moved: |w - v|.
    cosine: w . v / (|w| |v|); NaN where a norm is zero.
    largest: the largest |w[i] - v[i]| that is a number.
    """

    norm: float
    initial: float
    moved: float
    cosine: float
    largest: float


@waited_for_at_exit
@torch.no_grad()
@safe_threads()
def distance(
    model: nn.Module, plan: Plan, *, names: Renaming | None = None, group: dist.ProcessGroup | None = None
) -> dict[str, Distance]:
    """How far every parameter of `model` that `plan` writes is from its initial value.

    The initial values are made once more from the plan's seed, so no second copy of the model is kept or made. On the
    CPU one native pass reads a parameter and its values together, in about the time of filling and without memory for
    them. Elsewhere, and for values that are computed from whole tensors, it takes 16 MiB, or more for a tensor that
    is computed as a whole. Sums are taken in float64, on the CPU in an order that no number of threads changes.

    Args:
        model: any module whose parameters have memory. Nothing is written.
        plan: a plan with a seed, perhaps of another instance of the model: on another device, or without the sharding.
        names: the names of parameters in the whole model, if `model` is a part of it, as in `fastinit.plan`.
        group: the ranks over which the model is spread. All of them must call with equal rows, and get the distances of
            the whole parameters, in which replicas count once. None: a rank tells of the elements that it holds, and
            ranks exchange nothing.

    Raises:
        TypeError: a model, plan or parameter of another type.
        ValueError: as `verify`; or a weight that is parametrised, or whose dtype is not a real floating-point one.

    >>> from fastinit import init_model_, plan
    >>> model = init_model_(torch.nn.Linear(1, 1, bias=False), "ones")
    >>> of = plan(model, "ones", seed=0)
    >>> _ = torch.nn.init.constant_(model.weight, 3.0)
    >>> distance(model, of)["weight"]
    Distance(norm=3.0, initial=1.0, moved=2.0, cosine=1.0, largest=2.0)

    How far layers move tells lazy from feature learning (Chizat, Oyallon, Bach: "On Lazy Training in Differentiable
    Programming", NeurIPS 2019).
    """
    seed = check_comparable(model, plan, "without, its initial values cannot be made again")
    with unflattened(model):
        held = held_by(model, Renamer(names))
    rows = [(row, matching(row, held)) for row in plan.rows if row.action == "init"]
    for row, found in rows:
        if not isinstance(found, torch.Tensor):
            raise ParameterError(row.name, "is computed by a parametrization; plan.filter(...) leaves its row out")
        if not row.dtype.is_floating_point:
            raise ParameterError(row.name, f"expected a real floating-point dtype, got {row.dtype}")
    sums = {row.name: _Sums(0.0, 0.0, 0.0, 0.0, 0.0) for row, _ in rows}
    in_place, others = split(rows, plan.backend)
    if in_place:
        table = Table(in_place)
        for owner, five in zip(table.owners, table.distances_cpu(seed, torch.get_num_threads()), strict=True):
            sums[owner.name] = sums[owner.name].plus(_Sums(*five.tolist()))
    for target, _, values in staged(others, plan.backend, seed):
        sums[target.name] = sums[target.name].plus(_sums_of(target.tensor.detach(), values))
    if group is not None:
        counted = [_counts(row.name, found, group) for row, found in rows]
        sums = _over_ranks(sums, counted, group)
    return {name: each.distance() for name, each in sums.items()}


def _counts(name: str, tensor: Any, group: dist.ProcessGroup) -> bool:
    """Whether this rank counts the elements that it holds: the first of those that hold them."""
    held = held_of(tensor, name)
    if held is None or (not held.ranks and sum(piece.tensor.numel() for piece in held.pieces) == held.shape.numel()):
        return dist.get_rank(group) == 0
    if not held.ranks:
        raise ParameterError(
            name, "is a shard, and which ranks hold the others is not known here (fastinit.tensor_parallel(group=))"
        )
    return held.is_first


class _Sums(NamedTuple):
    now: float
    initial: float
    product: float
    moved: float
    largest: float

    def plus(self, other: _Sums) -> _Sums:
        *mine, largest = self
        *theirs, largest_of_theirs = other
        now, initial, product, moved = map(sum, zip(mine, theirs, strict=True))
        return _Sums(now, initial, product, moved, max(largest, largest_of_theirs))

    def distance(self) -> Distance:
        norm, initial = math.sqrt(self.now), math.sqrt(self.initial)
        both = norm * initial
        cosine = self.product / both if both > 0.0 else math.nan
        return Distance(norm, initial, math.sqrt(self.moved), cosine, self.largest)


# Elements that are compared at a time by torch, in float64.
_AT_ONCE = 2**18


def _sums_of(tensor: torch.Tensor, values: torch.Tensor) -> _Sums:
    total = _Sums(0.0, 0.0, 0.0, 0.0, 0.0)
    dtype = torch.float32 if tensor.device.type == "mps" else torch.float64
    flat, flat_values = tensor.reshape(-1), values.reshape(-1)
    for begin in range(0, len(flat), _AT_ONCE):
        w, v = flat[begin : begin + _AT_ONCE].to(dtype), flat_values[begin : begin + _AT_ONCE].to(dtype)
        change = w - v
        sizes = change.abs().nan_to_num(nan=0.0, posinf=math.inf)
        five = torch.stack([w.dot(w), v.dot(v), w.dot(v), change.dot(change), sizes.max()])
        total = total.plus(_Sums(*five.tolist()))
    return total


def _over_ranks(sums: dict[str, _Sums], counted: list[bool], group: Any) -> dict[str, _Sums]:
    device = device_of(group)
    mine = torch.tensor(
        [each if counts else (0.0,) * 5 for each, counts in zip(sums.values(), counted, strict=True)],
        dtype=torch.float64,
    )
    mine = mine.reshape(-1, 5).to(device)
    largest = mine[:, 4].contiguous()
    dist.all_reduce(mine, group=group)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    found = [(*four, most) for (*four, _), most in zip(mine.tolist(), largest.tolist(), strict=True)]
    return {name: _Sums(*five) for name, five in zip(sums, found, strict=True)}
