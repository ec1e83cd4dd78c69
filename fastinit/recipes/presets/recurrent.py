"""Presets of models that keep a state: Mamba, RWKV."""

from __future__ import annotations

import re

from torch import nn

from fastinit.recipes.files import Recipe
from fastinit.recipes.presets.parts import TORCH_BIAS, TORCH_WEIGHT, ZEROS, check_given, config_of, normal_of, shape_of
from fastinit.rules.select import Rule
from fastinit.rules.where import Where
from fastinit.schemes.base import Scheme
from fastinit.schemes.gates import LogOfUniform
from fastinit.schemes.named import Constant, DepthScaled, Normal, Uniform, VarianceScaling
from fastinit.schemes.ramps import RWKV7Mix, RWKV7Ramp, RWKV7Scale
from fastinit.schemes.structured import LogRange, Orthogonal, TimeStep


def mamba(model: nn.Module | None = None, *, std: float | None = None) -> Recipe:
    """A_log = log(1 ... n), D = 1, time steps log-uniform in [0.001, 0.1]; matrices N(0, 0.1^2), out_proj as torch has
    it.

    Gu, Dao 2023, section 3.6; transformers 5.23, models/mamba/modeling_mamba.py, whose config's fields are used:
    time_step_*, rescale_prenorm_residual (out_proj / sqrt(L)), initializer_range.

    Raises:
        TypeError, ValueError: the model is no module, or std is no finite number >= 0.
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


def mamba2(model: nn.Module | None = None, *, std: float = 0.02, a_range: tuple[float, float] = (1.0, 16.0)) -> Recipe:
    """Mamba-2 as its authors have it: A_log = log U[1, 16], D = 1, time steps log-uniform in [0.001, 0.1]; embeddings
    N(0, 0.02^2); linear maps and convolutions as torch has them, out_proj / sqrt(L), L being the number of layers.

    Dao, Gu 2024; state-spaces/mamba, mamba_ssm/modules/mamba2.py and models/mixer_seq_simple.py: _init_weights, for
    blocks without an MLP. transformers' Mamba2 is another: log(1 ... heads) and N(0, 0.1^2), which `mamba` gives.

    Raises:
        TypeError, ValueError: a_range is not two numbers with 0 < low <= high, or std is no number >= 0.
    """
    check_given(model)
    if not isinstance(a_range, (tuple, list)) or len(a_range) != 2:
        raise TypeError(f"a_range: expected two numbers, got {a_range!r}")
    rules = [
        Rule("*.A_log", LogOfUniform(*a_range)),
        Rule("*.dt_bias", TimeStep()),
        Rule("*.D", Constant(1.0)),
        Rule("*.out_proj.weight", DepthScaled(TORCH_WEIGHT, branches=1.0)),
        Rule("*.conv1d.bias", TORCH_BIAS, fan="weight"),
        Rule(Where(type="Embedding"), Normal(std=std)),
    ]
    return Recipe(
        TORCH_WEIGHT,
        rules,
        name="mamba2",
        source="Dao, Gu 2024; state-spaces/mamba, modules/mamba2.py, models/mixer_seq_simple.py",
    )


def rwkv7(model: nn.Module | None = None, *, head_size: int = 64) -> Recipe:
    """RWKV-7 by RWKV-LM's names: embeddings U(+-1e-4), the head orthogonal with gain 0.5 sqrt(max(1, vocabulary /
    width)); receptance, value and the channel mix's key orthogonal, the time mix's key 0.1 times that; outputs zero;
    low-rank maps zero and 0.1 times orthogonal; the vectors of token shift, decay and gates as published.

    Peng et al. 2025, "RWKV-7 Goose"; BlinkDL/RWKV-LM, RWKV-v7/train_temp/src/model.py: RWKV_Tmix_x070,
    RWKV_CMix_x070, generate_init_weight.

    Raises:
        TypeError, ValueError: head_size is no int >= 2.
    """
    check_given(model)
    shape = shape_of(model, r"(^|\.)head\.weight$")
    head = 0.5 if shape is None else 0.5 * max(1.0, shape[0] / shape[1]) ** 0.5

    def ramp(**numbers: float) -> RWKV7Ramp:
        return RWKV7Ramp(**numbers, head_size=head_size)

    rules = [
        Rule(re.compile(r"(^|\.)emb\.weight$"), Uniform(-1e-4, 1e-4)),
        Rule(re.compile(r"(^|\.)head\.weight$"), Orthogonal(head)),
        Rule(re.compile(r"\.(att\.output|ffn\.value)\.weight$"), ZEROS),
        Rule("*.att.key.weight", Orthogonal(0.1)),
        Rule("*.att.ln_x.weight", RWKV7Scale(0.7)),
        Rule(re.compile(r"\.att\.[wavg]1$"), ZEROS),
        Rule(re.compile(r"\.att\.[wavg]2$"), Orthogonal(0.1)),
        Rule(re.compile(r"\.att\.x_[rg]$"), RWKV7Mix(0.2)),
        Rule(re.compile(r"\.att\.x_[wa]$"), RWKV7Mix(0.9)),
        Rule(re.compile(r"\.att\.x_[kv]$"), RWKV7Mix(0.7)),
        Rule("*.ffn.x_k", RWKV7Mix(1.0, 4.0)),
        Rule("*.att.w0", ramp(base=-5.5, zigzag=2.5, decay=6.0)),
        Rule("*.att.a0", ramp(base=-0.19, zigzag=0.3, linear=0.4)),
        Rule("*.att.v0", ramp(base=0.73, linear=-0.4)),
        Rule("*.att.k_k", ramp(base=0.71, linear=-0.1)),
        Rule("*.att.k_a", Constant(1.02)),
        Rule("*.att.r_k", Constant(-0.04)),
    ]
    return Recipe(
        Orthogonal(), rules, name="rwkv7", source="Peng et al. 2025; RWKV-LM, RWKV-v7/train_temp/src/model.py"
    )
