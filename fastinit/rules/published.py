"""Parameters whose starting values are published with the method: adapters, state spaces, PReLU, LayerScale, GRN."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastinit.distributed.held import global_shape, is_sharded
from fastinit.rules.asked import Asked, Found, kind_of
from fastinit.run.composed import Later, Source, writes
from fastinit.run.targets import Target
from fastinit.schemes.base import Context
from fastinit.schemes.distributions import Distribution
from fastinit.schemes.named import Constant, Normal, kaiming_uniform
from fastinit.schemes.structured import LogRange, TimeStep

ZEROS, ONES = Constant(0.0), Constant(1.0)
_STANDARD_NORMAL = Normal()
LORA_A = kaiming_uniform(a=5.0**0.5)
_LOG_RANGE = LogRange()
_TIME_STEP = TimeStep()

# LoRA adapters of PEFT and loralib. B is zero, so the update B A starts at zero (Hu et al. 2021, section 4.1). A gets
# the kaiming_uniform with a = sqrt(5) of both libraries. Adapters of an embedding have A zero and B N(0, 1) instead.
LORA_ZERO = re.compile(r"(^|\.)(lora_B|lora_embedding_A)(\.|$)")
LORA_A_NAME = re.compile(r"(^|\.)lora_A(\.|$)")
LORA_EMBEDDING_B = re.compile(r"(^|\.)lora_embedding_B(\.|$)")
_IA3 = re.compile(r"(^|\.)ia3_l(\.|$)")


STATE_SPACE_NAMES = frozenset({"A_log", "D", "dt_bias"})


def published(asked: Asked) -> Found | None:
    own_name = asked.own_name
    if isinstance(asked.module, nn.PReLU):
        return Found("PReLU: its initial slope", Constant(float(asked.module.init)))
    if (found := _of_adapter(asked)) is not None:
        return found
    if asked.long_axes > 1 and own_name != "A_log":
        return None
    if own_name in STATE_SPACE_NAMES or (own_name == "bias" and asked.name.endswith("dt_proj.bias")):
        return _of_state_space(asked)
    initial = asked.module.__dict__.get("init_values")  # of timm and its kin
    if isinstance(initial, (int, float)) and len(asked.module._parameters) == 1:
        return Found(f"vector of {kind_of(asked.module)}: its init_values", Constant(float(initial)))
    if kind_of(asked.module).endswith("GRN"):  # Woo et al. 2023, section 3: global response normalisation
        return Found(f"{kind_of(asked.module)}: the identity", ZEROS)
    return None


def _of_adapter(asked: Asked) -> Found | None:
    name = asked.name
    if "lora_" in name:
        if LORA_ZERO.search(name):
            return Found("LoRA: the update starts at zero", ZEROS)
        if LORA_A_NAME.search(name) and asked.long_axes >= 2:
            return Found("LoRA: kaiming_uniform, a = sqrt(5)", LORA_A)
        if LORA_EMBEDDING_B.search(name):
            return Found("LoRA of an embedding: N(0, 1)", _STANDARD_NORMAL)
    if "ia3_l" in name and _IA3.search(name):  # Liu et al. 2022, section 3.3
        return Found("IA3: factors start at one", ONES)
    if "lora_magnitude_vector." in name and (magnitude := _magnitude(asked)) is not None:
        return Found("DoRA: the norms of the map it is beside", magnitude, follows=True)
    if asked.around.has_adapters and (layer := _adapter_layer(asked)) is not None:
        return Found(f"adapter of {kind_of(layer)}")
    return None


def _magnitude(asked: Asked) -> Magnitude | None:
    """The scheme of DoRA's magnitudes; None if the map beside them is quantised or distributed, or does not fit."""
    layer = asked.around.modules.get(asked.name.partition("lora_magnitude_vector.")[0].rstrip("."))
    base = getattr(layer, "base_layer", layer)
    weight = getattr(base, "weight", None)
    if base is None or not isinstance(weight, Tensor) or not weight.is_floating_point() or is_sharded(weight):
        return None
    axis = 1 if getattr(asked.module, "fan_in_fan_out", False) else 0
    fits = weight.dim() > 1 and weight.shape[axis] == asked.shape.numel()
    return Magnitude(base, axis) if fits else None


@dataclass(frozen=True, eq=False)
class Magnitude:
    """The norms of a map's rows (columns where axis is 1), after the map was written: m in W = m V / |V|.

    Liu et al. 2024, "DoRA", section 4.1. The update of the map is zero at the start, so the map's own norms make the
    adapter the identity.
    """

    base: nn.Module
    axis: int

    def distribution(self, context: Context) -> Distribution:
        return Norms(self.base, self.axis)


@dataclass(frozen=True, eq=False)
class Norms(Distribution):
    """The norms of the rows or columns of a module's weight, as it is when all maps have been written."""

    base: nn.Module
    axis: int
    told_by_formula: ClassVar[bool] = False

    def mean(self) -> float:
        return math.nan  # the map may not have been written yet

    def std(self) -> float:
        return math.nan

    def bounds(self) -> tuple[float, float]:
        return 0.0, math.inf

    def is_random(self) -> bool:
        return False

    def __str__(self) -> str:
        return f"the norms of the {'columns' if self.axis else 'rows'} of the map it is beside"


@writes(Norms)
def _norms(target: Target, distribution: Norms, source: Source, later: Later) -> None:
    def write() -> None:
        weight: Any = distribution.base.weight
        rows = weight.detach().transpose(0, distribution.axis).flatten(1).to(torch.float32)
        target.tensor.detach().copy_(torch.linalg.vector_norm(rows, dim=1).reshape(target.tensor.shape))

    later.last.append(write)


def _adapter_layer(asked: Asked) -> nn.Module | None:
    """The layer of PEFT whose adapter the parameter is: it lists the names of what it adds."""
    parts = asked.name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        layer = asked.around.modules.get(".".join(parts[:end]))
        if parts[end] in getattr(layer, "adapter_layer_names", ()):
            return layer
    return None


def _of_state_space(asked: Asked) -> Found | None:
    """The values of Mamba (Gu, Dao 2023, section 3.6), where the module is one: its A_log has two dimensions.

    With one dimension, published models differ: log 1 ... n, log U(1, 16), log U(0, 16). So do their time steps.
    """
    module = asked.module
    if asked.own_name == "bias":
        above = asked.name.removesuffix("dt_proj.bias").rstrip(".")
        module = asked.around.modules.get(above, module)
    decay = module._parameters.get("A_log")
    if decay is None:
        return None
    if asked.own_name == "D":
        return Found("state space: skip connection", ONES)
    if len(global_shape(decay)) < 2:
        return None
    if asked.own_name == "A_log":
        return Found("state space: log(1 ... n)", _LOG_RANGE)
    return Found("state space: time steps 0.001 to 0.1", _TIME_STEP)
