"""What a model's own code gives each of its parameters: from its tapes, or from its code, run on a copy on meta."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from torch import nn

from fastinit.capture.answers import Author, ModuleTapes, author_of, interned
from fastinit.capture.builders import builder_of, read_building
from fastinit.capture.constructors import any_runs, told_of
from fastinit.capture.guard import nothing_drawn
from fastinit.capture.repeats import is_of_torch
from fastinit.capture.resetting import cannot_run, modules_with_code, read_resetting, tells, tells_of_all
from fastinit.capture.tapes import has_tapes, is_complete, tape_of, with_tapes
from fastinit.run.names import NamedModule, named_modules, unwrapped
from fastinit.schemes.distributions import Constant

_NO_CONSTANTS: dict[str, Author] = {}
AS_MADE = "as its constructor makes it"


class Authors:
    """Answers for one model. Its code is run when somebody first asks, and never on the model itself.

    `everything`: whether the code of torch's own classes is asked throughout, in one go with the rest.
    `exact`: whether every layer is read. Else, what a few of many equal layers agree on goes for all.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        everything: bool = False,
        exact: bool = True,
        modules: Sequence[NamedModule] | None = None,
    ) -> None:
        self._model = model
        self._exact = exact
        self._exactly: Authors | None = None
        self._named = named_modules(model) if modules is None else modules
        self._modules = [each.module for each in self._named]
        self._everything = everything
        self._with_code: set[int] | None = None
        self._read: dict[int, ModuleTapes] | None = None  # by the ids of modules
        self._failures: dict[int, str] = {}  # id of a module, or of the model -> what its code raised
        self._known: dict[tuple[int, str], Author] = {}
        self._constants: dict[int, dict[str, Author]] | None = None  # by the ids of modules
        self._made: dict[int, set[tuple[str, str]]] = {}  # by the ids of modules: parameters, and "empty" or "drawn"

    def exactly(self) -> Authors:
        """The same, with every layer read."""
        if self._exact:
            return self
        if self._exactly is None:
            self._exactly = Authors(self._model, everything=self._everything, modules=self._named)
        return self._exactly

    def tell_of(self, module: nn.Module) -> bool:
        """Whether code of somebody else than torch tells of a module: its tapes, its class or one around it."""
        if self._with_code is None:
            self._with_code = self._found_with_code() if self._any_has_code() else set()
            self._with_code.update(map(id, with_tapes(self._modules)))
        return bool(self._with_code) and id(module) in self._with_code

    def _found_with_code(self) -> set[int]:
        model = unwrapped(self._model)
        if model is self._model and tells_of_all(model):  # as nearly always: one walk is spared
            return set(map(id, self._modules))
        return modules_with_code(model)

    def _any_has_code(self) -> bool:
        """Whether any module, or a wrapper around it, may have code of somebody else than torch."""
        kinds: set[Any] = set(map(type, self._modules))
        if any(map(tells, kinds)) or any("pretrained_cfg" in each.__dict__ for each in self._modules):
            return True
        return any_runs(self._modules)

    def constants_of(self, module: nn.Module) -> Mapping[str, Author]:
        """The parameters of a module of which constructors say, in so many words, that they are constant."""
        if self._constants is None:
            self._constants = {}
            constructed = told_of(self._modules)
            for made, how in ((constructed.empty, "empty"), (constructed.drawn, "drawn")):
                for key, name in made:
                    self._made.setdefault(key, set()).add((name, how))
            for (key, name), told in constructed.told.items():
                distribution = None if told.value is None else Constant(told.value)
                reason = AS_MADE if told.made else "as its constructor is written"
                answer = Author("unknown" if distribution is None else "constant", distribution, reason)
                self._constants.setdefault(key, {})[name] = answer
        return self._constants.get(id(module), _NO_CONSTANTS)

    def constructed(self, module: nn.Module) -> Hashable:
        """What constructors tell of a module: equal where that is equal. (): nothing."""
        constants, made = self.constants_of(module), self._made.get(id(module))
        return tuple(constants.items()) if made is None else (*constants.items(), *sorted(made))

    def is_empty(self, module: nn.Module, own_name: str) -> bool:
        """Whether a parameter is made of memory that no constructor has written to."""
        self.constants_of(module)
        return (own_name, "empty") in self._made.get(id(module), ())

    def is_drawn(self, module: nn.Module, own_name: str) -> bool:
        """Whether the constructor of the module draws a parameter."""
        self.constants_of(module)
        return (own_name, "drawn") in self._made.get(id(module), ())

    def of(self, module: nn.Module, own_name: str) -> Author:
        """What the code gives the parameter `own_name` of `module`."""
        key = id(module), own_name
        if key not in self._known:
            self._known[key] = self._found(module, own_name)
        return self._known[key]

    def told(self, module: nn.Module) -> Hashable:
        """What the code gives all parameters of `module`: equal where two modules are told the same."""
        if not has_tapes(module):
            taped = self._taped(module)
            return None if taped is None else taped.told()
        authors = ((own_name, self.of(module, own_name)) for own_name in module._parameters)
        return interned(tuple((own_name, each.kind, each.distribution) for own_name, each in authors))

    def _found(self, module: nn.Module, own_name: str) -> Author:
        tape = tape_of(module, own_name)
        if tape is not None:
            if not is_complete(tape):
                return Author("unknown", None, "its code has not written to all of it")
            return author_of(tape, "as recorded when it was built")
        constant = self.constants_of(module).get(own_name)
        if constant is not None and not self.tell_of(module):  # what torch's reset code did has been overwritten
            return constant
        taped = self._taped(module)
        found = None if taped is None else taped.author(own_name)
        if found is not None or constant is not None:
            return found or constant  # type: ignore[return-value]
        failed = self._failures.get(id(module))
        if not failed and self._failures:
            failed = self._failures.get(id(unwrapped(self._model)))
        return Author("unknown", None, failed or "no code of its own sets it")

    def _taped(self, module: nn.Module) -> ModuleTapes | None:
        """The tapes of the code that tells of a module; None if none tells."""
        if not self._everything and not self.tell_of(module):
            return self._attempt(module).get(id(module)) if is_of_torch(module) else None
        if self._read is None:
            self._read = self._attempt(unwrapped(self._model))
        return self._read.get(id(module))

    def _attempt(self, model: nn.Module) -> dict[int, ModuleTapes]:
        try:
            modules = self._named if model is self._model else named_modules(model)
            return _read(modules, self._failures, exact=self._exact)
        except Exception as error:
            self._failures[id(model)] = cannot_run("copy.deepcopy", error)
            return {}

    def failures(self) -> list[str]:
        """What was raised by code of the model that was run on a copy, each with the name of its module."""
        raised = self.raised()
        if not raised:
            return []
        return [
            f"{each.name}: {raised[id(each.module)]}" if each.name else raised[id(each.module)]
            for each in named_modules(self._model)
            if id(each.module) in raised
        ]

    def raised(self) -> dict[int, str]:
        """The same, by the id of the module."""
        return self._failures if self._exactly is None else {**self._failures, **self._exactly.raised()}


def _read(modules: Sequence[NamedModule], failures: dict[int, str], *, exact: bool) -> dict[int, ModuleTapes]:
    """For each module whose parameters the model's code sets: their tapes. `modules` are all, the model first.

    What the code of a module raises is added to `failures`.
    """
    found: dict[int, ModuleTapes] = {}
    rebuilt: set[str] = set()
    for each in modules:
        if "" in rebuilt:
            break
        if any(each.name == name or each.name.startswith(f"{name}.") for name in rebuilt):
            continue
        builder = builder_of(each.module)
        if builder is None:
            continue
        within = modules if each.module is modules[0].module else named_modules(each.module)
        if read_building(within, builder, found, exact=exact):
            rebuilt.add(each.name)
    if "" not in rebuilt:
        with nothing_drawn():
            read_resetting(modules, found, failures, exact=exact)
    return found
