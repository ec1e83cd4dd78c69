"""Weight initialisation for PyTorch: every parameter of a model in one pass, reproducible to the bit."""

from fastinit import adapters, functional
from fastinit._native import STREAM_VERSION
from fastinit._version import __version__
from fastinit.audit.distances import distance
from fastinit.audit.fingerprints import fingerprint
from fastinit.audit.reports import report
from fastinit.audit.signal import trace_signal
from fastinit.audit.verification import verify
from fastinit.capture.contexts import deferred, fused, no_init
from fastinit.distributed.held import register_shards
from fastinit.distributed.megatron import tensor_parallel
from fastinit.distributed.pieces import Held, Piece
from fastinit.errors import (
    ConstantWarning,
    FanWarning,
    KeptWarning,
    ParameterError,
    UncoveredWarning,
    ZerosWarning,
)
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
from fastinit.model import compare, dummy_, init_, init_model_, materialize_, plan
from fastinit.plans.planned import Plan
from fastinit.plans.rows import Row
from fastinit.recipes import presets
from fastinit.recipes.files import Recipe, load_recipe
from fastinit.recipes.presets import preset, preset_names
from fastinit.recipes.residual import deepnorm, fixup, residual_zeros, t_fixup, zer_o
from fastinit.recipes.width_scaling import MuP, mup
from fastinit.rules.roles import lora_rules
from fastinit.rules.select import KEEP, Rule
from fastinit.rules.where import Where
from fastinit.run.engine import FallbackWarning, StagedWarning
from fastinit.run.streams import derive_seed
from fastinit.schemes.base import Context, Scheme, register_scheme, scheme, scheme_names
from fastinit.schemes.fans import FanAxes, Fans
from fastinit.schemes.gates import Chrono, ForgetBias, LogOfUniform
from fastinit.schemes.named import (
    Constant,
    DepthScaled,
    Normal,
    Own,
    Scaled,
    TruncNormal,
    Uniform,
    VarianceScaling,
)
from fastinit.schemes.ramps import Ramp
from fastinit.schemes.structured import (
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

__all__ = [
    "KEEP",
    "STREAM_VERSION",
    "Chrono",
    "Constant",
    "ConstantWarning",
    "Context",
    "DeltaOrthogonal",
    "DepthScaled",
    "Dirac",
    "Eye",
    "FallbackWarning",
    "FanAxes",
    "FanWarning",
    "Fans",
    "ForgetBias",
    "Held",
    "IdentityPlusOrthogonal",
    "KeptWarning",
    "LogOfUniform",
    "LogRange",
    "MuP",
    "Normal",
    "Orthogonal",
    "Own",
    "ParameterError",
    "Piece",
    "Plan",
    "Ramp",
    "Recipe",
    "Row",
    "Rule",
    "Scaled",
    "Scheme",
    "Sparse",
    "Spectral",
    "StagedWarning",
    "TimeStep",
    "TruncNormal",
    "UncoveredWarning",
    "Uniform",
    "VarianceScaling",
    "Where",
    "ZerO",
    "ZerosWarning",
    "__version__",
    "adapters",
    "calculate_gain",
    "compare",
    "constant_",
    "deepnorm",
    "deferred",
    "delta_orthogonal_",
    "derive_seed",
    "dirac_",
    "distance",
    "dummy_",
    "eye_",
    "fingerprint",
    "fixup",
    "functional",
    "fused",
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
    "no_init",
    "normal_",
    "ones_",
    "orthogonal_",
    "plan",
    "preset",
    "preset_names",
    "presets",
    "register_scheme",
    "register_shards",
    "report",
    "residual_zeros",
    "scheme",
    "scheme_names",
    "sparse_",
    "spectral_",
    "t_fixup",
    "tensor_parallel",
    "trace_signal",
    "trunc_normal_",
    "uniform_",
    "variance_scaling_",
    "verify",
    "xavier_normal_",
    "xavier_uniform_",
    "zer_o",
    "zeros_",
]


def __dir__() -> list[str]:
    """Public names, without the modules that imports leave here."""
    return list(__all__)
