"""A restoration: writes the values that were found for buffers, once these have memory."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.weight_norm import WeightNorm

from fastinit._torch import ORTHOGONALS, SPECTRAL_NORMS
from fastinit.errors import ParameterError
from fastinit.meta.lost import RECORDED, Lost
from fastinit.run.parametrized import POWER_ITERATIONS, SpectralNorm


class Restoration:
    """Values for the buffers of a model that are on the meta device, to be written once the buffers have memory.

    `reasons` tells for the canonical name of each buffer how its value was found.
    """

    def __init__(self, lost: Sequence[Lost], modules: Sequence[nn.Module]) -> None:
        self._lost = lost
        self._modules = modules
        self._versions: dict[int, int] = {}
        self._recorded = {(place.module, place.own_name)
                          for each in lost if each.way == RECORDED for place in each.places}  # fmt: skip
        self.reasons = {each.name: each.way for each in lost}
        self._without_base = [(chain, each) for chain in modules for each in _without_base(chain)]

    @torch.no_grad()
    def restore_(self, device: torch.device, modules: Container[nn.Module] | None = None) -> None:
        """Write the values, once `allocate_` has given the buffers memory. Plain attributes are put on `device`.

        With `modules`, only buffers that one of these modules is the first to hold.
        """
        for each in self._lost:
            if modules is not None and each.module not in modules:
                continue
            buffers = [place.holder()[place.own_name] for place in each.places if place.is_buffer]
            target = buffers[0] if buffers else None
            if target is not None and target.is_meta:
                raise ParameterError(each.name, "is on the meta device still; allocate the model first")
            if target is None and each.value is not None:
                target = each.value.to(device, each.tensor.dtype)
            elif target is not None and each.value is not None:
                _write(target, each.value)
                if not target.is_inference():
                    self._versions[id(target)] = target._version
            for place in each.places:
                if not place.is_buffer:
                    place.holder()[place.own_name] = target
        for chain, orthogonal in self._without_base:
            original: Any = chain.original
            rows = max(orthogonal.shape[-2:])
            basis = torch.eye(rows, dtype=original.dtype, device=original.device)
            orthogonal.base = basis.expand(*orthogonal.shape[:-2], rows, rows).clone()

    def values(self) -> dict[str, torch.Tensor]:
        """The values by the canonical names of the buffers, in the buffers' dtypes, for who writes them elsewhere."""
        return {each.name: each.value.to(each.tensor.dtype) for each in self._lost if each.value is not None}

    @torch.no_grad()
    def settle_(self, own: Container[int] = ()) -> None:
        """Compute the values that follow from the parameters, once these are initialised.

        They are spectral_norm's estimates of the largest singular value, unless setting the weight has updated them,
        and the weights that the older weight_norm and spectral_norm compute before a forward pass. `own` are the ids of
        parameters that got what their author's code gives. Recorded estimates fit those already.
        """
        for module in self._modules:
            if isinstance(module, parametrize.ParametrizationList) and not self._fits(module, own):
                self._settle_parametrization(module)
            for hook in module._forward_pre_hooks.values():
                if isinstance(hook, SpectralNorm) and self._is_as_restored(module._buffers[hook.name + "_u"]):
                    fits = id(module._parameters[hook.name + "_orig"]) in own
                    if not (fits and (module, hook.name + "_u") in self._recorded):
                        for _ in range(POWER_ITERATIONS):
                            hook.compute_weight(module, do_power_iteration=True)
                    setattr(module, hook.name, hook.compute_weight(module, do_power_iteration=False))
                elif isinstance(hook, WeightNorm) and module.__dict__[hook.name].is_meta:
                    setattr(module, hook.name, hook.compute_weight(module))

    def _fits(self, chain: Any, own: Container[int]) -> bool:
        """Whether the estimates of a parametrisation were recorded together with the values of its parameters."""
        recorded = all((each, "_u") in self._recorded for each in chain if isinstance(each, SPECTRAL_NORMS))
        return recorded and all(id(each) in own for each in chain._parameters.values())

    def _settle_parametrization(self, chain: Any) -> None:
        if not any(
            isinstance(each, SPECTRAL_NORMS) and self._is_as_restored(each._buffers.get("_u")) for each in chain
        ):
            return
        values: Any = (
            (chain.original,) if chain.is_tensor else [getattr(chain, f"original{i}") for i in range(chain.ntensors)]
        )
        for each in chain:
            training = each.training
            if isinstance(each, SPECTRAL_NORMS):
                each.train()
                for _ in range(POWER_ITERATIONS):
                    each(*values)
            each.eval()
            values = (each(*values),)
            each.train(training)

    def _is_as_restored(self, buffer: torch.Tensor | None) -> bool:
        return buffer is not None and id(buffer) in self._versions and self._versions[id(buffer)] == buffer._version


def _without_base(chain: nn.Module) -> list[Any]:
    """torch's orthogonal parametrisations that got no basis, since right_inverse does nothing on the meta device.

    They cannot compute a weight without a basis. The identity serves until setting the weight sets the basis, too.
    """
    if not isinstance(chain, parametrize.ParametrizationList):
        return []
    return [each for each in chain if isinstance(each, ORTHOGONALS) and each._buffers.get("base", chain) is None]


def _write(target: Any, value: torch.Tensor) -> None:
    if hasattr(target, "placements"):  # a DTensor
        from torch.distributed.tensor import distribute_tensor

        # Every rank has computed the whole value, so none asks another.
        mesh, placements = target.device_mesh, target.placements
        sharded = distribute_tensor(value.to(target.dtype), mesh, placements, src_data_rank=None)
        target.to_local().copy_(sharded.to_local())
    else:
        target.copy_(value)
