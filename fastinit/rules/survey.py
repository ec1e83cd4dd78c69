"""One walk over a model: a row for every parameter and buffer, with what it gets and why."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fastinit._torch import between_nodes, replicas_group
from fastinit.capture.own import AS_MADE
from fastinit.distributed import agreement
from fastinit.distributed.held import global_shape, is_whole
from fastinit.distributed.megatron import check_in_module
from fastinit.distributed.shards import is_dtensor
from fastinit.distributed.wrapped import packed
from fastinit.errors import ParameterError, warn
from fastinit.plans.overwritten import Guess
from fastinit.plans.rows import Action, Row
from fastinit.rules.asked import kind_of, own_type
from fastinit.rules.depths import Depths
from fastinit.rules.finder import RuleFinder
from fastinit.rules.resolve import Resolver
from fastinit.rules.roles import Alike, RoleName, Roles, Treatment, ruled_treatment
from fastinit.rules.rows import KnownRow, RowMaker
from fastinit.rules.select import Rule, as_fan
from fastinit.run.memory import are_usual, is_usual
from fastinit.run.names import NamedModule, Renamer, named_modules
from fastinit.run.parametrized import Computed, computed_weights
from fastinit.run.places import Place, place_of
from fastinit.schemes.base import Scheme
from fastinit.schemes.fans import FanConvention
from fastinit.schemes.named import Own

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


_NUMBERED = re.compile(r"(^|\.)\d+(\.|$)")


class Survey:
    """One walk through a model, in the order of its named_parameters().

    unwritten: names in the model of parameters whose memory has just been made.
    """

    def __init__(
        self,
        model: nn.Module,
        rename: Renamer,
        layers: int | Mapping[str, int] | None,
        unwritten: Collection[str] = (),
        *,
        modules: Sequence[NamedModule] | None = None,
    ) -> None:
        self.model = model
        self.modules = named_modules(model) if modules is None else modules
        self._rename = rename
        self._layers = layers
        self._unwritten = unwritten
        self.matched: set[int] = set()
        self.matched_ties: dict[int, tuple[str, str]] = {}  # rule -> (second name of a tie, its first)

    def failures(self) -> list[str]:
        """What code of the model raised, if the scheme "own" has run it."""
        return self._roles.authors.failures()

    def meshes(self) -> list[DeviceMesh]:
        """The meshes of the model's DTensors, each once, in the order of the parameters."""
        found: dict[DeviceMesh, None] = {}
        for _, _, module in self.modules:
            for parameter in module._parameters.values():
                if is_dtensor(parameter):
                    found.setdefault(parameter.device_mesh)
        return list(found)

    def wrapper_groups(self) -> set[agreement.Ranks]:
        """The sets of ranks that hold replicas under a wrapper: DistributedDataParallel, FSDP1 or replicate."""
        groups: set[agreement.Ranks] = set()
        kinds: set[Any] = {type(module) for _, _, module in self.modules}
        replicated = set(filter(_is_replicated, kinds))
        for _, _, module in self.modules if replicated else ():
            if type(module) in replicated:
                wrapped: Any = module
                groups.add(agreement.ranks_of(replicas_group(wrapped)))
                if (between := between_nodes(wrapped)) is not None:  # FSDP1's HYBRID_SHARD
                    groups.add(agreement.ranks_of(between))
        return groups

    def rows(self, scheme: Scheme, fan: FanConvention | None, finder: RuleFinder) -> list[Row]:
        """The rows of all parameters and buffers. `fan` None: nobody chose a convention."""
        self._finder = finder
        depths = Depths(
            _names_in_stacks(self.modules, self._rename), self._layers, of_part=not self._rename.changes_nothing
        )
        self._roles = Roles(self.model, scheme, modules=self.modules, unwritten=self._unwritten)
        self._is_own = isinstance(scheme, Own)
        fan = None if fan is None else as_fan(fan)
        self._maker = RowMaker(Resolver(fan, depths, self._roles.authors))
        every = [each for of in self.modules for each in of.module._parameters.values() if each is not None]
        self._all_usual = are_usual(every)
        # Such names are the canonical ones, and no two of them are equal.
        self._has_plain_names = self._rename.changes_nothing and not any(
            each.name is not each.full_name or "parametrizations" in each.module._modules for each in self.modules
        )
        self.kept: dict[str, list[str]] = {}  # frozen and loaded parameters, and packed ones
        self.guessed: dict[str, Guess] = {}  # by the name of what is looked at before it is written
        self._known: dict[Any, KnownRow] = {}
        self._of_any_shape: dict[Any, KnownRow] = {}
        self._ruled_treatments: dict[Any, Treatment] = {}
        self._taken: dict[str, str] = {}  # canonical name -> name in the model
        self._first: dict[int, Row] = {}  # id of a parameter -> its first row
        self._computed: dict[int, str] = {}  # id of an original -> the weight computed from it
        rows: list[Row] = []
        for each in self.modules:
            # A model's own code sets the originals, not the weights that are computed from them.
            module = each.module
            if ("parametrizations" in module._modules or module._forward_pre_hooks) and not self._is_own:
                rows += self._computed_rows(each)
            parameters, buffers = module._parameters, module._buffers
            if not (parameters or buffers):
                continue
            kind = kind_of(module)
            alike = self._roles.alike(each.name, module) if parameters else None
            for own_name, parameter in parameters.items():
                if parameter is not None:
                    row = self._parameter_row(each, kind, alike, own_name, parameter)
                    self._first.setdefault(id(parameter), row)
                    rows.append(row)
            if buffers:
                rows += self._buffer_rows(each, kind)
        depths.check_prefixes()
        self._rename.check_used()
        self._maker.warn()
        return rows

    def _parameter_row(
        self, of: NamedModule, kind: str, alike: Alike | None, own_name: str, parameter: nn.Parameter
    ) -> Row:
        module = of.module
        if self._has_plain_names:
            name = canonical = full_name = f"{of.full_name}.{own_name}" if of.full_name else own_name
        else:
            canonical, full_name = of.names_of(own_name)
            name = self._rename(canonical)
        first = self._first.get(id(parameter))
        if first is not None:
            self._match_tie(name, canonical, full_name, first.name, own_name, module, parameter)
            place = place_of(module, own_name, parameter, first.place)
            return _kept(name, "tied", kind, parameter, f"tied to {first.name}", place)
        usual = self._all_usual or (is_usual(parameter) and not parameter.__dict__)
        place = Place(parameter, module._parameters, own_name) if usual else place_of(module, own_name, parameter)
        if id(parameter) in self._computed:
            return _kept(full_name, "original", kind, parameter, f"holds {self._computed[id(parameter)]}", place)
        if not self._has_plain_names and self._taken.setdefault(name, full_name) != full_name:
            raise ParameterError(
                name,
                f"two parameters have this canonical name, {self._taken[name]} and {full_name}; rename a module",
            )
        position = None
        if self._finder.rules:
            position = self._position(name, canonical, full_name, own_name, module, parameter)
        key: Any = None  # most parameters get what an equal one before them got
        if alike is not None and usual and parameter.requires_grad:
            if position is None and alike.told is not None:
                alike = self._roles.told_alike(alike, module)
            key = id(alike), position, own_name, parameter.shape
            known = self._known.get(key)
            # Most norms of a model differ in width alone, and their author gives all of them ones or zeros.
            if known is None and (other := self._of_any_shape.get(key[:3])) is not None and 0 not in key[3]:
                known = self._known[key] = other.of_shape(key[3])
            if known is not None and parameter.dtype is known.dtype and parameter.device == known.device:
                if position is not None:
                    self.matched.add(position)
                elif known.guess is not None and full_name not in self._unwritten:
                    self.guessed[name] = known.guess
                return known.at(name, place) if known.disagreement is None else self._maker.again(known, name, place)
        treatment = self._treatment(position, name, canonical, own_name, module, parameter)
        if treatment.scheme is None:
            return _kept(name, "keep", kind, parameter, treatment.reason, place, covered=treatment.covered)
        check_in_module(module, parameter, name, is_renamed=not self._rename.changes_nothing)
        made = self._maker.row(name, own_name, module, parameter, treatment, place, kind)
        if key is not None and made.is_settled and alike is not None and alike.covers(own_name):
            made.guess = self.guessed.get(name)
            self._known[key] = made
            if made.is_of_any_shape:
                self._of_any_shape[key[:3]] = made
        return made.row

    def _buffer_rows(self, of: NamedModule, kind: str) -> Iterator[Row]:
        of_parametrisation = "parametrizations." in of.full_name
        for own_name, buffer in of.module._buffers.items():
            if buffer is None:
                continue
            if self._has_plain_names:
                name = f"{of.full_name}.{own_name}" if of.full_name else own_name
            else:
                name = self._rename(of.names_of(own_name)[0])
            if of_parametrisation:
                reason = "buffer of a parametrisation"
            else:
                reason = "buffer: materialize_ restores it" if buffer.is_meta else "buffer: kept"
            shape = buffer.shape if is_whole(buffer) else _shape_of_kept(buffer)
            place = Place.of_tensor(buffer)
            what = shape, buffer.dtype, buffer.device, reason, place, None, None, None, True, False, None
            yield tuple.__new__(Row, (name, "buffer", kind, *what))  # by its own function, it takes twice the time

    def _position(
        self, name: str, canonical: str, full_name: str, own_name: str, module: nn.Module, parameter: torch.Tensor
    ) -> int | None:
        """The position of the rule that matches a parameter."""
        if not self._finder.rules:
            return None
        role = partial(self._roles.role, canonical, module, own_name, parameter)
        return self._finder.find((name, canonical, full_name), module, parameter, role)

    def _match_tie(
        self,
        name: str,
        canonical: str,
        full_name: str,
        first_name: str,
        own_name: str,
        module: nn.Module,
        parameter: nn.Parameter,
    ) -> None:
        """Note a rule that matches a tied parameter by a name other than its first."""
        position = self._position(name, canonical, full_name, own_name, module, parameter)
        if position is not None:
            self.matched_ties.setdefault(position, (name, first_name))

    def _treatment(
        self,
        position: int | None,
        name: str,
        canonical: str,
        own_name: str,
        module: nn.Module,
        parameter: torch.Tensor,
    ) -> Treatment:
        """The treatment of a parameter that the rule at this position matches; None: no rule does."""
        if position is not None:
            self.matched.add(position)
            return self._ruled(position, module)
        if (why := packed(parameter)) is not None:
            self.kept.setdefault("packed", []).append(name)
            return Treatment(None, f"{why}: kept")
        treatment = self._roles.treatment(canonical, module, own_name, parameter)
        if treatment.role in ("frozen", "loaded"):
            self.kept.setdefault(treatment.role, []).append(name)
        elif treatment.role is not None and not (self._is_own or canonical in self._unwritten):
            self._guess(name, treatment.role, treatment.scheme, module, own_name)
        return treatment

    def _guess(self, name: str, role: RoleName, scheme: object, module: nn.Module, own_name: str) -> None:
        """Note what is written by no rule, so that its values are looked at before it is."""
        if isinstance(scheme, Own):  # what was read of its author's code may be less than what it did
            self.guessed[name] = Guess("author")
        elif scheme is not None and role in ("map", "table", "scale", "bias"):
            authors = self._roles.authors
            told = authors.constants_of(module).get(own_name)
            is_of_zeros = told is not None and told.reason == AS_MADE
            self.guessed[name] = Guess(role, is_of_zeros, authors.is_empty(module, own_name))

    def _ruled(self, position: int, module: nn.Module) -> Treatment:
        """The treatment that the rule at a position gives. It depends on nothing else but a padding row."""
        key = position, module.__dict__.get("padding_idx"), isinstance(module, (nn.Embedding, nn.EmbeddingBag))
        treatment = self._ruled_treatments.get(key)
        if treatment is None:
            treatment = self._ruled_treatments[key] = ruled_treatment(self._finder.rules[position], module)
        return treatment

    def _computed_rows(self, of: NamedModule) -> list[Row]:
        rows = []
        for each in computed_weights(of.module):
            canonical, full_name = of.names_of(each.own_name)
            name = self._rename(canonical)
            self._taken[name] = full_name
            kind, place = kind_of(of.module), Place.of_computed(each)
            tied = next((found for original in each.originals if (found := self._planned(original)) is not None), None)
            if tied is not None:
                rows.append(_kept(name, "tied", kind, each.weight, f"computed from what {tied} holds", place))
                continue
            position = self._position(name, canonical, full_name, each.own_name, of.module, each.weight)
            if position is None and self._keeps_a_part(of.module, each):
                continue
            treatment = self._treatment(position, name, canonical, each.own_name, of.module, each.weight)
            for original in each.originals:
                self._computed[id(original)] = name
            if treatment.scheme is None:
                row = _kept(name, "keep", kind, each.weight, treatment.reason, place, covered=treatment.covered)
                rows.append(row)
                continue
            treatment = treatment._replace(reason=f"{treatment.reason}; {each.reason}")
            rows.append(self._maker.row(name, each.own_name, of.module, each.weight, treatment, place, kind).row)
        return rows

    def _keeps_a_part(self, module: nn.Module, computed: Computed) -> bool:
        """Whether the author sets or freezes one of a weight's originals, such as norms of one beside trained
        directions.

        The originals are then parameters like others, since setting the weight would set all of them.
        """
        if len({original.requires_grad for original in computed.originals}) > 1:
            return True
        holders = [module]
        if "parametrizations" in module._modules:
            holders += module.parametrizations.children()  # type: ignore[union-attr]
        originals = set(map(id, computed.originals))
        return len(originals) > 1 and any(
            id(holder._parameters.get(own_name)) in originals
            for holder in holders
            for own_name in self._roles.authors.constants_of(holder)
        )

    def _planned(self, original: nn.Parameter) -> str | None:
        """The name under which an original is planned already; None if it is not."""
        if id(original) in self._computed:
            return self._computed[id(original)]
        found = self._first.get(id(original))
        return None if found is None else found.name

    def report_unmatched(self, rules: Sequence[Rule], strict: bool) -> None:
        """Warn of rules that match nothing; under `strict` raise ValueError. `rules` are the finder's first ones."""
        unmatched = []
        for position, rule in enumerate(rules):
            if position in self.matched:
                continue
            tie = self.matched_ties.get(position)
            unmatched.append(f"{rule}" + (f" ({tie[0]} is tied to {tie[1]}, whose name decides)" if tie else ""))
        if unmatched:
            message = f"no parameter matches {', '.join(unmatched)}"
            if strict:
                raise ValueError(f"strict: {message}")
            warn(message)


def _kept(
    name: str, action: Action, kind: str, tensor: torch.Tensor, reason: str, place: Place, *, covered: bool = True
) -> Row:
    """The row of a parameter that is not written."""
    shape = _shape_of_kept(tensor)
    frozen = action == "keep" and not tensor.requires_grad
    dtype, device = tensor.dtype, tensor.device
    return Row(name, action, kind, shape, dtype, device, reason, place, None, None, None, covered, frozen)


def _shape_of_kept(tensor: torch.Tensor) -> torch.Size | None:
    """The global shape; None for a lazy tensor. Where the tensor's kind of shards gives no global shape, the local one
    serves: the tensor is only kept."""
    if nn.parameter.is_lazy(tensor):
        return None
    try:
        return global_shape(tensor)
    except ParameterError:
        return tensor.shape


def _names_in_stacks(modules: Sequence[NamedModule], rename: Renamer) -> Iterator[str]:
    """Names that contain the numbers of all layers: one name per module if its own name has a number, else all."""
    for each in modules:
        in_stack = _NUMBERED.search(each.name) is not None
        for own_name, parameter in each.module._parameters.items():
            if parameter is not None:
                yield rename(each.names_of(own_name)[0])
                if in_stack:
                    break


def _is_replicated(module_type: type) -> bool:
    """Whether modules of this type hold equal replicas: DDP, FSDP1, and the classes that `replicate` makes."""
    if issubclass(module_type, nn.parallel.DistributedDataParallel):
        return True
    if module_type.__name__ == "FullyShardedDataParallel":
        return True
    kind: Any = module_type  # mypy takes the types of modules for unhashable
    return own_type(kind) is not module_type and module_type.__bases__[0].__module__.endswith(".replicate")
