"""The first rule that matches a parameter, under any of its names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import translate
from typing import NamedTuple

import torch
from torch import nn

from fastinit.rules.select import Rule
from fastinit.rules.where import AskRole
from fastinit.run.names import named_modules


class Names(NamedTuple):
    """The names of a parameter.

    name: the canonical name in the whole model, which `names=` of `plan` gives. in_model: the canonical name in the
    planned model. full: the name that `named_parameters()` gives.
    """

    name: str
    in_model: str
    full: str


# Wrappers add one of these words to names. canonical_name drops them.
_WRAPPER_WORDS = ("module", "_orig_mod", "parametrizations")


class RuleFinder:
    """Finds the first rule that matches a parameter."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        positions = range(len(self.rules))
        self._all = _FirstMatch(self.rules, positions)
        # A pattern like "*.weight" must not match "module.weight" where it does not match "weight", or a wrapper would
        # change which rule decides. So only patterns that contain a wrapper's word are compared with the full name.
        spelled = [at for at in positions if any(map(_spells_wrapper, self.rules[at].name_patterns))]
        self._spelled = _FirstMatch(self.rules, spelled)
        self._in_model = _FirstMatch(
            self.rules, [at for at in positions if self.rules[at].in_model and self.rules[at].name_patterns]
        )

    def find(
        self,
        names: tuple[str, str, str],
        module: nn.Module,
        parameter: torch.Tensor,
        role: AskRole | None = None,
    ) -> int | None:
        """The position of the first rule that matches, or None. `names` are `Names`; functions of rules get `name`.

        `role` tells the parameter's role, one of ROLES, however it is frozen or loaded. Without it, only biases, frozen
        and loaded parameters are known.

        Raises:
            ParameterError: a rule's function raised an error, or returned neither True nor False.
        """
        name, in_model, full = names
        own_name = in_model.rpartition(".")[2]
        position = self._all.find(name, module, parameter, own_name, role)
        if name == in_model == full:
            return position
        found = [position]
        if full != in_model:
            found.append(self._spelled.find(full, module, parameter, own_name, role))
        # "layers.0" of the model may be "layers.24" of the whole, and the whole has a "layers.0", too. Rules made from
        # the whole find the name in the whole. So the name in the model is tried only if they find nothing.
        if name != in_model and self._in_model.find(name, module, parameter, own_name, role) is None:
            found.append(self._in_model.find(in_model, module, parameter, own_name, role))
        return min((each for each in found if each is not None), default=None)

    def finds_any(self, model: nn.Module) -> bool:
        """Whether a rule matches any parameter of a model."""
        for each in named_modules(model):
            for own_name, parameter in each.module._parameters.items():
                name, full_name = each.names_of(own_name)
                if parameter is not None and self.find((name, name, full_name), each.module, parameter) is not None:
                    return True
        return False


def _spells_wrapper(pattern: str) -> bool:
    return any(word in pattern for word in _WRAPPER_WORDS)


class _FirstMatch:
    """Finds the first rule, among those at some positions, that matches. Consecutive globs are one expression."""

    def __init__(self, rules: Sequence[Rule], positions: Sequence[int]) -> None:
        self._rules = rules
        self._steps: list[tuple[re.Pattern[str] | None, int]] = []  # an expression over globs, or a rule's position
        globs: list[str] = []
        for at in positions:
            glob = rules[at].glob
            if glob is not None:
                globs.append(f"(?P<r{at}>{translate(glob)})")
                continue
            self._end_run(globs)
            self._steps.append((None, at))
        self._end_run(globs)

    def _end_run(self, globs: list[str]) -> None:
        if globs:
            self._steps.append((re.compile("|".join(globs)), -1))
            globs.clear()

    def find(
        self, name: str, module: nn.Module, parameter: torch.Tensor, own_name: str, role: AskRole | None
    ) -> int | None:
        for expression, position in self._steps:
            if expression is None:
                if self._rules[position].matches(name, module, parameter, own_name, role):
                    return position
            elif (match := expression.match(name)) is not None:
                return int((match.lastgroup or "r0")[1:])
        return None
