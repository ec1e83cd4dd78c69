"""Presets of models that keep a state: Mamba."""

from __future__ import annotations

import re

from torch import nn

from fastinit.recipes.files import Recipe
from fastinit.recipes.presets.parts import TORCH_WEIGHT, check_given, config_of, normal_of
from fastinit.schemes.base import Scheme
from fastinit.schemes.named import Constant, DepthScaled, VarianceScaling
from fastinit.schemes.structured import LogRange, TimeStep


def mamba(model: nn.Module | None = None, *, std: float | None = None) -> Recipe:
    """A_log = log(1 ... n), D = 1, time steps log-uniform in [0.001, 0.1]; matrices N(0, 0.1^2), out_proj as torch has
    it.

    Gu, Dao 2023, section 3.6; transformers 5.23, models/mamba/modeling_mamba.py, whose config's fields are used:
    time_step_*, rescale_prenorm_residual (out_proj / sqrt(L)), initializer_range.
    """
    check_given(model)
    normal = normal_of(model, std, default=0.1)
    low, high = float(config_of(model, "time_step_min", 1e-3)), float(config_of(model, "time_step_max", 1e-1))
    scale = float(config_of(model, "time_step_scale", 1.0))
    steps = TimeStep(low, high, float(config_of(model, "time_step_floor", 1e-4)))
    rescaled = bool(config_of(model, "rescale_prenorm_residual", False))
    out: Scheme = DepthScaled(TORCH_WEIGHT, branches=1.0) if rescaled else TORCH_WEIGHT
    dt_proj: Scheme = VarianceScaling(scale * scale / 3.0, "fan_in", "uniform")
    if config_of(model, "time_step_init_scheme", "random") == "constant":
        dt_proj = Constant(config_of(model, "time_step_rank", 1) ** -0.5 * scale)
    return Recipe(
        normal,
        [
            ("*.A_log", LogRange()),
            ("*.D", Constant(1.0)),
            ("*.dt_proj.weight", dt_proj),
            (re.compile(r"\.(dt_proj\.bias|dt_bias)$"), steps),
            ("*.conv1d.weight", TORCH_WEIGHT),
            ("*.out_proj.weight", out),
        ],
        name="mamba",
        source="Gu, Dao 2023, section 3.6; transformers, modeling_mamba.py",
    )
