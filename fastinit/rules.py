"""Which parameter gets which scheme, and why: ordered rules, then the defaults."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, Final, NamedTuple

from torch import nn

from fastinit.schemes import Constant, Scheme, as_scheme


class _Keep(Enum):
    KEEP = "KEEP"

    def __repr__(self) -> str:
        return "KEEP"


KEEP: Final = _Keep.KEEP
"""In place of a scheme: the parameter keeps its values."""

# A glob or a compiled expression on the canonical name, a module type, several, or any predicate.
Selector = (
    str
    | re.Pattern[str]
    | type[nn.Module]
    | tuple[type[nn.Module], ...]
    | Callable[[str, nn.Module, nn.Parameter], bool]
)


@dataclass(frozen=True)
class Rule:
    """Parameters that `select` matches get `scheme`, or keep their values.

    select: a glob on the whole canonical name ("*.attn.*.weight"), a compiled regular expression (searched for), a
        module type or a tuple of them, or a function of (canonical name, module, parameter).
    scheme: a scheme, the name of one, or KEEP.
    """

    select: Selector
    scheme: Scheme | str | _Keep

    def __post_init__(self) -> None:
        if self.scheme is not KEEP:
            object.__setattr__(self, "scheme", as_scheme(self.scheme))
        types = self.select if isinstance(self.select, tuple) else (self.select,)
        if not (
            isinstance(self.select, (str, re.Pattern))
            or all(isinstance(each, type) and issubclass(each, nn.Module) for each in types)
            or (callable(self.select) and not isinstance(self.select, type))
        ):
            raise TypeError(
                "select: expected a glob, a compiled regular expression, module types or a function, "
                f"got {self.select!r}"
            )

    def matches(self, name: str, module: nn.Module, parameter: nn.Parameter) -> bool:
        if isinstance(self.select, str):
            return fnmatchcase(name, self.select)
        if isinstance(self.select, re.Pattern):
            return self.select.search(name) is not None
        if isinstance(self.select, (type, tuple)):
            return isinstance(module, self.select)
        return self.select(name, module, parameter)

    def __str__(self) -> str:
        if isinstance(self.select, str):
            return f"rule {self.select!r}"
        if isinstance(self.select, re.Pattern):
            return f"rule re {self.select.pattern!r}"
        if isinstance(self.select, tuple):
            return "rule " + " | ".join(each.__name__ for each in self.select)
        return f"rule {getattr(self.select, '__name__', self.select)}"


def as_rules(given: Sequence[Rule | tuple[Selector, Any]] | None) -> tuple[Rule, ...]:
    """Rules from a list of Rule objects or (selector, scheme) pairs."""
    rules = []
    for each in given or ():
        if isinstance(each, Rule):
            rules.append(each)
        elif isinstance(each, tuple) and len(each) == 2:
            rules.append(Rule(*each))
        else:
            raise TypeError(f"rules: expected Rule objects or (selector, scheme) pairs, got {each!r}")
    return tuple(rules)


class Treatment(NamedTuple):
    """What happens to a parameter. `scheme` None: it keeps its values; `covered`: whether anything decided so."""

    scheme: Scheme | None
    reason: str
    covered: bool = True
    zero_row: int | None = None  # index along dimension 0 that is set to zero


_TORCH_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
_NORM_NAME = re.compile(r"Norm(\dd|\dP)?$")

# These compute x * (1 + weight): their weight starts at zero (transformers: gemma, qwen3_next, nemotron modelling).
_ZERO_CENTERED_NORM = re.compile(r"^((T5|Vault|Recurrent)?Gemma[23]?|Qwen3Next)RMSNorm$|LayerNorm1P$")

_BIAS_NAME = re.compile(r"(^|_)bias$|^bias_(ih|hh)_l\d+(_reverse)?$|^b_(q|k|v|o)$")

_ZEROS = Constant(0.0)
_ONES = Constant(1.0)


@lru_cache(maxsize=4096)
def _is_norm(module_type: type) -> bool:
    return issubclass(module_type, _TORCH_NORMS) or _NORM_NAME.search(module_type.__name__) is not None


def _is_zero_centered(module: nn.Module) -> bool:
    # zero_centered_gamma: the switch of TransformerEngine's norms.
    return bool(_ZERO_CENTERED_NORM.search(type(module).__name__) or getattr(module, "zero_centered_gamma", False))


@lru_cache(maxsize=4096)
def _is_bias(parameter_name: str) -> bool:
    return _BIAS_NAME.search(parameter_name) is not None


def default_treatment(module: nn.Module, parameter_name: str, dimensions: int, scheme: Scheme) -> Treatment:
    """Biases zeros, normalisation weights ones (zeros where the module computes 1 + w), matrices the scheme.

    `parameter_name` is the parameter's own name in `module`. A vector that is none of these is kept and not covered.
    """
    if _is_bias(parameter_name):
        return Treatment(_ZEROS, "bias")
    module_type: Any = type(module)  # mypy takes the types of modules for unhashable
    if _is_norm(module_type) and (dimensions < 2 or isinstance(module, _TORCH_NORMS)):
        if _is_zero_centered(module):
            return Treatment(_ZEROS, f"{type(module).__name__} computes 1 + weight")
        return Treatment(_ONES, "normalisation weight")
    if dimensions >= 2:
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.padding_idx is not None:
            return Treatment(scheme, f"embedding, padding row {module.padding_idx} zero", zero_row=module.padding_idx)
        return Treatment(scheme, "matrix")
    return Treatment(None, f"{dimensions}-d, neither bias nor normalisation weight: no rule", covered=False)


def ruled_treatment(rule: Rule, module: nn.Module, scheme: Scheme | None) -> Treatment:
    """What `rule` says; the padding row of an embedding stays zero under any scheme."""
    if scheme is None:
        return Treatment(None, f"{rule}: kept")
    padding = module.padding_idx if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) else None
    return Treatment(scheme, str(rule), zero_row=padding)
