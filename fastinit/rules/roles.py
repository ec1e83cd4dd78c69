"""What a parameter is: one table of roles, read from top to bottom, and the treatment that each role gets.

A scheme replaces draws; what the author of a module set stays set. So the author's code is asked first where it can be
read (capture/own.py), and the values that happen to be in memory decide nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from fastinit._torch import BATCH_NORMS, CONVOLUTIONS
from fastinit.capture.own import Author, Authors
from fastinit.rules.norms import computes_one_plus
from fastinit.rules.select import KEEP, Rule
from fastinit.run.names import named_modules
from fastinit.schemes import distributions
from fastinit.schemes.base import Scheme
from fastinit.schemes.named import Constant, Normal, Own, kaiming_uniform
from fastinit.schemes.structured import LogRange, TimeStep

RoleName = Literal["frozen", "loaded", "published", "map", "table", "scale", "bias", "author", "integer"]


class Treatment(NamedTuple):
    """The decision about a parameter. `scheme` None: it keeps its values. `covered`: a rule or a role decided."""

    scheme: Scheme | tuple[Scheme, ...] | None
    reason: str
    covered: bool = True
    zero_row: int | None = None  # the index along dimension 0 that becomes zero
    rule: Rule | None = None
    role: RoleName | None = None  # None: a rule or the scheme "own" decided


class _Asked:
    """A parameter of a module, as the tests of the table see it. `name` is canonical, `own_name` that in the module."""

    __slots__ = ("long_axes", "module", "module_type", "name", "own_name", "parameter", "roles")

    def __init__(self, roles: Roles, name: str, module: nn.Module, own_name: str, parameter: torch.Tensor) -> None:
        self.roles = roles
        self.name = name
        self.module = module
        self.module_type: Any = type(module)  # mypy takes the types of modules for unhashable
        self.own_name = own_name
        self.parameter = parameter
        # A lazy parameter has no shape. Counted as a matrix, it reaches the check that reports this.
        self.long_axes = 2 if nn.parameter.is_lazy(parameter) else _long_axes(parameter.shape)

    @property
    def is_new(self) -> bool:
        """Whether the parameter has no values yet that could be kept."""
        return self.parameter.is_meta or self.name in self.roles.unwritten

    def around(self, levels: int) -> nn.Module | None:
        """The module that many levels above the parameter's own."""
        return self.roles.modules.get(".".join(self.name.split(".")[: -1 - levels]))


class _Found(NamedTuple):
    """What a test of the table found: the reason, and the published scheme, if there is one."""

    reason: str
    scheme: Scheme | None = None
    zero_row: int | None = None


_Test = Callable[[_Asked], _Found | None]


def _long_axes(shape: Sequence[int]) -> int:
    """The number of axes longer than one. A tensor of shape (1, C, 1, 1) counts as a vector."""
    return sum(size != 1 for size in shape)


@lru_cache(maxsize=4096)
def own_type(module_type: type) -> type:
    """The class as its author wrote it: the base of what fully_shard, replicate and parametrizations derive from it."""
    while module_type.__name__.endswith(module_type.__bases__[-1].__name__):
        first, made_from = module_type.__bases__[0], module_type.__bases__[-1]
        sharded = len(module_type.__bases__) == 2 and first.__module__.startswith("torch.distributed.")
        if not sharded and module_type.__name__ != f"Parametrized{made_from.__name__}":
            break
        module_type = made_from
    return module_type


def kind_of(module: nn.Module) -> str:
    """The name of a module's class, as its author wrote it."""
    module_type: Any = type(module)  # mypy takes the types of modules for unhashable
    return own_type(module_type).__name__


# ---- the tests of the table ----

# Every class of torch.nn that has parameters of its own, with its maps and biases. What it does not list, such as
# bias_k of MultiheadAttention, is its author's.
_TORCH_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, *BATCH_NORMS)
_TABLES = (nn.Embedding, nn.EmbeddingBag)
_MAPS: tuple[tuple[tuple[type, ...], re.Pattern[str], re.Pattern[str]], ...] = (
    ((nn.Linear, nn.Bilinear, *CONVOLUTIONS), re.compile("weight"), re.compile("bias")),
    ((nn.MultiheadAttention,), re.compile("(in|[qkv])_proj_weight"), re.compile("in_proj_bias")),
    (
        (nn.RNNBase, nn.RNNCellBase),
        re.compile("weight_(ih|hh|hr)(_l[0-9]+)?(_reverse)?"),
        re.compile("bias_(ih|hh)(_l[0-9]+)?(_reverse)?"),
    ),
)

_NORM_NAME = re.compile(r"Norm(Gated|\dd|\dP)?$")
# Names for the factor and the summand of a normalisation in torch, transformers, TensorFlow's ports, the Annotated
# Transformer and Glow.
_SCALE_NAMES = frozenset({"weight", "gamma", "scale", "g", "a_2"})
_SHIFT_NAMES = frozenset({"bias", "beta", "shift", "b_2", "loc"})
# A table of positions or a learned token is added to activations, whatever its shape.
_ADDED_NAME = re.compile(r"(^|_)pos(ition(al)?)?(_|$)|(^|_)tokens?$|(^|_)emb(ed(ding)?s?)?$")


@lru_cache(maxsize=4096)
def _torch_role(module_type: type, own_name: str) -> RoleName | None:
    """The role of a parameter of one of torch.nn's classes, or of a class derived from one."""
    if issubclass(module_type, _TABLES):
        return "table" if own_name == "weight" else None
    if issubclass(module_type, _TORCH_NORMS):
        return {"weight": "scale", "bias": "bias"}.get(own_name)  # type: ignore[return-value]
    for kinds, weight, bias in _MAPS:
        if issubclass(module_type, kinds):
            return "map" if weight.fullmatch(own_name) else "bias" if bias.fullmatch(own_name) else None
    return None


@lru_cache(maxsize=4096)
def _is_norm(module_type: type) -> bool:
    author: Any = module_type
    return issubclass(module_type, _TORCH_NORMS) or _NORM_NAME.search(own_type(author).__name__) is not None


def _integer(asked: _Asked) -> _Found | None:
    dtype = asked.parameter.dtype
    return None if dtype.is_floating_point or dtype.is_complex else _Found(f"{dtype}: not sampled")


def _frozen(asked: _Asked) -> _Found | None:
    return None if asked.parameter.requires_grad or asked.is_new else _Found("frozen: kept")


def _loaded(asked: _Asked) -> _Found | None:
    if not asked.parameter.__dict__.get("_is_hf_initialized", False) or asked.is_new:
        return None
    return _Found("loaded weights (_is_hf_initialized): kept")


def _published(asked: _Asked) -> _Found | None:
    own_name = asked.own_name
    if isinstance(asked.module, nn.PReLU):
        return _Found("PReLU: its initial slope", Constant(float(asked.module.init)))
    if (found := _of_adapter(asked)) is not None:
        return found
    if asked.long_axes > 1 and own_name != "A_log":
        return None
    if own_name in _STATE_SPACE_NAMES or (own_name == "bias" and asked.name.endswith("dt_proj.bias")):
        return _of_state_space(asked)
    initial = getattr(asked.module, "init_values", None)  # of timm and its kin
    if isinstance(initial, (int, float)) and len(asked.module._parameters) == 1:
        return _Found(f"vector of {kind_of(asked.module)}: its init_values", Constant(float(initial)))
    if kind_of(asked.module).endswith("GRN"):  # Woo et al. 2023, section 3: global response normalisation
        return _Found(f"{kind_of(asked.module)}: the identity", _ZEROS)
    return None


_ZEROS, _ONES = Constant(0.0), Constant(1.0)
_STANDARD_NORMAL = Normal()
_LORA_A = kaiming_uniform(a=5.0**0.5)
_LOG_RANGE = LogRange()
_TIME_STEP = TimeStep()

# LoRA adapters of PEFT and loralib. B is zero, so the update B A starts at zero (Hu et al. 2021, section 4.1). A gets
# the kaiming_uniform with a = sqrt(5) of both libraries. Adapters of an embedding have A zero and B N(0, 1) instead.
_LORA_ZERO = re.compile(r"(^|\.)(lora_B|lora_embedding_A)(\.|$)")
_LORA_A_NAME = re.compile(r"(^|\.)lora_A(\.|$)")
_LORA_EMBEDDING_B = re.compile(r"(^|\.)lora_embedding_B(\.|$)")
_IA3 = re.compile(r"(^|\.)ia3_l(\.|$)")


def _of_adapter(asked: _Asked) -> _Found | None:
    name = asked.name
    if "lora_" in name:
        if _LORA_ZERO.search(name):
            return _Found("LoRA: the update starts at zero", _ZEROS)
        if _LORA_A_NAME.search(name) and asked.long_axes >= 2:
            return _Found("LoRA: kaiming_uniform, a = sqrt(5)", _LORA_A)
        if _LORA_EMBEDDING_B.search(name):
            return _Found("LoRA of an embedding: N(0, 1)", _STANDARD_NORMAL)
    if "ia3_l" in name and _IA3.search(name):  # Liu et al. 2022, section 3.3
        return _Found("IA3: factors start at one", _ONES)
    if asked.roles.has_adapters and (layer := _adapter_layer(asked)) is not None:
        return _Found(f"adapter of {kind_of(layer)}")
    return None


def _adapter_layer(asked: _Asked) -> nn.Module | None:
    """The layer of PEFT whose adapter the parameter is: it lists the names of what it adds."""
    parts = asked.name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        layer = asked.roles.modules.get(".".join(parts[:end]))
        if parts[end] in getattr(layer, "adapter_layer_names", ()):
            return layer
    return None


_STATE_SPACE_NAMES = frozenset({"A_log", "D", "dt_bias"})


def _of_state_space(asked: _Asked) -> _Found | None:
    """The values of Mamba (Gu, Dao 2023, section 3.6), where the module is one: its A_log has two dimensions.

    With one dimension, published models differ: log 1 ... n, log U(1, 16), log U(0, 16). So do their time steps.
    """
    module = asked.around(1) if asked.own_name == "bias" else asked.module
    decay = None if module is None else module._parameters.get("A_log")
    if decay is None:
        return None
    if asked.own_name == "D":
        return _Found("state space: skip connection", _ONES)
    if decay.dim() < 2:
        return None
    if asked.own_name == "A_log":
        return _Found("state space: log(1 ... n)", _LOG_RANGE)
    return _Found("state space: time steps 0.001 to 0.1", _TIME_STEP)


def _map(asked: _Asked) -> _Found | None:
    of_torch = _torch_role(asked.module_type, asked.own_name)
    if of_torch is not None:
        return _Found(f"linear map of {kind_of(asked.module)}") if of_torch == "map" else None
    shape = asked.parameter.shape
    if asked.long_axes < 2 or _is_norm(asked.module_type):
        return None
    # A leading axis of 1 stands for the batch: the tensor is added to activations.
    if (len(shape) > 2 and shape[0] == 1) or _ADDED_NAME.search(asked.own_name):
        return None
    if len(shape) == 2:
        return _Found(f"linear map of {kind_of(asked.module)}")
    return _Found(f"stack of {shape[0]} maps")


def _table(asked: _Asked) -> _Found | None:
    if _torch_role(asked.module_type, asked.own_name) != "table":
        return None
    padding = asked.module.padding_idx
    if padding is None:
        return _Found(f"table of {kind_of(asked.module)}")
    return _Found(f"table of {kind_of(asked.module)}, padding row {padding} zero", zero_row=padding)  # type: ignore[arg-type]


def _scale(asked: _Asked) -> _Found | None:
    if _torch_role(asked.module_type, asked.own_name) == "scale":
        return _Found("norm scale", _ONES)
    if asked.own_name not in _SCALE_NAMES or asked.long_axes > 1 or not _is_norm(asked.module_type):
        return None
    if computes_one_plus(asked.module, asked.own_name):
        return _Found(f"norm scale: {kind_of(asked.module)} computes 1 + {asked.own_name}", _ZEROS)
    return _Found("norm scale", _ONES)


def _bias(asked: _Asked) -> _Found | None:
    of_torch = _torch_role(asked.module_type, asked.own_name)
    if of_torch is not None:
        return _Found(_shift_reason(asked), _ZEROS) if of_torch == "bias" else None
    if asked.long_axes > 1 or asked.own_name in _STATE_SPACE_NAMES:
        return None
    if asked.own_name in _SHIFT_NAMES or (is_bias_name(asked.own_name) and _is_beside_map(asked)):
        return _Found(_shift_reason(asked), _ZEROS)
    return None


def _shift_reason(asked: _Asked) -> str:
    return "norm shift" if _is_norm(asked.module_type) else "bias"


_BIAS_NAME = re.compile(r"(^|_)bias$|^bias_(ih|hh)(_l\d+)?(_reverse)?$|^b_(q|k|v|o)$")


@lru_cache(maxsize=4096)
def is_bias_name(own_name: str) -> bool:
    """Whether a parameter is called as biases are."""
    return _BIAS_NAME.search(own_name) is not None


def _is_beside_map(asked: _Asked) -> bool:
    """Whether a vector's module has a map: a parameter of its own, or a layer of torch.nn as a child."""
    if asked.parameter.dim() != 1:
        return False
    own = (parameter for parameter in asked.module._parameters.values() if parameter is not None)
    if any(not nn.parameter.is_lazy(each) and _long_axes(each.shape) > 1 for each in own):
        return True
    return any(isinstance(child, tuple(kinds)) for child in asked.module._modules.values() for kinds, _, _ in _MAPS)


# The first test that finds something decides. What none finds is its author's: vectors and scalars, tables of
# positions, tokens.
ROLES: tuple[tuple[RoleName, _Test], ...] = (
    ("integer", _integer),
    ("frozen", _frozen),
    ("loaded", _loaded),
    ("published", _published),  # before maps and biases, since LoRA's matrices and Mamba's dt_proj.bias look like them
    ("map", _map),
    ("table", _table),
    ("scale", _scale),
    ("bias", _bias),
)


# ---- what they get ----


class Roles:
    """The roles of one model's parameters, and how they are treated where no rule matches.

    unwritten: canonical names of parameters whose memory has just been made, and that have no values to keep.
    """

    def __init__(
        self,
        model: nn.Module,
        scheme: Scheme,
        authors: Authors | None = None,
        *,
        unwritten: Collection[str] = (),
    ) -> None:
        self._model = model
        self._scheme = scheme
        self._is_own = isinstance(scheme, Own)
        self.authors = Authors(model, everything=self._is_own) if authors is None else authors
        self.unwritten = unwritten

    @cached_property
    def modules(self) -> Mapping[str, nn.Module]:
        """The modules by their canonical names. Of two with one name, the inner one counts: the other is a wrapper."""
        return {each.name: each.module for each in named_modules(self._model)}

    @cached_property
    def has_adapters(self) -> bool:
        return any(hasattr(type(module), "adapter_layer_names") for module in self.modules.values())

    def role(self, name: str, module: nn.Module, own_name: str, parameter: torch.Tensor) -> RoleName:
        """The role of a parameter. `name` is its canonical name, `own_name` its name in `module`."""
        return self._found(_Asked(self, name, module, own_name, parameter))[0]

    def _found(self, asked: _Asked) -> tuple[RoleName, _Found | None]:
        for role, test in ROLES:
            if (found := test(asked)) is not None:
                return role, found
        return "author", None

    def treatment(self, name: str, module: nn.Module, own_name: str, parameter: torch.Tensor) -> Treatment:
        """The treatment of a parameter that no rule matches."""
        role, found = self._found(_Asked(self, name, module, own_name, parameter))
        if role == "integer":
            assert found is not None
            return Treatment(None, found.reason, covered=False, role=role)
        if role == "frozen" or role == "loaded":
            assert found is not None
            return Treatment(None, found.reason, role=role)
        is_frozen = not parameter.requires_grad  # and has no values yet
        if self._is_own or is_frozen or found is None or self.authors.tell_of(module):
            author = self.authors.of(module, own_name)
            if author.distribution is not None:
                if self._is_own:
                    return Treatment(self._scheme, f"own: {author.reason}", role=role)
                if author.kind != "draw" or is_frozen or role in ("published", "author"):
                    return Treatment(_OWN, f"author: {_told(author)}", role=role)
            elif self._is_own:
                return Treatment(None, f"{author.reason}: kept", covered=False, role=role)
        if found is None or (role == "published" and found.scheme is None):
            reason = f"{own_name} of {kind_of(module)}" if found is None else found.reason
            return Treatment(None, f"{reason}: its author's, and no code tells", covered=False, role=role)
        scheme = self._scheme if found.scheme is None else found.scheme
        return Treatment(scheme, found.reason, zero_row=found.zero_row, role=role)


_OWN = Own()


def _told(author: Author) -> str:
    if author.distribution == distributions.ZERO:
        return "zeros"
    return "ones" if author.distribution == distributions.Constant(1.0) else str(author.distribution)


def ruled_treatment(rule: Rule, module: nn.Module) -> Treatment:
    """The treatment that `rule` gives. The padding row of an embedding stays zero under any scheme."""
    if rule.scheme is KEEP:
        return Treatment(None, f"{rule}: kept", rule=rule)
    row = rule.zero_row
    if row is None and isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        row = module.padding_idx
    return Treatment(rule.scheme, str(rule), zero_row=row, rule=rule)  # type: ignore[arg-type]


def lora_rules(a: str | Scheme = _LORA_A) -> list[Rule]:
    """Rules for LoRA adapters: the scheme `a` for A, zeros for B (Hu et al. 2021, section 4.1, with a normal A).

    The default is PEFT's kaiming_uniform. Every plan applies that one without any rule. PEFT's "gaussian" is
    Normal(std=1 / rank).
    """
    return [
        Rule(_LORA_ZERO, "zeros"),
        Rule(_LORA_A_NAME, a),
        Rule(_LORA_EMBEDDING_B, "normal"),
    ]
