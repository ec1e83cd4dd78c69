"""What a model's parameters hold, beside what a plan wants, with a sentence on all that is off. Writes nothing."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from fastinit.audit.flags import flags_of, moments_of
from fastinit.audit.reading import Asked, Measured, asked_of, bytes_here, measure, over_ranks
from fastinit.audit.report_table import ParameterReport, Report
from fastinit.audit.statistics import NOTHING, spectrum
from fastinit.distributed.flat import unflattened
from fastinit.distributed.held import is_sharded
from fastinit.distributed.shards import is_dtensor
from fastinit.errors import ParameterError
from fastinit.plans.planned import Plan
from fastinit.plans.rows import Row
from fastinit.run.at_exit import waited_for_at_exit
from fastinit.run.engine import check_modes
from fastinit.run.names import Renamer, Renaming
from fastinit.run.progress import Progress, check_progress, metered
from fastinit.schemes.fans import Geometry


@waited_for_at_exit
def report(
    model: nn.Module,
    plan: Plan | None = None,
    *,
    names: Renaming | None = None,
    singular_values: bool = False,
    progress: Progress = None,
) -> Report:
    """What every parameter of a model holds, beside what a plan wants of it, and what is off.

    For each parameter: mean, std (over all elements), least and largest value, zeros, values that are not finite, fans,
    and for linear maps the gain std * sqrt(fan_in), the factor on the std of a signal whose values are independent with
    mean zero. Flags name what is off, each with a sentence on what to do: memory that nobody initialised, values that
    are not finite, equal values or rows, a map that passes no signal or blows it up, values that are not the plan's.

    Nothing is written, and no random numbers are drawn. Every rank reads the elements of DTensors that it holds. The
    ranks of a mesh must all call, and all get the statistics of the whole. Without DTensors, ranks exchange nothing.

    Args:
        model: any module. Parameters on the meta device are flagged.
        plan: what the parameters should hold; rows are found by name. It may come from another instance of the model.
        names: the names of parameters in the whole model, if `model` is a part of it, as in `fastinit.plan`.
        singular_values: whether to compute those of all maps: n^3 operations each. DTensors are gathered for it.
        progress: a bar or a function, as for `Plan.run_`. It tells of the reading, not of singular values.

    Raises:
        TypeError: the model, the plan, a parameter or progress has another type.
        ValueError: the plan has another shape for a parameter; a parameter's memory was freed, or has an unknown
            placement. If one rank of a mesh fails, every rank raises.

    >>> from fastinit import init_model_, plan
    >>> model = init_model_(torch.nn.Linear(3, 2), "ones", seed=0)
    >>> for sentence in report(model).advice():
    ...     print(sentence)
    weight: all its values are 1: all units compute the same and get the same gradient; draw it, with a scheme for its layer.
    """  # noqa: E501 (as it is printed)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if plan is not None and not isinstance(plan, Plan):
        raise TypeError(f"plan: expected a fastinit.Plan, got {type(plan).__name__}")
    check_progress(progress)
    check_modes()
    wanted = {} if plan is None else {row.name: row for row in plan.rows}
    with unflattened(model):
        asked = list(asked_of(model, Renamer(names)))
    for each in asked:
        if is_sharded(each.tensor) and not is_dtensor(each.tensor):
            raise ParameterError(each.name, "is a shard of another kind than DTensor, of which no report can be made")
    own: list[Measured] = []
    with metered(progress, "reading", sum(bytes_here(each) for each in asked)) as meter:
        for each in asked:
            own.append(measure(each, wanted.get(each.name)))
            if meter is not None:
                meter.advance(bytes_here(each))
    measured = over_ranks(asked, own)
    return Report(
        [
            _reported(each, found, wanted.get(each.name), singular_values)
            for each, found in zip(asked, measured, strict=True)
        ]
    )


def _reported(asked: Asked, found: Measured, row: Row | None, singular_values: bool) -> ParameterReport:
    held, geometry = found.held, asked.geometry
    distribution = None if row is None or row.action != "init" else row.distribution
    fans = None if geometry is None else geometry.fans
    is_map = asked.role == "map" and fans is not None
    is_complex = asked.tensor.is_complex()
    inputs = 0 if fans is None else 2 * fans.fan_in if is_complex else fans.fan_in  # the std is that of the parts
    gain = held.std * math.sqrt(inputs) if is_map and held is not None else None
    moments = None if distribution is None else moments_of(distribution, is_complex)
    singular: tuple[float | None, float | None, float | None] = (None, None, None)
    if singular_values and is_map and geometry is not None and held is not None and held.numel > 0:
        tensor: Any = asked.tensor.detach()
        singular = spectrum(_maps(tensor.full_tensor() if is_dtensor(tensor) else tensor, geometry))
    return ParameterReport(
        asked.name,
        type(asked.module).__name__,
        asked.role,
        tuple(asked.tensor.shape),
        asked.tensor.dtype,
        fans,
        None if distribution is None else str(distribution),
        None if moments is None else moments[0],
        None if moments is None else moments[1],
        None if moments is None else moments[2],
        NOTHING if held is None else held,
        gain,
        *singular,
        tuple(flags_of(asked, found, row, gain)),
    )


def _maps(tensor: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """A map as a matrix, or a stack of maps as a stack of matrices."""
    stacked = geometry.stacked
    return tensor.movedim(geometry.out_dim, stacked).flatten(stacked + 1)
