"""Compares what a model holds with what a plan writes: values are made once more, a box at a time. Writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import nn

from fastinit.distributed.flat import unflattened
from fastinit.distributed.held import global_shape
from fastinit.errors import ParameterError
from fastinit.plans import Plan, Row, targets_of
from fastinit.run import engine
from fastinit.run.index_maps import box_of, boxes
from fastinit.run.memory import check_readable
from fastinit.run.names import Renamer, Renaming, named_modules, named_parameters
from fastinit.run.parametrized import Computed, computed_weights
from fastinit.run.targets import Target, begin_of

# Bytes of values that are made once more at a time: so few that most are in the cache. A tensor that is computed as a
# whole may take more.
_SCRATCH_BYTES = 2**24
# The largest rounding error of an orthogonal matrix with gain 1, in units of the precision it is computed in.
_ROUNDING = 32.0


@torch.no_grad()
def verify(model: nn.Module, plan: Plan, *, names: Renaming | None = None, limit: int = 10) -> tuple[str, ...]:
    """The names of the first parameters of `model` that do not hold the values `plan` would write; empty if all do.

    Values are compared to the bit, so a NaN equals itself, and 0 differs from -0. Some values come out of matrix
    products or the system's mathematical library: orthogonal matrices, others made from them, and time steps. These may
    differ by up to 2 eps |value| + 32 e scale. Here eps is the precision of the dtype, e that of the computation
    (float32, or float64 for float64), and scale the gain or the largest singular value.

    For a parametrised weight, its originals are compared, and its buffers except the estimates of a spectral norm. They
    may differ by as much, with their largest value for the scale.

    Only rows that the plan writes are compared, each with the parameter of its name. The plan may come from another
    instance of the model: on another device, or without the sharding. A process reads the elements of shards that it
    holds itself. Ranks exchange nothing. The comparison takes a few times the time of filling, and 16 MiB of memory, or
    more for tensors that are computed as a whole.

    Args:
        model: any module whose parameters have memory.
        plan: a plan with a seed.
        names: the names of parameters in the whole model, if `model` is a part of it, as in `fastinit.plan`.
        limit: how many names are enough.

    Raises:
        TypeError: a model, plan or parameter of another type.
        ValueError: the plan has no seed; the model lacks a parameter, or has it with another shape or dtype, or
            without memory (meta).

    >>> from fastinit import init_model_, plan
    >>> model = torch.nn.Linear(3, 2)
    >>> verify(init_model_(model, "xavier_uniform", seed=0), plan(model, "xavier_uniform", seed=0))
    ()
    >>> verify(model, plan(model, "xavier_uniform", seed=1))
    ('weight',)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(plan, Plan):
        raise TypeError(f"plan: expected a fastinit.Plan, got {type(plan).__name__}")
    if plan.seed is None:
        raise ValueError("plan: expected one with a seed; without, every run writes other values")
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ValueError(f"limit: expected an int of 1 or more, got {limit!r}")
    with unflattened(model):
        held = _held(model, Renamer(names))
    rows = [(row, _matching(row, held)) for row in plan.rows if row.action == "init"]
    differing: dict[str, None] = {}
    for batch in _batches(rows, plan.backend):
        for each in _differing(batch, plan):
            differing.setdefault(each.target.name)
        if len(differing) >= limit:
            break
    return tuple(differing)[:limit]


_Weight = torch.Tensor | Computed


def _held(model: nn.Module, rename: Callable[[str], str]) -> dict[str, _Weight]:
    """Parameters and computed weights by their names."""
    parameters: dict[str, _Weight] = {
        rename(name): parameter
        for name, _, parameter in named_parameters(model, ties=True)
        if not nn.parameter.is_lazy(parameter)
    }
    computed: dict[str, _Weight] = {
        rename(of.names_of(each.own_name)[0]): each
        for of in named_modules(model)
        for each in computed_weights(of.module)
    }
    return parameters | computed  # where an original has its weight's name, the weight stays


def _matching(row: Row, held: dict[str, _Weight]) -> _Weight:
    """What the model holds under the name of a row.

    Raises:
        TypeError, ValueError: the model holds nothing under this name, or something that does not match the row.
    """
    found = held.get(row.name)
    if found is None:
        raise ParameterError(row.name, "the model has no such parameter; plan.filter(...) leaves rows out")
    tensor = found.weight if isinstance(found, Computed) else found
    check_readable(tensor, row.name)
    shape = global_shape(tensor, row.name)
    if (shape, tensor.dtype) != (row.shape, row.dtype):
        raise ParameterError(
            row.name,
            f"planned as {tuple(row.shape or ())} {row.dtype}, the model's is {tuple(shape)} {tensor.dtype}",
        )
    return found


class _Comparison(NamedTuple):
    """A target whose tensor has the model's values, to compare with those that would be written there.

    A computed weight is compared as a whole.
    """

    target: Target
    computed: Computed | None

    def nbytes(self) -> int:
        return self.target.tensor.numel() * self.target.dtype.itemsize


def _batches(rows: list[tuple[Row, _Weight]], backend: str) -> Iterator[list[_Comparison]]:
    """The comparisons of all rows in order, in batches that fit into the scratch memory."""
    batch: list[_Comparison] = []
    nbytes = 0
    for row, found in rows:
        for each in _comparisons(row, found, backend):
            if batch and nbytes + each.nbytes() > _SCRATCH_BYTES:
                yield batch
                batch, nbytes = [], 0
            batch.append(each)
            nbytes += each.nbytes()
    if batch:
        yield batch


def _comparisons(row: Row, found: _Weight, backend: str) -> Iterator[_Comparison]:
    computed, tensor = (found, found.weight) if isinstance(found, Computed) else (None, found)
    for target in targets_of(row._replace(device=tensor.device, boxes=None), tensor):
        if computed is not None or target.distribution.needs == "tensor" or not engine.fills_natively(target, backend):
            yield _Comparison(target, computed)
            continue
        for begin, shape in boxes(target.tensor.shape, _SCRATCH_BYTES // target.dtype.itemsize):
            if shape == tuple(target.tensor.shape):
                yield _Comparison(target, None)
                continue
            at = tuple(map(sum, zip(begin_of(target), begin, strict=True)))
            yield _Comparison(target._replace(tensor=box_of(target.tensor.detach(), begin, shape), begin=at), None)


def _differing(batch: list[_Comparison], plan: Plan) -> Iterator[_Comparison]:
    expected = [each.target._replace(tensor=_scratch(each.target, plan.backend)) for each in batch]
    engine.Program(expected, plan.backend).run_(plan.seed, None)
    for each, target in zip(batch, expected, strict=True):
        if each.computed is None:
            equal = _equal(each.target.tensor.detach(), target.tensor, target.distribution.rounding_scale())
        else:
            equal = _holds(each.computed, target)
        if not equal:
            yield each


def _scratch(target: Target, backend: str) -> torch.Tensor:
    tensor = target.tensor
    if engine.fills_natively(target, backend):
        return torch.empty_like(tensor)
    # torch's random numbers depend on the strides.
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)


def _holds(computed: Computed, target: Target) -> bool:
    """Whether a weight's originals have the values that setting it to the target's would give them."""
    try:
        prepared = computed.setter.prepare(target.tensor)
    except Exception as error:
        raise ParameterError(target.name, f"cannot be set through its parametrization: {error}") from error
    return all(
        given.shape == value.shape and (value.numel() == 0 or _equal(given.detach(), value, float(value.abs().max())))
        for given, value in computed.setter.written(prepared)
    )


def _equal(given: torch.Tensor, expected: torch.Tensor, scale: float | None) -> bool:
    if torch.equal(_bits(given), _bits(expected)):
        return True
    if scale is None or not (given.dtype.is_floating_point or given.dtype.is_complex):
        return False
    computed_in = torch.float64 if given.dtype in (torch.float64, torch.complex128) else torch.float32
    allowed = expected.abs().to(computed_in) * (2.0 * torch.finfo(given.dtype).eps)
    allowed += _ROUNDING * torch.finfo(computed_in).eps * scale
    common = torch.promote_types(given.dtype, computed_in)
    return bool(((given.to(common) - expected.to(common)).abs() <= allowed).all())


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.view(_INTEGERS[tensor.element_size()])
