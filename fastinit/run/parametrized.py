"""Weights that a module computes from other parameters. They are found here, and set through these parameters.

Two kinds are known: torch's parametrizations with a `right_inverse` (torch.nn.utils.parametrize), and the older
weight_norm and spectral_norm, which compute the weight in a hook. Assigning to such a weight would do nothing, because
the next forward pass computes it again.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

from fastinit import _torch
from fastinit._torch import SPECTRAL_NORMS
from fastinit.distributed.held import is_sharded
from fastinit.run.exact import exact_arithmetic

# `torch.nn.utils.spectral_norm` is the function, which hides the module of the same name.
SpectralNorm: Any = importlib.import_module("torch.nn.utils.spectral_norm").SpectralNorm


class Computed(NamedTuple):
    """A weight `own_name` that a module computes from `originals`, its present value, and how to set it."""

    own_name: str
    originals: list[nn.Parameter]
    weight: torch.Tensor
    setter: ThroughRightInverse | ThroughWeightNorm | ThroughSpectralNorm
    reason: str

    def is_current(self) -> bool:
        """Whether the module still computes it in the same way, from originals of the same shapes and dtypes."""
        if not self.setter.is_current():
            return False
        now = self.setter.originals()
        return [_kind(each) for each in now] == [_kind(each) for each in self.originals]


def _kind(tensor: torch.Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.dtype, tensor.device.type == "meta"


class ThroughRightInverse:
    """Sets the originals of a parametrised weight by the right_inverse of every parametrization, the last one first."""

    def __init__(self, module: nn.Module, own_name: str, parametrizations: parametrize.ParametrizationList) -> None:
        self._module, self._own_name = module, own_name
        self._list: Any = parametrizations

    def is_current(self) -> bool:
        found: Any = self._module._modules.get("parametrizations")
        return found is not None and found._modules.get(self._own_name) is self._list

    def originals(self) -> list[Any]:
        chain = self._list
        if chain.is_tensor:
            return [chain.original]
        return [getattr(chain, f"original{position}") for position in range(chain.ntensors)]

    def compute(self) -> torch.Tensor:
        """The weight as it is. Unlike the module's attribute, it updates no estimate of a norm and fills no cache."""
        modes = [(each, each.training) for each in self._list.modules()]
        self._list.eval()
        devices = {each.device for each in self.originals()}
        try:
            with exact_arithmetic(devices):
                weight: torch.Tensor = self._list()
        finally:
            for each, training in modes:
                each.training = training
        return weight.detach().requires_grad_(any(each.requires_grad for each in self.originals()))

    @torch.no_grad()
    def prepare(self, weight: torch.Tensor) -> object:
        # right_inverse may write to buffers, as that of `orthogonal` does. Until all is checked, it writes to copies.
        chain = copy.deepcopy(list(self._list)) if next(self._list.buffers(), None) is not None else list(self._list)
        value: Any = weight
        with _OwnGenerators():
            for each in reversed(chain):
                value = each.right_inverse(value)
        values = (value,) if isinstance(value, torch.Tensor) else tuple(value)
        given, wanted = [tuple(each.shape) for each in values], [tuple(each.shape) for each in self.originals()]
        if given != wanted:
            raise ValueError(f"right_inverse gives shapes {given}, expected {wanted}")
        effective = values
        for each in chain:
            if isinstance(each, SPECTRAL_NORMS):  # it still estimates the norm of the previous weight
                each.train()
                for _ in range(POWER_ITERATIONS):
                    each(*effective)
            effective = (each(*effective),)
        _check_no_nan(effective[0])
        return values, chain

    def written(self, prepared: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The tensors that `commit` writes to, with their values.

        Estimates of norms are left out, since every forward pass changes them.
        """
        values, chain = prepared
        found = list(zip(self.originals(), values, strict=True))
        for each, copied in zip(self._list, chain, strict=True):
            if copied is not each and not isinstance(each, SPECTRAL_NORMS):
                buffers = dict(copied.named_buffers())
                found += [(buffer, buffers[name]) for name, buffer in each.named_buffers() if name in buffers]
        return found

    @torch.no_grad()
    def commit(self, prepared: Any) -> None:
        values, chain = prepared
        for original, value in zip(self.originals(), values, strict=True):
            original.copy_(value)
        for each, copied in zip(self._list, chain, strict=True):
            if copied is not each:
                _copy_buffers(each, copied)
        _torch.forget_cached(self._module, self._own_name)


# torch's spectral_norm begins with as many.
POWER_ITERATIONS = 15


class _OwnGenerators(TorchFunctionMode):
    """Within it, this thread's random numbers come from new generators with seed 0.

    `orthogonal` completes a basis at random. Here it does so in the same way every time. torch's own generators, from
    which other threads draw, stay as they are.
    """

    _LIKE: ClassVar[dict[str, Callable[..., torch.Tensor]]] = {"randn_like": torch.randn, "rand_like": torch.rand}
    _RANDOM = frozenset(
        {
            *("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial"),
            *("normal_", "uniform_", "random_", "bernoulli_", "exponential_", "cauchy_", "geometric_", "log_normal_"),
        }
    )

    def __init__(self) -> None:
        super().__init__()
        self._generators: dict[torch.device, torch.Generator] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name, named = getattr(func, "__name__", ""), dict(kwargs or {})
        tensor = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if tensor is not None and name in self._LIKE:
            named = {"dtype": tensor.dtype, "device": tensor.device, **named}
            func, name, args = self._LIKE[name], "randn", tensor.shape
        if name in self._RANDOM and named.get("generator") is None:
            device = torch.device(named.get("device") or ("cpu" if tensor is None else tensor.device))
            if device not in self._generators:
                self._generators[device] = torch.Generator(device).manual_seed(0)
            named["generator"] = self._generators[device]
        return func(*args, **named)


def _copy_buffers(to: nn.Module, source: nn.Module) -> None:
    for module, other in zip(to.modules(), source.modules(), strict=True):
        for name, buffer in other._buffers.items():
            own = module._buffers.get(name)
            if own is None or buffer is None or own.shape != buffer.shape:
                module._buffers[name] = buffer
            else:
                own.copy_(buffer)


def _check_no_nan(weight: torch.Tensor) -> None:
    if weight.isnan().any():
        raise ValueError("the weight comes out as NaN; a direction of length zero cannot be normalised")


class ThroughWeightNorm:
    """Sets weight_g and weight_v of the older torch.nn.utils.weight_norm: v = weight, g = its norms."""

    def __init__(self, module: nn.Module, hook: WeightNorm) -> None:
        self._module, self._hook = module, hook

    def is_current(self) -> bool:
        return self._hook in self._module._forward_pre_hooks.values()

    def originals(self) -> list[Any]:
        return [getattr(self._module, self._hook.name + ending) for ending in ("_g", "_v")]

    @torch.no_grad()
    def prepare(self, weight: torch.Tensor) -> Sequence[torch.Tensor]:
        norm = torch.norm_except_dim(weight, 2, self._hook.dim)
        _check_no_nan(weight * (norm / norm))
        return [norm, weight]

    def written(self, prepared: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return list(zip(self.originals(), prepared, strict=True))

    def commit(self, prepared: Any) -> None:
        with torch.no_grad():
            for original, value in self.written(prepared):
                original.copy_(value)
        # The module has this weight until the next forward pass computes it again.
        setattr(self._module, self._hook.name, self._hook.compute_weight(self._module))


class ThroughSpectralNorm:
    """Sets the originals of the older torch.nn.utils.spectral_norm.

    They are weight_orig, and its estimate of the norm in weight_u and weight_v.
    """

    def __init__(self, module: nn.Module, hook: Any) -> None:
        self._module, self._hook = module, hook

    def is_current(self) -> bool:
        return self._hook in self._module._forward_pre_hooks.values()

    def originals(self) -> list[Any]:
        return [getattr(self._module, self._hook.name + "_orig")]

    @torch.no_grad()
    def prepare(self, weight: torch.Tensor) -> torch.Tensor:
        _check_no_nan(weight / weight.norm())
        return weight

    def written(self, prepared: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(self.originals()[0], prepared)]

    def commit(self, prepared: Any) -> None:
        with torch.no_grad():
            self.originals()[0].copy_(prepared)
            for _ in range(POWER_ITERATIONS):
                self._hook.compute_weight(self._module, do_power_iteration=True)
        weight = self._hook.compute_weight(self._module, do_power_iteration=False)
        setattr(self._module, self._hook.name, weight)


def computed_weights(module: nn.Module) -> Iterator[Computed]:
    """The weights that `module` computes from parameters of its own, and that can be set.

    The originals of a parametrization without right_inverse are parameters like others.

    Raises:
        ValueError: originals that are shards, since the weight needs all of their elements.
    """
    if "parametrizations" in module._modules and parametrize.is_parametrized(module):
        for own_name, chain in module.parametrizations.items():  # type: ignore[operator,union-attr]
            setter = ThroughRightInverse(module, own_name, chain)
            if not all(hasattr(each, "right_inverse") for each in chain):
                continue
            by = " and ".join(type(each).__name__.lstrip("_") for each in chain)
            _check_not_sharded(own_name, setter.originals(), by)
            yield Computed(own_name, setter.originals(), setter.compute(), setter, f"set through {by}.right_inverse")
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            through = ThroughWeightNorm(module, hook)
            originals = through.originals()
            _check_not_sharded(hook.name, originals, "weight_norm")
            yield Computed(hook.name, originals, originals[1], through, "set through weight_norm")
        elif isinstance(hook, SpectralNorm):
            spectral = ThroughSpectralNorm(module, hook)
            originals = spectral.originals()
            _check_not_sharded(hook.name, originals, "spectral_norm")
            yield Computed(hook.name, originals, originals[0], spectral, "set through spectral_norm")


def _check_not_sharded(own_name: str, originals: Sequence[torch.Tensor], by: str) -> None:
    if any(map(is_sharded, originals)):
        raise ValueError(
            f"{own_name}: is set through {by} from shards, which needs the whole weight; initialise it before it is "
            "sharded, or give its originals a rule of their own"
        )
