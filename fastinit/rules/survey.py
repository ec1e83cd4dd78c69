"""One walk over a model, or a list of tensors: a row for every parameter and buffer, with what it gets and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from fastinit.distributed.shards import is_dtensor, is_flattened, local_tensor
from fastinit.plans import Plan, Row
from fastinit.rules.depths import Depths
from fastinit.rules.resolve import Resolver
from fastinit.rules.roles import Treatment, default_treatment, ruled_treatment
from fastinit.rules.select import RuleFinder, as_fan
from fastinit.run.memory import NAMELESS, check_tensor
from fastinit.run.parametrized import computed_weights
from fastinit.run.streams import canonical_name, unchanged
from fastinit.schemes.base import Scheme, as_scheme
from fastinit.schemes.fans import FanConvention

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def _init_row(
    name: str, own_name: str, module: nn.Module | None, tensor: torch.Tensor, treatment: Treatment, resolve: Resolver
) -> Row:
    scheme = treatment.scheme
    assert scheme is not None
    check_tensor(tensor, name or NAMELESS)
    if tensor.numel() == 0:
        return Row(name, "init", tensor, scheme, None, None, "empty")
    fans, distribution = resolve(name, own_name, module, tensor, treatment)
    return Row(name, "init", tensor, scheme, fans, distribution, treatment.reason)


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
    """A plan that gives every tensor of a list the same scheme. `names` default to positions: "0", "1", ..."""
    scheme = as_scheme(scheme)
    tensors = list(tensors)
    if names is None:
        names = [str(position) for position in range(len(tensors))]
    elif len(names) != len(tensors):
        raise ValueError(f"names: expected {len(tensors)}, one a tensor, got {len(names)}")
    treatment = Treatment(scheme, "listed")
    resolve = Resolver(as_fan(fan), Depths(()))
    canonical = [canonical_name(name) for name in names]
    if len(set(canonical)) != len(canonical):
        twice = next(name for name in canonical if canonical.count(name) > 1)
        raise ValueError(f"names: {twice!r} stands twice; tensors of one name would get the same values")
    rows = [
        _init_row(name, "", None, tensor, treatment, resolve) for name, tensor in zip(canonical, tensors, strict=True)
    ]
    return Plan(rows, seed=seed, generator=generator, backend=backend)


class Survey:
    """One walk through a model, in the order of its named_parameters()."""

    def __init__(
        self,
        model: nn.Module,
        rename: Callable[[str], str],
        layers: int | Mapping[str, int] | None,
    ) -> None:
        self.model = model
        self._modules = list(model.named_modules())
        self._rename = rename
        self._layers = layers
        self.matched: set[int] = set()

    def meshes(self) -> list[DeviceMesh]:
        """Those of the model's DTensors, each once, in the order of the parameters."""
        found: dict[DeviceMesh, None] = {}
        for _, module in self._modules:
            for parameter in module._parameters.values():
                if is_dtensor(parameter):
                    found.setdefault(parameter.device_mesh)
        return list(found)

    def is_replicated(self) -> bool:
        """Whether a wrapper holds the model to be the same on several ranks.

        Raises:
            ValueError: FSDP1 has cut the parameters into flat pieces.
        """
        replicated = False
        for prefix, module in self._modules:
            if is_flattened(module):
                raise ValueError(
                    f"{prefix or 'model'}: its parameters are flat pieces under FullyShardedDataParallel; "
                    "initialise inside FullyShardedDataParallel.summon_full_params(model), or before wrapping"
                )
            wrapped = isinstance(module, nn.parallel.DistributedDataParallel)
            replicated = replicated or wrapped or type(module).__name__ == "FullyShardedDataParallel"
        return replicated

    def _name(self, prefix: str, own_name: str) -> str:
        return self._rename(canonical_name(f"{prefix}.{own_name}" if prefix else own_name))

    def _names_in_stacks(self) -> Iterator[str]:
        """Names that have all numbers of layers in them: one a module, where the module's own has a number."""
        for prefix, module in self._modules:
            for own_name, parameter in module._parameters.items():
                if parameter is not None:
                    yield self._name(prefix, own_name)
                    if any(part.isdigit() for part in prefix.split(".")):
                        break

    def rows(self, scheme: Scheme, fan: FanConvention, finder: RuleFinder) -> list[Row]:
        """A row a parameter and buffer."""
        self._scheme = scheme
        self._finder = finder
        depths = Depths(self._names_in_stacks(), self._layers, of_part=self._rename is not unchanged)
        self._resolve = Resolver(as_fan(fan), depths)
        rows: list[Row] = []
        names: dict[str, str] = {}  # canonical name -> name in the model
        first_name: dict[int, str] = {}  # id of a parameter -> canonical name
        computed: dict[int, str] = {}  # id of an original -> the weight that is set through it
        for prefix, module in self._modules:
            if "parametrizations" in module._modules or module._forward_pre_hooks:
                rows += self._computed_rows(prefix, module, names, computed, first_name)
            for own_name, parameter in module._parameters.items():
                if parameter is None:
                    continue
                full_name = f"{prefix}.{own_name}" if prefix else own_name
                name = self._rename(canonical_name(full_name))
                if id(parameter) in first_name:
                    reason = f"tied to {first_name[id(parameter)]}"
                    rows.append(Row(name, "tied", parameter, None, None, None, reason))
                    continue
                if id(parameter) in computed:
                    first_name[id(parameter)] = name
                    reason = f"holds {computed[id(parameter)]}"
                    rows.append(Row(full_name, "original", parameter, None, None, None, reason))
                    continue
                if names.setdefault(name, full_name) != full_name:
                    raise ValueError(
                        f"{name}: two parameters have this canonical name, {names[name]} and {full_name}; "
                        "rename a module"
                    )
                first_name[id(parameter)] = name
                treatment = self._treatment(name, own_name, module, parameter)
                if treatment.scheme is None:
                    rows.append(Row(name, "keep", parameter, None, None, None, treatment.reason, treatment.covered))
                else:
                    rows.append(_init_row(name, own_name, module, parameter, treatment, self._resolve))
            for own_name, buffer in module._buffers.items():
                if buffer is not None:
                    name = self._name(prefix, own_name)
                    reason = "buffer of a parametrisation" if "parametrizations." in prefix else "buffer: kept"
                    rows.append(Row(name, "buffer", buffer, None, None, None, reason))
        return rows

    def _treatment(self, name: str, own_name: str, module: nn.Module, parameter: torch.Tensor) -> Treatment:
        position = self._finder.find(name, module, parameter)
        if position is not None:
            self.matched.add(position)
            return ruled_treatment(self._finder.rules[position], module)
        if getattr(parameter, "_is_hf_initialized", False) and not local_tensor(parameter).is_meta:
            return Treatment(None, "loaded weights (_is_hf_initialized): kept")
        # A lazy parameter has no shape; taken for a matrix it meets the check that says so.
        dimensions = 2 if nn.parameter.is_lazy(parameter) else parameter.dim()
        return default_treatment(name, module, own_name, parameter, dimensions, self._scheme)

    def _computed_rows(
        self,
        prefix: str,
        module: nn.Module,
        names: dict[str, str],
        computed: dict[int, str],
        first_name: dict[int, str],
    ) -> list[Row]:
        rows = []
        for each in computed_weights(module):
            full_name = f"{prefix}.{each.own_name}" if prefix else each.own_name
            name = self._rename(canonical_name(full_name))
            names[name] = full_name
            planned = (computed | first_name).get
            tied = next((found for each_of in each.originals if (found := planned(id(each_of))) is not None), None)
            if tied is not None:
                rows.append(Row(name, "tied", each.weight, None, None, None, f"computed from what {tied} holds"))
                continue
            treatment = self._treatment(name, each.own_name, module, each.weight)
            for original in each.originals:
                computed[id(original)] = name
            if treatment.scheme is None:
                rows.append(Row(name, "keep", each.weight, None, None, None, treatment.reason, treatment.covered))
                continue
            reason = f"{treatment.reason}; {each.reason}"
            row = _init_row(name, each.own_name, module, each.weight, treatment._replace(reason=reason), self._resolve)
            rows.append(row._replace(assignment=each.setter))
        return rows
