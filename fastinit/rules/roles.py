"""What a parameter is: one table of roles, read from top to bottom, and the treatment that each role gets.

A scheme replaces draws; what the author of a module set stays set. So the author's code is asked first where it can be
read (capture/own.py), and the values that happen to be in memory decide nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Hashable, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from fastinit._torch import BATCH_NORMS, CONVOLUTIONS
from fastinit.capture.answers import Author
from fastinit.capture.own import AS_MADE, Authors
from fastinit.distributed.held import are_plain, global_shape, is_sharded
from fastinit.rules.asked import Asked, Found, Surroundings, Test, has_word, kind_of, long_axes_of, own_type
from fastinit.rules.biases import SCALES, SHIFTS, is_bias
from fastinit.rules.norms import computes_one_plus, has_switch
from fastinit.rules.published import (
    LORA_A,
    LORA_A_NAME,
    LORA_EMBEDDING_B,
    LORA_ZERO,
    ONES,
    STATE_SPACE_NAMES,
    ZEROS,
    published,
)
from fastinit.rules.select import KEEP, Rule
from fastinit.rules.where import is_loaded
from fastinit.run.names import NamedModule, named_modules
from fastinit.schemes import distributions
from fastinit.schemes.base import Scheme
from fastinit.schemes.named import Own

RoleName = Literal["frozen", "loaded", "published", "map", "table", "scale", "bias", "author", "integer"]


class Treatment(NamedTuple):
    """The decision about a parameter. `scheme` None: it keeps its values. `covered`: a rule or a role decided."""

    scheme: Scheme | tuple[Scheme, ...] | None
    reason: str
    covered: bool = True
    zero_row: int | None = None  # the index along dimension 0 that becomes zero
    rule: Rule | None = None
    role: RoleName | None = None  # None: a rule decided, or there is no module
    told: bool = False  # whether it follows from what the author's code gives


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
# What is added to activations, multiplies them one by one, or stands beside them is no map, whatever its shape: tables
# of positions and of biases, learned tokens and queries, keys and values of nothing, scales and shifts of heads.
_ELEMENTWISE_NAME = re.compile(
    r"(^|_)pos(ition(al)?)?(_|$)|(^|_)tokens?$|(^|_)emb(ed(ding)?s?)?$|(^|_)bias(es)?(_table)?$|"
    r"(^|_)(scales?|gammas?|betas?|shifts?)$|(^|_)(queries|latents|prototypes|centroids|prompts)$|"
    r"(^|_)(null|mem|memory)_?(k|v|kv|keys?|values?)s?$"
)


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


def _integer(asked: Asked) -> Found | None:
    dtype = asked.parameter.dtype
    return None if dtype.is_floating_point or dtype.is_complex else Found(f"{dtype}: not sampled")


def _frozen(asked: Asked) -> Found | None:
    return None if asked.parameter.requires_grad or asked.is_new else Found("frozen: kept")


def _loaded(asked: Asked) -> Found | None:
    if asked.is_new or not is_loaded(asked.parameter):
        return None
    return Found("loaded weights (_is_hf_initialized): kept")


def _map(asked: Asked) -> Found | None:
    of_torch = _torch_role(asked.module_type, asked.own_name)
    if of_torch is not None:
        return Found(f"linear map of {kind_of(asked.module)}") if of_torch == "map" else None
    if nn.parameter.is_lazy(asked.parameter):
        return Found(f"linear map of {kind_of(asked.module)}")
    shape = asked.shape
    if asked.long_axes < 2 or _is_norm(asked.module_type) or _is_of_stack(asked):
        return None
    # A leading axis of 1 stands for the batch: the tensor is added to activations.
    if (len(shape) > 2 and shape[0] == 1) or _ELEMENTWISE_NAME.search(asked.own_name):
        return None
    if len(shape) == 2:
        return Found(f"linear map of {kind_of(asked.module)}")
    return Found(f"stack of {shape[0]} maps")


def _table(asked: Asked) -> Found | None:
    if _torch_role(asked.module_type, asked.own_name) != "table":
        return None
    padding = asked.module.padding_idx
    if padding is None:
        return Found(f"table of {kind_of(asked.module)}")
    return Found(f"table of {kind_of(asked.module)}, padding row {padding} zero", zero_row=padding)  # type: ignore[arg-type]


def _scale(asked: Asked) -> Found | None:
    of_torch = _torch_role(asked.module_type, asked.own_name) == "scale"
    by_name = asked.own_name in SCALES and asked.long_axes < 2 and _is_norm(asked.module_type)
    if not (of_torch or by_name):
        return None
    if computes_one_plus(asked.module, asked.own_name):
        return Found(f"norm scale: {kind_of(asked.module)} computes 1 + {asked.own_name}", ZEROS)
    return Found("norm scale", ONES)


def _bias(asked: Asked) -> Found | None:
    of_torch = _torch_role(asked.module_type, asked.own_name)
    if of_torch is not None:
        return Found(_shift_reason(asked), ZEROS) if of_torch == "bias" else None
    if _is_of_stack(asked):
        return Found(f"biases of a stack of {asked.shape[0]} maps", ZEROS)
    if asked.long_axes > 1 or asked.own_name in STATE_SPACE_NAMES or not is_bias(asked.own_name, asked.module):
        return None
    if asked.own_name == "bias" or asked.own_name in SHIFTS or _is_beside_map(asked):
        return Found(_shift_reason(asked), ZEROS)
    return None


def _shift_reason(asked: Asked) -> str:
    return "norm shift" if _is_norm(asked.module_type) else "bias"


def _is_of_stack(asked: Asked) -> bool:
    """Whether a parameter holds the biases of a stack of maps beside it: gate_up_proj_bias of experts."""
    shape = asked.shape
    if len(shape) != 2 or not is_bias(asked.own_name, asked.module):
        return False
    own = (parameter for parameter in asked.module._parameters.values() if parameter is not None)
    return any(not nn.parameter.is_lazy(each) and _is_stack_of(each, shape[0]) for each in own)


def _is_stack_of(tensor: torch.Tensor, count: int) -> bool:
    shape = global_shape(tensor)
    return len(shape) == 3 and shape[0] == count


def _is_beside_map(asked: Asked) -> bool:
    """Whether a vector's module has a map: a parameter of its own, or a layer of torch.nn as a child."""
    if len(asked.shape) != 1:
        return False
    own = (parameter for parameter in asked.module._parameters.values() if parameter is not None)
    if any(not nn.parameter.is_lazy(each) and long_axes_of(global_shape(each)) > 1 for each in own):
        return True
    return any(isinstance(child, tuple(kinds)) for child in asked.module._modules.values() for kinds, _, _ in _MAPS)


# The first test that finds something decides. A parameter that no test finds is its author's: vectors and scalars,
# tables of positions, tokens.
ROLES: tuple[tuple[RoleName, Test], ...] = (
    ("integer", _integer),
    ("frozen", _frozen),
    ("loaded", _loaded),
    ("published", published),  # before maps and biases, since LoRA's matrices and Mamba's dt_proj.bias look like them
    ("map", _map),
    ("table", _table),
    ("scale", _scale),
    ("bias", _bias),
)


def _first(asked: Asked, table: Sequence[tuple[RoleName, Test]]) -> tuple[RoleName, Found | None]:
    for role, test in table:
        if (found := test(asked)) is not None:
            return role, found
    return "author", None


# ---- what they get ----


class Alike(NamedTuple):
    """Modules that the table cannot tell apart: what it found for each name of a parameter that is trained, and the
    treatment. Authors' code may differ from module to module. `told` groups the modules by what it says; each group
    shares its treatments.

    of_class: the class of torch.nn that they are of, if nothing else is known of them. It answers for its own
    parameters only.
    """

    author_tells: bool
    of_class: type | None
    roles: dict[str, tuple[RoleName, Found | None]]
    treatments: dict[str, Treatment]
    told: dict[Hashable, Alike] | None = None

    def covers(self, own_name: str) -> bool:
        """Whether all these modules have the same parameter of this name."""
        return self.of_class is None or _torch_role(self.of_class, own_name) is not None


_PLAIN = frozenset({bool, int, float, str, type(None)})


@lru_cache(maxsize=4096)
def _is_of_torch(module_type: type) -> bool:
    return module_type.__module__.startswith("torch.nn.modules.")


def _looks_of(module: nn.Module) -> tuple[Any, ...] | None:
    """All that the table and torch's fans see of a module, except its name. Modules with equal looks are treated alike.

    None: a parameter is a shard, or has no shape yet.
    """
    module_type: Any = type(module)  # mypy takes the types of modules for unhashable
    own = [(own_name, parameter) for own_name, parameter in module._parameters.items() if parameter is not None]
    tensors = [parameter for _, parameter in own]
    if not are_plain(tensors) and any(is_sharded(each) or nn.parameter.is_lazy(each) for each in tensors):
        return None
    shapes = [(own_name, parameter.shape) for own_name, parameter in own]
    # True and 1 are equal, and only one of them switches.
    plain = [(key, type(value), value) for key, value in module.__dict__.items() if type(value) in _PLAIN]
    return module_type, tuple(shapes), tuple(plain), tuple(map(type, module._modules.values()))


class Roles:
    """The roles of one model's parameters, and how they are treated where no rule matches."""

    def __init__(
        self,
        model: nn.Module,
        scheme: Scheme,
        *,
        modules: Sequence[NamedModule] | None = None,
        unwritten: Collection[str] = (),
    ) -> None:
        self._around = Surroundings(named_modules(model) if modules is None else modules, unwritten)
        self._alike: dict[tuple[Any, ...], Alike] = {}
        self._alike_of: dict[int, Alike | None] = {}  # what `alike` has answered, by the id of a module
        self._told_alike_of: dict[int, Alike] = {}  # and `told_alike`
        self._scheme = scheme
        self._is_own = isinstance(scheme, Own)
        self.authors = Authors(model, everything=self._is_own, exact=self._is_own, modules=self._around.named)

    def role(self, name: str, module: nn.Module, own_name: str, parameter: torch.Tensor) -> RoleName:
        """The role that a parameter has, or would have if it were neither frozen nor loaded.

        `name` is its canonical name, `own_name` its name in `module`.
        """
        asked = Asked(self._around, name, module, own_name, parameter)
        return _first(asked, [each for each in ROLES if each[0] not in ("frozen", "loaded")])[0]

    def treatment(self, name: str, module: nn.Module, own_name: str, parameter: torch.Tensor) -> Treatment:
        """The treatment of a parameter that no rule matches."""
        key = id(module)
        alike = self._alike_of[key] if key in self._alike_of else self.alike(name, module)
        if alike is None or not parameter.requires_grad or "_is_hf_initialized" in parameter.__dict__:
            asked = Asked(self._around, name, module, own_name, parameter)
            return self._treatment(_first(asked, ROLES), module, own_name, parameter)
        alike = self.told_alike(alike, module)
        treatment = alike.treatments.get(own_name)
        if treatment is not None:
            return treatment
        role_and_found = alike.roles.get(own_name)
        if role_and_found is None:
            role_and_found = _first(Asked(self._around, name, module, own_name, parameter), ROLES)
            if alike.covers(own_name):
                alike.roles[own_name] = role_and_found
        treatment = self._treatment(role_and_found, module, own_name, parameter)
        # For what is its author's, code is asked even of torch's own classes, so that the treatment is not shared.
        if (alike.author_tells or role_and_found[0] != "author") and alike.covers(own_name):
            alike.treatments[own_name] = treatment
        return treatment

    def told_alike(self, alike: Alike, module: nn.Module) -> Alike:
        """Those of the modules of which authors' code says the same as of this one. The code is run for that."""
        if alike.told is None:
            return alike
        found = self._told_alike_of.get(id(module))
        if found is None:
            told = self.authors.told(module)
            found = alike.told.get(told)
            if found is None:
                found = alike.told[told] = Alike(True, alike.of_class, alike.roles, {})
            self._told_alike_of[id(module)] = found
        return found

    def alike(self, name: str, module: nn.Module) -> Alike | None:
        """What is known of modules that the table cannot tell from this one; None: it must be asked by itself.

        `name` is that of the module, or of its parameter. Only the tests for adapters, and for methods whose words are
        in names, look beyond the module.
        """
        self._alike_of[id(module)] = None
        if self._is_own or self._around.has_adapters or (self._around.has_words and has_word(name)):
            return None
        module_type: Any = type(module)  # mypy takes the types of modules for unhashable
        looks: Any
        of_class: Any = None
        if _is_of_torch(module_type) and not (_is_norm(module_type) and has_switch(module)):
            attributes = module.__dict__
            of_class = module_type
            looks = module_type, attributes.get("padding_idx"), attributes.get("groups")
        elif (looks := _looks_of(module)) is None:
            return None
        tells = self.authors.tell_of(module)
        key = looks, tells, self.authors.constructed(module)
        found = self._alike.get(key)
        if found is None:
            found = self._alike[key] = Alike(tells, of_class, {}, {}, {} if tells else None)
        self._alike_of[id(module)] = found
        return found

    def _treatment(
        self,
        role_and_found: tuple[RoleName, Found | None],
        module: nn.Module,
        own_name: str,
        parameter: torch.Tensor,
    ) -> Treatment:
        role, found = role_and_found
        if role == "integer":
            assert found is not None
            return Treatment(None, found.reason, covered=False, role=role)
        if role == "frozen" or role == "loaded":
            assert found is not None
            return Treatment(None, found.reason, role=role)
        if found is not None and found.follows:
            return Treatment(found.scheme, found.reason, role=role)
        is_frozen = not parameter.requires_grad  # and has no values yet
        draws = False
        if self._is_own or is_frozen or found is None or self.authors.tell_of(module):
            author = self.authors.of(module, own_name)
            if author.distribution is not None:
                if self._is_own:
                    return Treatment(self._scheme, f"own: {author.reason}", role=role)
                if is_frozen or _stays(role, author.kind, author.distribution, parameter):
                    told = self.authors.tell_of(module) or author is self.authors.constants_of(module).get(own_name)
                    return Treatment(_OWN, f"author: {_told(author)}", role=role, told=told)
                draws = True
            elif self._is_own:
                return Treatment(None, f"{author.reason}: kept", covered=False, role=role)
        if found is None or (role == "published" and found.scheme is None):
            reason = f"{own_name} of {kind_of(module)}" if found is None else found.reason
            return Treatment(None, f"{reason}: its author's, and no code tells", covered=False, role=role)
        constant = None if draws else self.authors.constants_of(module).get(own_name)
        if (
            constant is not None
            and role == "published"
            and (constant.distribution is None or constant.reason == AS_MADE)
        ):
            constant = None  # what is published is more than a pattern, or what a parameter is made with
        if constant is not None and (role in ("scale", "bias") or not self._is_placeholder(constant, module, own_name)):
            if constant.distribution is not None:
                return Treatment(_OWN, f"author: {_told(constant)}", role=role, told=True)
            reason = f"{found.reason}: set by its constructor, and no code tells to what"
            return Treatment(None, reason, covered=False, role=role)
        scheme = self._scheme if found.scheme is None else found.scheme
        return Treatment(scheme, found.reason, zero_row=found.zero_row, role=role)

    def _is_placeholder(self, constant: Author, module: nn.Module, own_name: str) -> bool:
        """Whether the zeros that a constructor gives a map may stand for what comes later. Such a map follows the
        scheme, as any that is zero, and a warning names it. Beside maps that the constructor draws, zeros are meant."""
        if constant.distribution != distributions.ZERO:
            return False
        kind: Any = type(module)
        if _torch_role(kind, own_name) is not None:
            return True
        if constant.reason != AS_MADE or _WEIGHT_NAME.search(own_name) is None:
            return False
        maps = (name for name, each in module._parameters.items() if each is not None and len(global_shape(each)) > 1)
        return not any(self.authors.is_drawn(module, name) for name in maps)


_OWN = Own()


# What a map of plain multiplication is called. Made of zeros, others are meant to be zero: "translation", "alpha".
_WEIGHT_NAME = re.compile(
    r"weight|kernel|proj|matri|linear|coef|theta|basis|codebook|(^|_)(fc|conv|lin|mat|to|in|out|up|down|qkv|query|key|value|head|attn)(_|\d|$)|"
    r"(^|_)[a-zA-Z]\d*$|^[A-Z]{2}\d*$"
)


def _stays(role: RoleName, kind: str, given: distributions.Distribution, parameter: torch.Tensor) -> bool:
    """Whether what an author's code gives stays under any scheme. It stays unless it is a draw without a meaning."""
    if kind != "draw" or role in ("published", "author"):
        return True
    if role == "bias":
        return not _lies_about_zero(given)
    return role == "map" and _is_next_to_nothing(given, global_shape(parameter))


def _lies_about_zero(drawn: distributions.Distribution) -> bool:
    """Whether a bias is drawn about zero, as torch.nn draws biases. Zeros may take the place of such a draw. A draw
    with a meaning is computed (the steps of a state space), or lies elsewhere (the biases of forget gates)."""
    return drawn.told_by_formula and abs(drawn.mean()) <= drawn.std()


def _is_next_to_nothing(drawn: distributions.Distribution, shape: Sequence[int]) -> bool:
    """Whether a map is drawn so small that its output begins near zero, as if the map were zeros: with less than a
    hundredth of the std 1 / sqrt(inputs) that keeps a signal's size. Heads of BEiT and EVA begin so."""
    inputs = math.prod(shape[1:])
    return drawn.told_by_formula and 0.0 < drawn.std() * math.sqrt(inputs) < 0.01


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


def lora_rules(a: str | Scheme = LORA_A) -> list[Rule]:
    """Rules for LoRA adapters: the scheme `a` for A, zeros for B (Hu et al. 2021, section 4.1, with a normal A).

    The default is PEFT's kaiming_uniform. Every plan applies that one without any rule. PEFT's "gaussian" is
    Normal(std=1 / rank).

    Raises:
        TypeError, ValueError: `a` is no scheme, or an unknown name.

    >>> [str(rule.scheme) for rule in lora_rules("zeros")]
    ['Constant(value=0.0)', 'Constant(value=0.0)', 'Normal(mean=0.0, std=1.0)']
    """
    return [
        Rule(LORA_ZERO, "zeros"),
        Rule(LORA_A_NAME, a),
        Rule(LORA_EMBEDDING_B, "normal"),
    ]
