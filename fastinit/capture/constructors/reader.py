"""Reads the statements of constructors, one after the other, and says what they do as a script."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from types import FunctionType
from typing import Any

from torch import nn

from fastinit.capture.constructors.containers import Containers
from fastinit.capture.constructors.contents import Content, content_of
from fastinit.capture.constructors.effects import Effects, Scope
from fastinit.capture.constructors.loops import body_of, is_over_all_below, rounds_of
from fastinit.capture.constructors.parts import NAMES
from fastinit.capture.constructors.runs import run_of
from fastinit.capture.constructors.scripts import NOTHING, UNKNOWN, Path, Run, Script, Sweep, Told
from fastinit.capture.constructors.text import (
    DEEP,
    PLAIN,
    SELF,
    SETS_NO_VALUES,
    Constructor,
    Plain,
    argument,
    attribute_of,
    begins,
    called,
    code_of,
    draws,
    is_new_tensor,
    is_of_elements,
    is_unplaced,
    makes,
    may_set,
    method_of,
    named,
    of_others,
    pairs_of,
    path_of,
    returns,
    sets_values,
)
from fastinit.capture.constructors.values import Values


class Reader(Containers):
    """Reads the constructors of a module's class, from the first statement to the last."""

    def __init__(self, module: nn.Module, constructors: Sequence[Constructor]) -> None:
        super().__init__(module)
        self._constructors = constructors
        self._at = 0  # which of them is read
        self._code = constructors[0]  # what is read: it, or code that it calls
        self._within: list[FunctionType] = []  # the latter
        self._into: Path | None = None  # the attribute that what it returns is assigned to
        self._is_given = False  # whether that is known
        self._runs: list[Run] = []
        self._functions: dict[str, ast.FunctionDef | ast.Lambda] = {}  # that are defined within

    def script(self) -> Script:
        self._constructor(0)
        self._settle()
        told = {path: each for path, each in self._told.items() if not is_unplaced(path)}
        empty = frozenset(path for path, content in self._drawn.items() if content == "empty" and path not in told)
        drawn = frozenset(path for path, content in self._drawn.items() if content == "drawn" and not told.get(path))
        if not (told or empty or drawn or self._sweeps or self._runs):
            return NOTHING
        return Script(told, tuple(dict.fromkeys(self._sweeps)), tuple(self._runs), self._before, empty, drawn)

    def path(self, node: ast.expr) -> Path | None:
        path = path_of(node, self._names)
        if path is None or not any(isinstance(step, int) and step < 0 for step in path):
            return path
        found: Path = ()
        for step in path:  # a place has one path
            if isinstance(step, int) and step < 0:
                parts = self._parts.get(found)
                of: Any = parts.of if parts is not None and parts.are_placed else self.at(found)
                step += len(of) if isinstance(of, (tuple, nn.Sequential, nn.ModuleList)) else 0
            found = (*found, step)
        return found

    def _constructor(self, at: int) -> None:
        outer, self._at = self._at, at
        code = self._constructors[at]
        # An argument may be a module. It has a place where it is kept as an attribute.
        loose: dict[str, Path] = {each: (code.kept.get(each, "?"),) for each in code.arguments}
        self._enter(code, dict(SELF), loose, dict.fromkeys(code.arguments, UNKNOWN), {})
        self._at = outer

    def _enter(
        self,
        code: Constructor,
        names: dict[str, Path],
        loose: dict[str, Path],
        contents: dict[str, Content],
        plain: dict[str, Plain],
    ) -> dict[str, Content]:
        """Read code with these names. What its tensors hold then."""
        outer = self._code, self._names, self._loose, self.contents, self._plain, self._functions
        self._code, self._names, self._loose, self.contents, self._plain = code, names, loose, contents, plain
        self._functions = {}
        self._read(code.body)
        then = self.contents
        self._code, self._names, self._loose, self.contents, self._plain, self._functions = outer
        return then

    def _read(self, body: Sequence[ast.stmt]) -> None:
        """Read statements, up to one that leaves their function."""
        for at, statement in enumerate(body):
            rest = body[at + 1 :]
            if not self._code.leaves or not returns(statement):
                self._statement(statement)
            elif isinstance(statement, ast.Return):
                if self._into is not None and statement.value is not None:
                    self._is_given = self._give(self._into, statement.value)
                elif isinstance(statement.value, ast.Call):
                    self._expression(statement.value)
                return
            elif isinstance(statement, ast.If):
                ways = [*statement.body, *rest], [*statement.orelse, *rest]
                test = self.values().truth(statement.test)
                if test is None:
                    self._either(*ways)
                else:
                    self._read(ways[0] if test else ways[1])
                return
            else:
                self._statement(statement)
                self._either(rest, [])  # what follows is perhaps not done
                return

    def _statement(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            self._expression(statement.value)
        elif (pairs := pairs_of(statement)) is not None:
            for target, value in pairs:
                self._statement(ast.Assign([target], value))
        elif isinstance(statement, ast.With):
            self._read(statement.body)
        elif isinstance(statement, ast.FunctionDef):
            self._functions[statement.name] = statement
            self.contents[statement.name] = "drawn" if draws(statement) else UNKNOWN
        elif isinstance(statement, ast.If):
            test = self.values().truth(statement.test)
            if test is None:
                self._either(statement.body, statement.orelse)
            else:
                self._read(statement.body if test else statement.orelse)
        elif isinstance(statement, ast.For) and self._reads_rounds(statement):
            return
        elif isinstance(statement, ast.For):
            is_swept = may_set(statement)
            if is_swept:
                self._sweep_parameters(statement)
            self._rebind(statement.target, self._below(statement.iter))
            self._round(statement.body, is_swept=is_swept)
        elif self._extends(statement):
            return
        elif may_set(statement):
            self._assignment(statement)
        elif isinstance(statement, ast.Assign):  # of another module under a name
            self._assign(statement.targets, statement.value)
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            self._assign([statement.target], statement.value)
        else:
            self._lose(statement)
            self._rebind(statement)

    def _reads_rounds(self, loop: ast.For) -> bool:
        """Read the rounds of a loop that sets values, if it is known what they are; whether it was."""
        rounds = rounds_of(loop, self) if may_set(loop) or self._calls_for_values(loop) else None
        if rounds is None:
            return False
        body, told, outer = body_of(loop), dict(self._told), self._is_over_all
        self._is_over_all = is_over_all_below(loop)
        for target, item in rounds:
            self._bind(target, item)
            self._read(body)
        if self._is_over_all and self._perhaps:
            self._told = {path: each if told.get(path, each) == each else None for path, each in self._told.items()}
        self._is_over_all = outer
        return True

    def _calls_for_values(self, loop: ast.For) -> bool:
        """Whether the statements of a loop call code that sets values, whatever its name."""
        calls = (each.value for each in loop.body if isinstance(each, ast.Expr) and isinstance(each.value, ast.Call))
        functions = ((each, of_others(self.object(each.func))) for each in calls)
        return any(function is not None and self._makes(function, each) for each, function in functions)

    def _expression(self, call: ast.Call) -> None:
        """A call for what it does."""
        name = called(call)
        if name == "__init__":
            if self._at + 1 < len(self._constructors):
                self._constructor(self._at + 1)
            elif isinstance(self._module, nn.Sequential):
                self._fill_new((), ast.Call(ast.Name("Sequential", ast.Load()), call.args, []))
        elif self._fills(call):
            return
        elif sets_values(call):
            self._call(call)
        elif name not in SETS_NO_VALUES and isinstance(call.func, ast.Attribute) and self.path(call.func.value) == ():
            function = self.function(call)
            if function is not None:
                self._follow(function, call.args, self._of(call), call.keywords)
        elif isinstance(call.func, ast.Name) and call.func.id in self._functions:
            self._sweep(call)
        elif self._is_for_parts(call):
            self._call(call)

    def _is_for_parts(self, node: ast.AST) -> bool:
        """Whether it is a call of code that sets values, whatever its name, for a module or a parameter at a path."""
        if not isinstance(node, ast.Call) or not any(self.path(each) for each in node.args):
            return False
        function = of_others(self.object(node.func))
        return function is not None and self._makes(function, node)

    def values(self) -> Values:
        return Values(self, self._code)

    def _either(self, body: Sequence[ast.stmt], orelse: Sequence[ast.stmt]) -> None:
        """Read both ways, of which one was gone. What both tell alike is told."""
        before = self._copies()
        self._perhaps += 1
        self._read(body)
        one = self._copies()
        self._take(before)
        self._read(orelse)
        self._perhaps -= 1
        self._join(one, before)

    # ---- names ----

    def _bind(self, target: ast.expr, item: Any) -> None:
        """Let a name stand for a path or a string, or several names for several of them."""
        if isinstance(target, (ast.Tuple, ast.List)) and isinstance(item, list) and len(item) == len(target.elts):
            for each, path in zip(target.elts, item, strict=True):
                self._bind(each, path)
        elif isinstance(target, ast.Name) and isinstance(item, str):
            self._unname(target.id)
            self._plain[target.id] = item
        elif isinstance(target, ast.Name) and isinstance(item, tuple):
            self._unname(target.id)
            self._names[target.id] = item
        else:
            self._rebind(target)

    def _rebind(self, node: ast.AST, below: Path | None = None) -> None:
        """Forget the names and attributes that a statement sets in a way that the reader does not follow. `below`: they
        are something below that path."""
        for each in ast.walk(node):
            if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store):
                self._unname(each.id)
                if below is not None:
                    self._loose[each.id] = below
            elif isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store):
                self._forget(self.path(each))

    def _assign(self, targets: Sequence[ast.expr], value: ast.expr) -> None:
        """An assignment of something to names and attributes: another module, a new one, a parameter, a tensor."""
        content: Content | None = None
        below: Path | None = None
        if any(isinstance(target, ast.Name) for target in targets):  # the number of a layer is mostly just kept
            content = content_of(value, self)
            below = self._below(value)
            if isinstance(content, Told) and isinstance(value, (ast.List, ast.Tuple)):
                content = UNKNOWN  # `[0.5]`, times three, is no product
        for target in targets:
            path = None if isinstance(target, ast.Name) else self.path(target)
            if path:
                self._give(path, value)
                continue
            given = self._given(value)
            self._rebind(target, below if given is None else None)
            if isinstance(target, ast.Name):
                if given is not None:
                    self._names[target.id] = given
                if content is not None:
                    self.contents[target.id] = content
                if type(plain := self.values().value(value)) in PLAIN:
                    self._plain[target.id] = plain
            elif isinstance(target, ast.Tuple):
                content = content_of(value, self)
                names = (each.id for each in target.elts if isinstance(each, ast.Name))
                self.contents |= dict.fromkeys(names, UNKNOWN if isinstance(content, Told) else content)

    def _given(self, node: ast.expr) -> Path | None:
        """The path of what an expression gives. What is new gets one."""
        path = self.path(node)
        if path is None and (self._is_new_module(node) or self._is_new_container(node) or self._is_followed(node)):
            path = self._new_path()
            self._give(path, node)
        return path

    def _give(self, path: Path, value: ast.expr) -> bool:
        """An assignment to an attribute: of another module, a new one, a parameter. Whether it is known what it is."""
        if (setter := self._setter(path)) is not None:
            return self._follow(setter, [value], path[:-1])
        if any(told is not None and not told.made and begins(each, path) for each, told in self._told.items()):
            self._swept([Sweep(path)])  # what was there may have got another place below
        given = self.path(value)
        self._forget(path)
        self._key(path)
        if given is not None:
            if is_unplaced(given) and len(given) == 1:
                self._place(given, path)
            return True
        if self._is_new_module(value) or self._is_new_container(value):
            if not isinstance(value, ast.Call) or called(value) in NAMES:
                self._fill_new(path, value)
            return True
        self._make(value, path)
        function = self.function(value) if isinstance(value, ast.Call) else None
        if function is not None and isinstance(value, ast.Call) and self._makes(function, value):
            outer, self._is_given, count = self._is_given, False, len(self._sweeps)
            self._follow(function, value.args, self._of(value), value.keywords, into=path)
            is_given, self._is_given = self._is_given, outer
            swept = [each for each in self._sweeps[count:] if begins(each.path, path)]
            if swept:
                is_drawn = draws(value) or any(each.told is None for each in swept)
                self._told = {path: None if is_drawn else UNKNOWN, **self._told}
            elif not is_given and sets_values(value):  # what it returns is not understood
                self._set(path, None if self._draws(value) else UNKNOWN)
            return is_given
        return path in self._told or path in self._drawn

    def _is_followed(self, node: ast.expr) -> bool:
        """Whether it is a call of code that sets values of what it is given, and whose text can be read."""
        function = self.function(node) if isinstance(node, ast.Call) else None
        if function is None or not self._makes(function, node) or function in self._within or len(self._within) == DEEP:
            return False
        return isinstance(node, ast.Call) and code_of(function, self._of(node) is not None) is not None

    def _makes(self, function: FunctionType, call: Any) -> bool:
        """Whether code that is called makes parameters, or sets those of modules that it makes."""
        of = self._of(call)
        return makes(function, None if of is None else type(self.at(of)))

    def _setter(self, path: Path) -> FunctionType | None:
        """The code of a property that an assignment to an attribute runs."""
        found = attribute_of(type(self.at(path[:-1])), str(path[-1]))
        return of_others(found.fset) if isinstance(found, property) else None

    def _below(self, node: ast.expr) -> Path | None:
        return Effects(self).below(node, self._scope())

    def _scope(self) -> Scope:
        return Scope(self._code.names, dict(self._names), dict(self._loose), {}, dict(self._functions))

    def _is_new_module(self, node: ast.expr) -> bool:
        found = self.object(node.func) if isinstance(node, ast.Call) else None
        found = getattr(found, "func", found)  # of functools.partial
        return isinstance(found, type) and issubclass(found, nn.Module)

    def object(self, node: ast.expr) -> Any:
        """What a global name stands for."""
        return named(self._code.names, node)

    def function(self, call: ast.Call) -> FunctionType | None:
        """The function, or the method of a module at a path, that is called, if others than torch wrote it."""
        path = self._of(call)
        if path is None:
            return of_others(self.object(call.func))
        return method_of(type(self.at(path)), called(call))

    # ---- how parameters are made ----

    def _make(self, node: ast.expr, path: Path) -> None:
        """A parameter is made: `nn.Parameter(torch.ones(3))`."""
        if isinstance(node, ast.IfExp):
            test = self.values().truth(node.test)
            self._make(node.orelse if test is False else node.body, path)
        elif isinstance(node, ast.Call) and called(node) == "Parameter":
            given = argument(node, 0, "data")
            content = "empty" if given is None else content_of(given, self)
            if isinstance(content, Told):
                self._told[path] = Told(content.value, made=True)
            else:
                self._drawn[path] = content
        elif called(node) == "requires_grad_" and isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            self._make(node.func.value, path)

    def content_at(self, path: Path) -> Content:
        """What a parameter holds, or another attribute of the module."""
        if path in self._told or is_unplaced(path):
            return self._told.get(path) or "drawn"
        of = self.at(path[:-1])
        return "drawn" if of is not None and path and path[-1] in of._parameters else UNKNOWN

    # ---- what is told ----

    def _sweep(self, statement: ast.AST) -> None:
        """A statement that is not followed, such as a loop over modules, may have set what its text says."""
        effects = Effects(self)
        effects.read(statement, self._scope())
        self._swept(effects.found)
        for each in ast.walk(statement):
            target: Any = None
            if isinstance(each, (ast.Assign, ast.AugAssign)):
                targets = each.targets if isinstance(each, ast.Assign) else [each.target]
                target = next(filter(is_of_elements, targets), None)
            elif isinstance(each, ast.Call) and called(each).endswith("_"):
                is_method = isinstance(each.func, ast.Attribute) and self.object(each.func) is None
                target = each.func.value if is_method else argument(each, 0, "tensor")  # type: ignore[attr-defined]
            self._fill(target, each)
            if isinstance(each, ast.Call) and not called(each).endswith("_") and sets_values(each):
                for given in each.args:
                    self._fill(given, each)

    def _sweep_parameters(self, loop: ast.For) -> None:
        """The same, of a loop. It runs, and so sets the parameters at which it is aimed, such as their elements."""
        count = len(self._sweeps)
        self._sweep(loop)
        for each in self._sweeps[count:]:
            if not each.path or each.path in self._told:
                continue
            if is_unplaced(each.path):  # of a new module of torch
                is_parameter = each.path[-1] in ("weight", "bias")
            else:
                of = self.at(each.path[:-1])
                is_parameter = of is not None and each.path[-1] in of._parameters
            if is_parameter:
                self._set(each.path, None if each.told is None else UNKNOWN)

    def _assignment(self, statement: ast.stmt) -> None:
        """A statement that may set values, and is no call: an assignment, or anything else."""
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1 and self._is_item(statement.targets[0]):
            self._put(statement.targets[0], statement.value)  # type: ignore[arg-type]
            return
        if (
            isinstance(statement, ast.Assign)
            and not any(map(_is_of_data, statement.targets))
            and (
                called(statement.value) == "Parameter"
                or is_new_tensor(statement.value, self._code.names)
                or self._is_new_container(statement.value)
                or self._is_followed(statement.value)
                or called(statement.value) in NAMES
            )
        ):
            self._assign(statement.targets, statement.value)
            return
        target: ast.expr | None = None
        if isinstance(statement, ast.AugAssign):
            target = statement.target
        elif isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target = statement.targets[0]
        if isinstance(statement, ast.Assign) and isinstance(target, ast.Name):
            below = self._below(statement.value)
            if below is None or self.at(below) is None:  # zero_module(nn.Linear(3, 3)), of no part of the module
                self._rebind(target)
                new = self._names[target.id] = below if below and is_unplaced(below) else self._new_path()
                self._told[new] = None if self._draws(statement) else UNKNOWN
                return
        path = self.path(self._whole(target)) if target is not None and not isinstance(target, ast.Name) else None
        if path and target is not None:
            given: Any = statement
            number: Any = self.values().value(given.value) if self._is_all_of(target) else None
            if isinstance(statement, ast.Assign) and type(number) in (int, float):
                self._set(path, Told(float(number)))
            elif isinstance(statement, ast.AugAssign) and not draws(statement):
                self._swept([Sweep(path)])  # a draw that is halved is one
            else:
                self._set(path, None if self._draws(statement) else UNKNOWN)
        else:
            self._sweep(statement)
            self._rebind(statement)

    def _call(self, call: ast.Call) -> None:
        """A statement that calls what sets values."""
        function = self.function(call)
        run = None if self._perhaps else run_of(call, function, self)
        if run is not None:
            self._runs.append(run)
            for place, told in self._told.items():
                if begins(place, run.path) and (told is None or not told.ran):
                    self._before[place] = told
                    self._told[place] = None if told is None else told.run_over()
            return
        is_open = function is not None and not (draws(call) and called(call).endswith("_"))
        if is_open and function is not None and self._follow(function, call.args, self._of(call), call.keywords):
            return
        if self._fills_local(call):
            return
        values = self.values()
        of = self._whole(call.func.value) if isinstance(call.func, ast.Attribute) else None
        is_method = of is not None and self.path(of) is not None
        given: Any = call.func.value if is_method else argument(call, 0, "tensor")  # type: ignore[attr-defined]
        path = None if given is None else self.path(self._whole(given))
        if path and called(call).endswith("_") and called(call) != "apply":
            told = values.constant(call, is_method)
            if told is None and is_method and not draws(call):
                if called(call) != "copy_":
                    self._swept([Sweep(path)])  # a draw that is halved is one
                    return
                told = UNKNOWN
            self._set(path, UNKNOWN if told is not None and self.path(given) is None else told)  # of some elements
            if told is None:
                self._drawn[path] = "drawn"
        else:
            self._sweep(call)

    def _fills_local(self, call: ast.Call) -> bool:
        """Whether a call sets all of a tensor under a local name to one number."""
        is_method = isinstance(call.func, ast.Attribute) and self.object(call.func) is None
        of: Any = call.func.value if is_method else argument(call, 0, "tensor")  # type: ignore[attr-defined]
        of = of.value if isinstance(of, ast.Attribute) and of.attr == "data" else of
        told = self.values().constant(call, is_method)
        if told is None or not isinstance(of, ast.Name) or of.id not in self.contents or self.path(of) is not None:
            return False
        self.contents[of.id] = told
        return True

    def _of(self, call: ast.Call) -> Path | None:
        """The path to the module whose method is called; None: it is none."""
        return self.path(call.func.value) if isinstance(call.func, ast.Attribute) else None

    def _follow(
        self,
        function: FunctionType,
        arguments: Sequence[ast.expr],
        of: Path | None,
        keywords: Sequence[ast.keyword] = (),
        into: Path | None = None,
    ) -> bool:
        """Read code that is called as if it stood here; whether it could be read. `of`: the module, of a method."""
        code = code_of(function, of is not None)
        if code is None or len(self._within) == DEEP or function in self._within:
            return False
        if of != ():
            code = code._replace(kept={})
        given = dict(zip(code.arguments, arguments, strict=False))
        given |= {each.arg: each.value for each in keywords if each.arg}
        names = {name: path for name, each in given.items() if (path := self._given(each)) is not None}
        loose = {name: path for name, each in given.items() if (path := self._below(each)) is not None}
        contents = {name: content_of(each, self) for name, each in given.items()}
        if of is not None:
            names["self"] = of
        plain = {name: each for name, each in code.defaults.items() if name not in given}
        values = self.values()
        plain |= {name: found for name, each in given.items() if type(found := values.value(each)) in PLAIN}
        outer, self._into = self._into, into
        self._within.append(function)
        then = self._enter(code, names, loose, {**dict.fromkeys(code.arguments, UNKNOWN), **contents}, plain)
        for name, each in given.items():  # tensors that it was given
            if isinstance(each, ast.Name) and each.id in self.contents and name in then:
                self.contents[each.id] = then[name]
        self._within.pop()
        self._into = outer
        return True


def _is_of_data(target: ast.expr) -> bool:
    return is_of_elements(target) or getattr(target, "attr", "") == "data"
