"""What statements may set that are not followed step by step: loops over modules, and functions that are applied.

Their text tells which parameters they write to: of which name, in modules of which classes.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from types import FunctionType
from typing import Any, NamedTuple, Protocol

from torch import nn

from fastinit.capture.constructors.scripts import UNKNOWN, Path, Sweep, Told
from fastinit.capture.constructors.text import (
    DEEP,
    SETS_NO_VALUES,
    argument,
    called,
    code_of,
    draws,
    is_new_tensor,
    is_of_elements,
    is_unplaced,
    method_of,
    named,
    of_others,
    path_of,
    sets_values,
)


class Seen(Protocol):
    """What the reader of a constructor sees of its module."""

    def at(self, path: Path) -> nn.Module | None: ...


class Scope(NamedTuple):
    """What names stand for where a statement stands.

    names: global ones. exact: what is at a path. below: something of what is below a path, such as each of the modules
    there, `kinds` of which classes. functions: those that are defined here.
    """

    names: Mapping[str, Any]
    exact: dict[str, Path]
    below: dict[str, Path]
    kinds: dict[str, tuple[type, ...]]
    functions: dict[str, ast.FunctionDef | ast.Lambda]


class Effects:
    """The sweeps of statements, in their order."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self._within: list[Any] = []  # functions that are being read
        self.found: list[Sweep] = []

    def read(self, node: ast.AST, scope: Scope) -> None:
        if isinstance(node, (ast.If, ast.IfExp)):
            self.read(node.test, scope)
            narrowed = scope._replace(kinds={**scope.kinds, **_kinds_of(node.test, scope)})
            self._all(node.body if isinstance(node, ast.If) else [node.body], narrowed)
            self._all(node.orelse if isinstance(node, ast.If) else [node.orelse], scope)
            return
        if isinstance(node, ast.FunctionDef):
            scope.functions[node.name] = node
            return
        if isinstance(node, ast.Lambda):
            return  # whoever calls it reads it
        if isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)):
            self._all(node.generators, scope)
        if isinstance(node, (ast.For, ast.comprehension)):
            self._bind(node.target, node.iter, scope, is_item=True)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if is_of_elements(target) or getattr(target, "attr", "") == "data":
                    self._write(target, None if draws(node.value) else UNKNOWN, scope)
                else:
                    self._bind(target, node.value, scope)
        elif isinstance(node, ast.AugAssign):
            if sets_values(node):
                self._write(node.target, None if draws(node.value) else UNKNOWN, scope)
        elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
            self._bind(node.target, node.value, scope)
        elif isinstance(node, ast.Call):
            self._call(node, scope)
        self._all(ast.iter_child_nodes(node), scope)

    def _all(self, nodes: Iterable[ast.AST], scope: Scope) -> None:
        for node in nodes:
            self.read(node, scope)

    def _bind(self, target: ast.expr, value: ast.expr, scope: Scope, *, is_item: bool = False) -> None:
        """Names that are given: to something at a path, to something below one, or to what is no part of the module."""
        exact = path_of(value, scope.exact) if isinstance(target, ast.Name) and not is_item else None
        below = self.below(value, scope)
        for each in ast.walk(target):
            if isinstance(each, ast.Name):
                for held in (scope.exact, scope.below, scope.kinds):
                    held.pop(each.id, None)
                if exact is not None:
                    scope.exact[each.id] = exact
                elif below is not None:
                    scope.below[each.id] = below

    def below(self, node: ast.AST, scope: Scope) -> Path | None:
        """The path of a module below which an expression leads; None: it leads to no part of the module."""
        if is_new_tensor(node, scope.names):
            return None  # whatever it takes its size from
        paths = self._paths(node, scope)
        return None if not paths else paths.pop() if len(paths) == 1 else ()

    def _paths(self, node: ast.AST, scope: Scope) -> set[Path]:
        """The paths of modules that an expression begins at."""
        path = path_of(node, scope.exact) if isinstance(node, ast.expr) else None
        if path is not None:
            return {self._placed(path)}
        if isinstance(node, ast.Name):
            return {scope.below[node.id]} if node.id in scope.below else set()
        parts: Iterable[ast.AST] = ast.iter_child_nodes(node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):  # of a method, its name is no step
            parts = (node.func.value, *node.args, *(each.value for each in node.keywords))
        return {path for part in parts for path in self._paths(part, scope)}

    def _placed(self, path: Path) -> Path:
        """A path that leads to a module. What is no module, such as a list of them, may have any of them."""
        return () if not is_unplaced(path) and self._seen.at(path) is None else path

    def _write(self, target: ast.expr, told: Told | None, scope: Scope) -> None:
        """Something is written to a tensor, or to a part of it."""
        whole = target
        while True:
            if isinstance(whole, ast.Subscript) and path_of(whole, scope.exact) is None:
                whole = whole.value
            elif isinstance(whole, ast.Call) and isinstance(whole.func, ast.Attribute):
                whole = whole.func.value  # weight.data.normal_().mul_(2)
            elif isinstance(whole, ast.Attribute) and whole.attr == "data":
                whole = whole.value
            else:
                break
        if told is not None and whole is not target and not _is_data_of(target, whole):
            told = UNKNOWN  # of some elements
        exact = path_of(whole, scope.exact)
        below = self.below(whole, scope) if exact is None else None
        if isinstance(whole, ast.Name) and below and self._placed(below) != below:
            return  # an argument that is no module: a list, or a tensor that is given
        if exact:
            self.found.append(Sweep(exact, told=told))
        elif exact is not None or below is not None:
            name = whole.attr if isinstance(whole, ast.Attribute) else None
            of = whole.value.id if isinstance(whole, ast.Attribute) and isinstance(whole.value, ast.Name) else ""
            self.found.append(Sweep(self._placed(below or ()), name, scope.kinds.get(of), told))

    def _call(self, call: ast.Call, scope: Scope) -> None:
        name = called(call)
        if name in SETS_NO_VALUES or name == "__init__":
            return
        if name == "apply" and isinstance(call.func, ast.Attribute) and len(call.args) == 1:
            below = self.below(call.func.value, scope)
            if below is not None:
                self._applied(call.args[0], self._placed(below), scope)
            return
        if isinstance(call.func, ast.Name) and (local := scope.functions.get(call.func.id)) is not None:
            if local not in self._within:
                self._enter(local, local.args, call, scope, local.body)
            return
        if not sets_values(call) and path_of(getattr(call.func, "value", call.func), scope.exact) is None:
            return
        if (found := self._function(call, scope)) is not None:
            function, of = found
            code = code_of(function, of is not None)
            if code is not None and not draws(call) and len(self._within) < DEEP:
                if function not in self._within:
                    self._follow(function, code.arguments, code.body, call, of, scope)
                return
        if not sets_values(call):
            return
        told = None if draws(call) else UNKNOWN
        is_method = isinstance(call.func, ast.Attribute) and named(scope.names, call.func.value) is None
        target: Any = call.func.value if is_method else argument(call, 0, "tensor")  # type: ignore[attr-defined]
        if not name.endswith("_"):  # of a module: all that is below
            below = self.below(call, scope)
            if below is not None:
                kinds = scope.kinds.get(getattr(target, "id", ""))
                self.found.append(Sweep(self._placed(below), None, kinds, told))
        elif target is not None:
            value = _CONSTANT.get(name)
            self._write(target, told if value is None or told is None else Told(value), scope)

    def _function(self, call: ast.Call, scope: Scope) -> tuple[FunctionType, Path | None] | None:
        """A function or a method that others than torch wrote; of a method, the path to its module."""
        if isinstance(call.func, ast.Attribute):
            path = path_of(call.func.value, scope.exact)
            if path is not None:
                module = self._seen.at(path)
                method = None if module is None else method_of(type(module), call.func.attr)
                return None if method is None else (method, path)
        function = of_others(named(scope.names, call.func))
        return None if function is None else (function, None)

    def _follow(
        self,
        function: FunctionType,
        arguments: tuple[str, ...],
        body: list[ast.stmt],
        call: ast.Call,
        of: Path | None,
        scope: Scope,
    ) -> None:
        """Read a function that is called."""
        inner = Scope(function.__globals__, {} if of is None else {"self": of}, {}, {}, {})
        self._pass(arguments, call, scope, inner)
        self._within.append(function)
        self._all(body, inner)
        self._within.pop()

    def _enter(self, function: Any, given: ast.arguments, call: ast.Call, scope: Scope, body: Any) -> None:
        """Read a function that is defined here, and called."""
        inner = scope._replace(exact=dict(scope.exact), below=dict(scope.below), kinds=dict(scope.kinds))
        self._pass([each.arg for each in (*given.posonlyargs, *given.args)], call, scope, inner)
        self._within.append(function)
        self._all(body if isinstance(body, list) else [body], inner)
        self._within.pop()

    def _pass(self, arguments: Iterable[str], call: ast.Call, scope: Scope, inner: Scope) -> None:
        values = {
            **dict(zip(arguments, call.args, strict=False)),
            **{each.arg or "": each.value for each in call.keywords},
        }
        for name, value in values.items():
            exact, below = path_of(value, scope.exact), self.below(value, scope)
            for held in (inner.exact, inner.below, inner.kinds):
                held.pop(name, None)
            if exact is not None:
                inner.exact[name] = exact
            elif below is not None:
                inner.below[name] = below
                if isinstance(value, ast.Name) and value.id in scope.kinds:
                    inner.kinds[name] = scope.kinds[value.id]

    def _applied(self, given: ast.expr, below: Path, scope: Scope) -> None:
        """A function is applied to every module below a path."""
        if isinstance(given, ast.Call) and called(given) == "partial" and given.args:
            given = given.args[0]
        local: Any = given if isinstance(given, ast.Lambda) else scope.functions.get(getattr(given, "id", ""))
        if local is not None:
            inner = scope._replace(below=dict(scope.below), kinds={})
            inner.below[local.args.args[0].arg if local.args.args else ""] = below
            self._all(local.body if isinstance(local.body, list) else [local.body], inner)
            return
        path = path_of(given.value, scope.exact) if isinstance(given, ast.Attribute) else None
        module = None if path is None else self._seen.at(path)
        method = None if module is None or not isinstance(given, ast.Attribute) else method_of(type(module), given.attr)
        function = method or of_others(named(scope.names, given))
        code = None if function is None else code_of(function, method is not None)
        if function is None or code is None or not code.arguments or len(self._within) >= DEEP:
            self.found.append(Sweep(below))
        elif function not in self._within:
            exact = {"self": path} if method is not None and path is not None else {}
            self._within.append(function)
            self._all(code.body, Scope(function.__globals__, exact, {code.arguments[0]: below}, {}, {}))
            self._within.pop()


_CONSTANT = {"zero_": 0.0, "zeros_": 0.0, "ones_": 1.0}


def _is_data_of(target: ast.expr, whole: ast.expr) -> bool:
    return isinstance(target, ast.Attribute) and target.attr == "data" and target.value is whole


def _kinds_of(test: ast.expr, scope: Scope) -> dict[str, tuple[type, ...]]:
    """What a condition says of the classes of modules under names, if it holds."""
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        return {name: kinds for each in test.values for name, kinds in _kinds_of(each, scope).items()}
    if called(test) != "isinstance" or not isinstance(test, ast.Call) or len(test.args) != 2:
        return {}
    of, given = test.args
    kinds = [named(scope.names, each) for each in (given.elts if isinstance(given, ast.Tuple) else [given])]
    is_known = isinstance(of, ast.Name) and all(isinstance(each, type) for each in kinds)
    return {of.id: tuple(kinds)} if is_known and isinstance(of, ast.Name) else {}
