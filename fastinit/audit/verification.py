"""Compares what a model holds with what a plan writes: values are made once more, a box at a time. Writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from fastinit.distributed.flat import unflattened
from fastinit.distributed.held import global_shape
from fastinit.errors import ParameterError
from fastinit.plans.planned import Plan
from fastinit.plans.rows import Row, targets_of
from fastinit.run.at_exit import waited_for_at_exit
from fastinit.run.engine import check_modes
from fastinit.run.exact import safe_threads
from fastinit.run.memory import check_readable
from fastinit.run.names import Renamer, Renaming, named_modules, named_parameters
from fastinit.run.parametrized import Computed, computed_weights
from fastinit.run.progress import Progress, check_progress, metered
from fastinit.run.scratch import pieces, reads_in_place, staged
from fastinit.run.table import Table
from fastinit.run.targets import Target

# The largest rounding error of an orthogonal matrix with gain 1, in units of the precision it is computed in.
_ROUNDING = 32.0


def check_comparable(model: object, plan: object, without_seed: str) -> int:
    """The plan's seed, if a model can be compared with what the plan writes. `without_seed` says why one is wanted."""
    check_modes()
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(plan, Plan):
        raise TypeError(f"plan: expected a fastinit.Plan, got {type(plan).__name__}")
    if plan.seed is None:
        raise ValueError(f"plan: expected one with a seed; {without_seed}")
    return plan.seed


@waited_for_at_exit
@torch.no_grad()
@safe_threads()
def verify(
    model: nn.Module,
    plan: Plan,
    *,
    names: Renaming | None = None,
    limit: int = 10,
    progress: Progress = None,
) -> tuple[str, ...]:
    """The names of the first parameters of `model` that do not hold the values `plan` would write; empty if all do.

    Values are compared to the bit, so a NaN equals itself, and 0 differs from -0. Some values come out of matrix
    products or the system's mathematical library: orthogonal matrices, others made from them, and time steps. These may
    differ by up to 2 eps |value| + 32 e scale. Here eps is the precision of the dtype, e that of the computation
    (float32, or float64 for float64), and scale the gain or the largest singular value.

    For a parametrised weight, its originals are compared, and its buffers except the estimates of a spectral norm. They
    may differ by as much, with their largest value for the scale.

    Only rows that the plan writes are compared, each with the parameter of its name. The plan may come from another
    instance of the model: on another device, or without the sharding. A process reads the elements of shards that it
    holds itself. Ranks exchange nothing. On the CPU, the comparison takes about the time of filling and no memory.
    Other devices, values that are computed from whole tensors, and those of torch take 16 MiB, or more for a tensor
    that is computed as a whole.

    Args:
        model: any module whose parameters have memory.
        plan: a plan with a seed.
        names: the names of parameters in the whole model, if `model` is a part of it, as in `fastinit.plan`.
        limit: how many names are enough.
        progress: a bar or a function, as for `Plan.run_`.

    Raises:
        TypeError: a model, plan, parameter or progress of another type.
        ValueError: the plan has no seed; the model lacks a parameter, or has it with another shape or dtype, or
            without memory (meta).

    >>> from fastinit import init_model_, plan
    >>> model = torch.nn.Linear(3, 2)
    >>> verify(init_model_(model, "xavier_uniform", seed=0), plan(model, "xavier_uniform", seed=0))
    ()
    >>> verify(model, plan(model, "xavier_uniform", seed=1))
    ('weight',)
    """
    seed = check_comparable(model, plan, "without, every run writes other values")
    check_progress(progress)
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ValueError(f"limit: expected an int of 1 or more, got {limit!r}")
    with unflattened(model):
        held = held_by(model, Renamer(names))
    rows = [(row, matching(row, held)) for row in plan.rows if row.action == "init"]
    in_place, others = split(rows, plan.backend)
    differing: set[str] = set()
    table = Table(in_place) if in_place else None
    nbytes = sum(target.tensor.nbytes for target, _ in others) + (0 if table is None else table.nbytes)
    with metered(progress, "verifying", nbytes) as meter:
        if table is not None:
            found = table.differs_cpu(seed, torch.get_num_threads(), meter)
            differing.update(owner.name for owner, differs in zip(table.owners, found, strict=True) if differs)
        for target, computed, values in staged(others, plan.backend, seed):
            if meter is not None:
                meter.advance(target.tensor.nbytes)
            if target.name in differing:
                continue
            if computed is None:
                equal = _equal(target.tensor.detach(), values, target.distribution.rounding_scale())
            else:
                equal = _holds(computed, target.name, values)
            if not equal:
                differing.add(target.name)
    return tuple([row.name for row, _ in rows if row.name in differing][:limit])


Held = torch.Tensor | Computed


def held_by(model: nn.Module, rename: Callable[[str], str]) -> dict[str, Held]:
    """Parameters and computed weights by their names."""
    parameters: dict[str, Held] = {
        rename(name): parameter
        for name, _, parameter in named_parameters(model, ties=True)
        if not nn.parameter.is_lazy(parameter)
    }
    computed: dict[str, Held] = {
        rename(of.names_of(each.own_name)[0]): each
        for of in named_modules(model)
        for each in computed_weights(of.module)
    }
    return parameters | computed  # where an original has its weight's name, the weight stays


def matching(row: Row, held: dict[str, Held]) -> Held:
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


def split(rows: Sequence[tuple[Row, Held]], backend: str) -> tuple[list[Target], list[tuple[Target, Computed | None]]]:
    """The targets with the model's tensors: those that the native code reads in one pass, and pieces of all others.

    A computed weight is one piece.
    """
    in_place: list[Target] = []
    others: list[tuple[Target, Computed | None]] = []
    for row, found in rows:
        computed, tensor = (found, found.weight) if isinstance(found, Computed) else (None, found)
        for target in targets_of(row._replace(device=tensor.device, boxes=None), tensor):
            if computed is not None:
                others.append((target, computed))
            elif reads_in_place(target, backend):
                in_place.append(target)
            else:
                others += [(piece, None) for piece in pieces(target, backend)]
    return in_place, others


def _holds(computed: Computed, name: str, values: torch.Tensor) -> bool:
    """Whether a weight's originals have what setting it to `values` would give them."""
    try:
        prepared = computed.setter.prepare(values)
    except Exception as error:
        raise ParameterError(name, f"cannot be set through its parametrization: {error}") from error
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
