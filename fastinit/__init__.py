"""Weight initialisation for PyTorch: every parameter of a model in one pass, reproducible to the bit."""

from fastinit import adapters, functional, presets
from fastinit._native import STREAM_VERSION
from fastinit._version import __version__
from fastinit.engine import FallbackWarning
from fastinit.fans import FanAxes, Fans
from fastinit.fingerprint import fingerprint
from fastinit.functional import (
    calculate_gain,
    constant_,
    delta_orthogonal_,
    dirac_,
    eye_,
    kaiming_normal_,
    kaiming_uniform_,
    lecun_normal_,
    lecun_uniform_,
    normal_,
    ones_,
    orthogonal_,
    sparse_,
    spectral_,
    trunc_normal_,
    uniform_,
    variance_scaling_,
    xavier_normal_,
    xavier_uniform_,
    zeros_,
)
from fastinit.model import init_, init_model_, materialize_
from fastinit.mup import MuP, mup
from fastinit.plan import Plan, Row
from fastinit.planner import plan
from fastinit.presets import preset, preset_names
from fastinit.recipe import Recipe, load_recipe
from fastinit.registry import Scheme, register_scheme, scheme, scheme_names
from fastinit.residual import deepnorm, fixup, residual_zeros, t_fixup, zer_o
from fastinit.rules import KEEP, Rule, Where, lora_rules
from fastinit.schemes import (
    Constant,
    DepthScaled,
    Normal,
    Scaled,
    TruncNormal,
    Uniform,
    VarianceScaling,
)
from fastinit.structured import (
    DeltaOrthogonal,
    Dirac,
    Eye,
    IdentityPlusOrthogonal,
    LogRange,
    Orthogonal,
    Sparse,
    Spectral,
    TimeStep,
    ZerO,
)
from fastinit.verify import verify

__all__ = [
    "KEEP",
    "STREAM_VERSION",
    "Constant",
    "DeltaOrthogonal",
    "DepthScaled",
    "Dirac",
    "Eye",
    "FallbackWarning",
    "FanAxes",
    "Fans",
    "IdentityPlusOrthogonal",
    "LogRange",
    "MuP",
    "Normal",
    "Orthogonal",
    "Plan",
    "Recipe",
    "Row",
    "Rule",
    "Scaled",
    "Scheme",
    "Sparse",
    "Spectral",
    "TimeStep",
    "TruncNormal",
    "Uniform",
    "VarianceScaling",
    "Where",
    "ZerO",
    "__version__",
    "adapters",
    "calculate_gain",
    "constant_",
    "deepnorm",
    "delta_orthogonal_",
    "dirac_",
    "eye_",
    "fingerprint",
    "fixup",
    "functional",
    "init_",
    "init_model_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "lecun_normal_",
    "lecun_uniform_",
    "load_recipe",
    "lora_rules",
    "materialize_",
    "mup",
    "normal_",
    "ones_",
    "orthogonal_",
    "plan",
    "preset",
    "preset_names",
    "presets",
    "register_scheme",
    "residual_zeros",
    "scheme",
    "scheme_names",
    "sparse_",
    "spectral_",
    "t_fixup",
    "trunc_normal_",
    "uniform_",
    "variance_scaling_",
    "verify",
    "xavier_normal_",
    "xavier_uniform_",
    "zer_o",
    "zeros_",
]
