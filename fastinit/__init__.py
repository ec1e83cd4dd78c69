"""Weight initialisation for PyTorch: every parameter of a model in one pass, reproducible to the bit."""

from fastinit._native import STREAM_VERSION
from fastinit._version import __version__
from fastinit.engine import FallbackWarning
from fastinit.functional import (
    constant_,
    dirac_,
    eye_,
    kaiming_normal_,
    kaiming_uniform_,
    lecun_normal_,
    lecun_uniform_,
    normal_,
    ones_,
    trunc_normal_,
    uniform_,
    xavier_normal_,
    xavier_uniform_,
    zeros_,
)
from fastinit.model import init_, init_model_
from fastinit.plan import Plan, Row, plan
from fastinit.rules import KEEP, Rule
from fastinit.schemes import (
    Constant,
    Dirac,
    Eye,
    Normal,
    Scheme,
    TruncNormal,
    Uniform,
    VarianceScaling,
    register_scheme,
    scheme,
    scheme_names,
)

__all__ = [
    "KEEP",
    "STREAM_VERSION",
    "Constant",
    "Dirac",
    "Eye",
    "FallbackWarning",
    "Normal",
    "Plan",
    "Row",
    "Rule",
    "Scheme",
    "TruncNormal",
    "Uniform",
    "VarianceScaling",
    "__version__",
    "constant_",
    "dirac_",
    "eye_",
    "init_",
    "init_model_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "lecun_normal_",
    "lecun_uniform_",
    "normal_",
    "ones_",
    "plan",
    "register_scheme",
    "scheme",
    "scheme_names",
    "trunc_normal_",
    "uniform_",
    "xavier_normal_",
    "xavier_uniform_",
    "zeros_",
]
