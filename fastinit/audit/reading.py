"""What a report reads: the statistics of every parameter, of the whole one where ranks hold parts of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from fastinit.audit.statistics import NOTHING, Statistics, equal_rows, statistics
from fastinit.distributed.held import local_tensor
from fastinit.distributed.shards import is_dtensor, is_first_replica
from fastinit.errors import ParameterError
from fastinit.plans.rows import Row
from fastinit.rules.roles import RoleName, Roles
from fastinit.run.memory import check_readable
from fastinit.run.names import Renamer, named_modules
from fastinit.run.parametrized import computed_weights
from fastinit.schemes.base import as_scheme
from fastinit.schemes.fans import Geometry, geometry_of


class Asked(NamedTuple):
    """A parameter, or a weight that a parametrization computes, and what it is."""

    name: str
    module: nn.Module
    role: RoleName
    geometry: Geometry | None
    tensor: torch.Tensor


def asked_of(model: nn.Module, rename: Renamer) -> Iterator[Asked]:
    """The parameters, each once, and the weights that parametrizations compute."""
    modules = named_modules(model)
    roles = Roles(model, as_scheme("own"), modules=modules)
    seen: set[int] = set()
    for of in modules:
        tensors: list[tuple[str, torch.Tensor]] = []
        for own_name, parameter in of.module._parameters.items():
            if parameter is not None and id(parameter) not in seen and not nn.parameter.is_lazy(parameter):
                seen.add(id(parameter))
                tensors.append((own_name, parameter))
        tensors += [(each.own_name, each.weight) for each in computed_weights(of.module)]
        for own_name, tensor in tensors:
            canonical = of.names_of(own_name)[0]
            role = roles.role(canonical, of.module, own_name, tensor)
            geometry = None
            if role in ("map", "table"):
                try:
                    geometry = geometry_of("module", of.module, own_name, tensor.shape)
                except ValueError:  # a vector in an unusual place
                    geometry = None
            yield Asked(rename(canonical), of.module, role, geometry, tensor)


def bytes_here(asked: Asked) -> int:
    """The bytes of a parameter that this rank reads."""
    local = local_tensor(asked.tensor)
    return 0 if local.is_meta else local.nbytes


class Measured(NamedTuple):
    """What this rank, or all ranks together, found in a parameter. `failure`: what went wrong on a rank."""

    held: Statistics | None  # None: no memory
    equal_rows: int = 0
    equal_shards: bool = False
    counted: bool = True
    failure: str | None = None


def measure(asked: Asked, wanted: Row | None) -> Measured:
    tensor = asked.tensor
    try:
        if wanted is not None and wanted.shape is not None and tuple(wanted.shape) != tuple(tensor.shape):
            raise ParameterError(
                asked.name, f"planned as {tuple(wanted.shape)}, the model's is {tuple(tensor.shape)}; make a new plan"
            )
        local = local_tensor(tensor).detach()
        if local.is_meta:
            return Measured(None)
        check_readable(tensor, asked.name)
        rows = 0
        if asked.role == "map" and asked.geometry is not None and local.dim() >= 2 and local.numel() > 0:
            rows = equal_rows(_units(local, asked.geometry))
        return Measured(statistics(local), rows, counted=not is_dtensor(tensor) or is_first_replica(tensor))
    except Exception as error:
        if not is_dtensor(tensor):
            raise
        return Measured(None, failure=str(error))  # the other ranks wait for this one


def _units(tensor: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """A map, or a stack of maps, as a matrix with a row for each unit."""
    stacked = geometry.stacked
    return tensor.movedim(geometry.out_dim, stacked).flatten(0, stacked).flatten(1)


def over_ranks(asked: Sequence[Asked], own: list[Measured]) -> list[Measured]:
    """What was found in the whole tensors: the parts of DTensors are joined, in one exchange along each mesh dimension.

    Raises:
        ValueError: a rank could not read a parameter.
    """
    of_meshes: dict[Any, list[int]] = {}
    for at, each in enumerate(asked):
        if is_dtensor(each.tensor):
            of_meshes.setdefault(each.tensor.device_mesh, []).append(at)
    found = list(own)
    for mesh, positions in of_meshes.items():
        if mesh.get_coordinate() is None:
            continue
        parts = [[own[at] for at in positions]]
        for dimension in range(mesh.ndim):
            group = mesh.get_group(dimension)
            if dist.get_backend(group) == "fake":
                raise ParameterError(asked[positions[0]].name, "its mesh has the backend 'fake', which joins nothing")
            gathered: list[Any] = [None] * dist.get_world_size(group)
            dist.all_gather_object(gathered, parts, group=group)
            parts = [part for of_rank in gathered for part in of_rank]
        for which, at in enumerate(positions):
            found[at] = _joined([part[which] for part in parts], asked[at].name)
    return found


def _joined(parts: Sequence[Measured], name: str) -> Measured:
    for part in parts:
        if part.failure is not None:
            raise ParameterError(name, f"a rank could not read it: {part.failure}")
    counted = [part for part in parts if part.counted]
    held = [part.held for part in counted if part.held is not None]
    if len(held) < len(counted):
        return Measured(None)
    total = NOTHING
    for each in held:
        total = total.joined(each)
    # Equal to the last bit in all moments: no two parts of random values are.
    drawn = [each for each in held if each.squares > 0.0 and each.numel >= 4]
    return Measured(total, sum(part.equal_rows for part in counted), len(set(drawn)) < len(drawn))
