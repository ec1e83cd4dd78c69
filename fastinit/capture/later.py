"""Plans that run inside of `deferred()`: their values are recorded, and `materialize_` writes them with all others."""

from __future__ import annotations

from typing import Any

from fastinit import _torch
from fastinit.capture.contexts import deferring
from fastinit.errors import ParameterError
from fastinit.plans.planned import Plan


def run_(plan: Plan, **options: Any) -> None:
    """Run a plan. Rows whose tensors a `deferred()` around the caller has recorded are recorded, too.

    Raises:
        ParameterError: such a row's weight is computed by a parametrization, or comes from a generator.
    """
    recorders = deferring()
    recorded = []
    for row in plan.rows if recorders else ():
        if row.action == "init" and row.distribution is not None:
            tensor = row.place.tensor()
            with _torch.modes_off():
                recorder = next((each for each in recorders if each.stored(tensor) is not None), None)
            if recorder is not None:
                if row.place.assignment is not None:
                    raise ParameterError(row.name, "is computed by a parametrization; materialize_ it first")
                if plan.has_generator:
                    raise ParameterError(row.name, "generator: expected None inside of deferred(); give a seed")
                recorded.append((recorder, tensor, row.name, row.distribution))
    for recorder, tensor, name, distribution in recorded:
        with _torch.modes_off():
            recorder.put(tensor, distribution, None if plan.seed is None else (plan.seed, name))
    names = {name for _, _, name, _ in recorded}
    if len(names) < len(plan.rows):
        (plan.filter(lambda row: row.name not in names) if names else plan).run_(**options)
