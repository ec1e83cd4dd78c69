"""A list of tensors: a plan that gives each the same scheme, and the short way to what it writes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from fastinit._torch import is_compiling
from fastinit.distributed.held import are_plain
from fastinit.plans.planned import Plan
from fastinit.rules.depths import Depths
from fastinit.rules.resolve import Resolver
from fastinit.rules.roles import Treatment
from fastinit.rules.rows import KnownRow, RowMaker
from fastinit.rules.select import as_fan
from fastinit.run.direct import fill_all
from fastinit.run.engine import check_not_traced
from fastinit.run.memory import are_usual
from fastinit.run.names import canonical_name
from fastinit.run.places import Place
from fastinit.schemes.base import Scheme, as_scheme, as_written
from fastinit.schemes.distributions import Distribution
from fastinit.schemes.fans import FanConvention


def plan_tensors(
    tensors: Iterable[torch.Tensor],
    scheme: str | Scheme,
    *,
    names: Sequence[str] | None = None,
    fan: FanConvention = "torch",
    seed: int | None = None,
    generator: torch.Generator | None = None,
    backend: str = "auto",
) -> Plan:
    """A plan that gives every tensor of a list the same scheme. The default `names` are positions: "0", "1", ..."""
    check_not_traced()
    scheme = as_scheme(scheme, lambda made: f"fastinit.init_(tensors, {made})")
    if isinstance(tensors, torch.Tensor):
        raise TypeError(
            "tensors: expected a list of tensors, got one tensor; pass [tensor]: "
            f"fastinit.init_([tensor], {as_written(scheme)})"
        )
    if isinstance(tensors, nn.Module) or not isinstance(tensors, Iterable):
        raise _no_tensors(tensors, scheme)
    tensors = list(tensors)
    for each in tensors:
        if isinstance(each, nn.Module):
            raise _no_tensors(each, scheme)
    canonical = _checked_names(names, len(tensors))
    treatment = Treatment(scheme, "listed")
    maker = RowMaker(Resolver(as_fan(fan), Depths(canonical)))
    rows = []
    known: dict[torch.Size, KnownRow] = {}
    usual = len(tensors) > 1 and are_usual(tensors)
    for name, tensor in zip(canonical, tensors, strict=True):
        place = Place.of_tensor(tensor)
        like = known.get(tensor.shape) if usual else None
        if like is not None and tensor.dtype is like.dtype and tensor.device == like.device:
            rows.append(maker.again(like, name, place))
            continue
        made = maker.row(name, "", None, tensor, treatment, place)
        if usual and made.is_settled:
            known[tensor.shape] = made
        rows.append(made.row)
    maker.warn()
    return Plan(rows, seed=seed, generator=generator, backend=backend)


def fill_tensors(
    tensors: object,
    scheme: str | Scheme,
    *,
    names: Sequence[str] | None,
    fan: FanConvention,
    seed: int | None,
    generator: torch.Generator | None,
) -> bool:
    """Write what `plan_tensors` plans, by the short way of run/direct.py; or do nothing: False."""
    is_usual_seed = seed is None or (type(seed) is int and 0 <= seed < 2**64 and generator is None)
    if type(tensors) not in (list, tuple) or not is_usual_seed or is_compiling():
        return False
    listed: Sequence[torch.Tensor] = tensors  # type: ignore[assignment]
    if any(not isinstance(each, torch.Tensor) for each in listed) or not are_plain(listed):
        return False
    try:
        scheme = as_scheme(scheme)
        canonical = None if names is None else _checked_names(names, len(listed))
        resolver = Resolver(as_fan(fan), Depths(canonical or ()))
    except Exception:  # for plan_tensors to tell
        return False
    treatment = Treatment(scheme, "listed")

    def distribution_of(tensor: torch.Tensor) -> Distribution | None:
        found = resolver("", "", None, tensor.shape, tensor.dtype, treatment)
        return None if found.asked or found.warning or found.disagreement else found.distribution

    return fill_all(listed, canonical, distribution_of, seed, generator)


def _no_tensors(given: object, scheme: Scheme) -> TypeError:
    message = f"tensors: expected a list of tensors, got {type(given).__name__}"
    if isinstance(given, nn.Module):
        message += f"; write fastinit.init_model_(model, {as_written(scheme)})"
    return TypeError(message)


def _checked_names(names: Sequence[str] | None, count: int) -> list[str]:
    if names is None:
        return [str(position) for position in range(count)]
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise TypeError(f"names: expected a list of names, got {names!r}")
    names = list(names)
    for each in names:
        if not isinstance(each, str):
            raise TypeError(f"names: expected a list of names, got {each!r} in it")
    if len(names) != count:
        raise ValueError(f"names: expected {count}, one a tensor, got {len(names)}")
    canonical, seen = [canonical_name(name) for name in names], set()
    for name in canonical:
        if name in seen:
            raise ValueError(f"names: {name!r} stands twice; tensors of one name would get the same values")
        seen.add(name)
    return canonical
