"""Reads the statements of constructors, one after the other, and says what they do as a script."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Hashable, Sequence
from typing import Any

from torch import nn

from fastinit.capture.constructors.arithmetic import OPERATORS, Numbers
from fastinit.capture.constructors.questions import Question, is_none_at, module_at, value_at
from fastinit.capture.constructors.scripts import NOTHING, Path, Run, Script, Told
from fastinit.capture.constructors.text import (
    PLAIN,
    SELF,
    Constructor,
    argument,
    begins,
    called,
    draws,
    function_sets,
    is_for_values,
    is_unplaced,
    may_set,
    named,
    of_others,
    path_of,
    sets_values,
    takes,
)


class Reader:
    """Reads the constructors of a module's class, from the first statement to the last."""

    def __init__(self, module: nn.Module, constructors: Sequence[Constructor]) -> None:
        self._module = module
        self._constructors = constructors
        self._told: dict[Path, Told | None] = {}
        self._swept: list[Path] = []
        self._runs: list[Run] = []
        self._before: dict[Path, Told | None] = {}
        self._names = dict(SELF)  # what local names stand for
        self._contents: dict[str, Told] = {}  # what tensors hold that local names stand for
        self._unplaced = 0
        self.asked: dict[Question, Hashable] = {}
        self.is_decided = True  # whether modules of the class that answer alike have the same script

    def script(self) -> Script:
        self._constructor(0)
        if not (self._told or self._swept or self._runs):
            return NOTHING
        swept = dict.fromkeys((*self._swept, *(run.path for run in self._runs)))
        return Script(tuple(swept), self._told, tuple(self._runs), self._before, tuple(self._swept))

    def path(self, node: ast.expr) -> Path | None:
        return path_of(node, self._names)

    def _constructor(self, at: int) -> None:
        outer = self._names, self._contents
        self._names = dict(SELF)
        self._contents = dict.fromkeys(self._constructors[at].arguments, Told(None))
        self._read(at, self._constructors[at].body)
        self._names, self._contents = outer

    def _read(self, at: int, body: Sequence[ast.stmt]) -> None:
        for statement in body:
            self._statement(at, statement)

    def _statement(self, at: int, statement: ast.stmt) -> None:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            if called(statement.value) == "__init__":
                if at + 1 < len(self._constructors):
                    self._constructor(at + 1)
            elif called(statement.value) == "register_parameter":
                self._register(at, statement.value)
            elif sets_values(statement.value):
                self._call(at, statement.value)
        elif isinstance(statement, ast.With):
            self._read(at, statement.body)
        elif isinstance(statement, ast.If):
            test = self._numbers(at).truth(statement.test)
            if test is None:
                self._either(at, statement)
            else:
                self._read(at, statement.body if test else statement.orelse)
        elif isinstance(statement, ast.For) and may_set(statement) and (rounds := self._rounds(statement)) is not None:
            for target, item in rounds:
                self._bind(target, item)
                self._read(at, statement.body)
        elif may_set(statement):
            self._assignment(at, statement)
        elif isinstance(statement, ast.Assign):  # of another module under a name
            self._assign(at, statement.targets, statement.value)
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            self._assign(at, [statement.target], statement.value)
        else:
            self._rebind(statement)

    def _numbers(self, at: int) -> Numbers:
        return Numbers(self, self._constructors[at])

    def _either(self, at: int, statement: ast.If) -> None:
        """Read both branches, since nobody knows which one ran. What both say alike counts."""
        before, names, contents = dict(self._told), dict(self._names), dict(self._contents)
        runs, before_runs = list(self._runs), dict(self._before)
        self._read(at, statement.body)
        one, self._told = self._told, before
        one_names, self._names = self._names, names
        one_contents, self._contents = self._contents, contents
        self._read(at, statement.orelse)
        other = self._told
        self._swept += [run.path for run in self._runs[len(runs) :]]
        self._runs, self._before = runs, before_runs
        self._told = {path: one.get(path) if one.get(path) == other.get(path) else None for path in {**one, **other}}
        self._names = {name: path for name, path in self._names.items() if one_names.get(name) == path}
        self._contents = {name: told for name, told in self._contents.items() if one_contents.get(name) == told}

    # ---- names ----

    def _rounds(self, loop: ast.For) -> list[tuple[ast.expr, Any]] | None:
        """What the target of a loop over some modules stands for in each round; None if that is not known."""
        if loop.orelse or any(isinstance(each, (ast.Break, ast.Continue)) for each in ast.walk(loop)):
            return None
        items = self._items(loop.iter)
        return None if items is None else [(loop.target, item) for item in items]

    def _items(self, node: ast.expr) -> list[Any] | None:
        """Paths, or tuples of them, that are looped over."""
        if isinstance(node, (ast.Tuple, ast.List)):
            paths = [self.path(each) for each in node.elts]
            return None if None in paths else paths
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("enumerate", "zip"):
            within = [self._items(each) for each in node.args]
            if not within or None in within or node.keywords:
                return None
            if node.func.id == "enumerate":
                return [(None, each) for each in within[0] or ()] if len(within) == 1 else None
            return list(zip(*within, strict=False))
        path = self.path(node)
        module = None if path is None else self.at(path)
        if path is None or not isinstance(module, (nn.Sequential, nn.ModuleList)):
            return None
        return [(*path, at) for at in range(len(module))]

    def _bind(self, target: ast.expr, item: Any) -> None:
        """Let a name, or a tuple of names, stand for a path, or a tuple of paths."""
        if isinstance(target, (ast.Tuple, ast.List)) and isinstance(item, tuple) and len(item) == len(target.elts):
            for each, path in zip(target.elts, item, strict=True):
                self._bind(each, path)
        elif isinstance(target, ast.Name) and item is not None:
            self._names[target.id] = item
        else:
            self._rebind(target)

    def _rebind(self, node: ast.AST) -> None:
        """Forget the names and attributes that a statement sets in a way that the reader does not follow."""
        for each in ast.walk(node):
            if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store):
                self._names.pop(each.id, None)
                self._contents.pop(each.id, None)
            elif isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store):
                self._forget(self.path(each))

    def _assign(self, at: int, targets: Sequence[ast.expr], value: ast.expr) -> None:
        """An assignment of something to names and attributes: another module, a new one, a parameter, a tensor."""
        given = self.path(value)
        is_named = any(isinstance(target, ast.Name) for target in targets)
        content = self._content(at, value) if is_named else None  # the number of a layer is mostly just kept
        if given is None and self._is_new_module(at, value):
            given = self._new_path()
        for target in targets:
            path = None if isinstance(target, ast.Name) else self.path(target)
            if path:
                if any(told is not None and not told.made and begins(each, path) for each, told in self._told.items()):
                    self._swept.append(path)  # what was there may have got another place below
                self._forget(path)
                if given is not None and is_unplaced(given) and len(given) == 1:
                    self._place(given, path)
                    given = path
                self._place_parts(value, path)
                self._make(at, value, path)
                continue
            self._rebind(target)
            if isinstance(target, ast.Name):
                if given is not None:
                    self._names[target.id] = given
                if content is not None:
                    self._contents[target.id] = content

    def _new_path(self) -> Path:
        self._unplaced += 1
        return (f"={self._unplaced}",)

    def _is_new_module(self, at: int, node: ast.expr) -> bool:
        found = self._object(at, node.func) if isinstance(node, ast.Call) else None
        found = getattr(found, "func", found)  # of functools.partial
        return isinstance(found, type) and issubclass(found, nn.Module)

    def _object(self, at: int, node: ast.expr) -> Any:
        return named(self._constructors[at].names, node)

    def _place(self, old: Path, path: Path) -> None:
        """A new module gets its place."""

        def moved(each: Path) -> Path:
            return path + each[len(old) :] if begins(each, old) else each

        self._told = {moved(each): told for each, told in self._told.items()}
        self._names = {name: moved(each) for name, each in self._names.items()}
        self._swept = [moved(each) for each in self._swept]

    def _place_parts(self, node: ast.expr, path: Path) -> None:
        """New modules get their places in a container: `nn.Sequential(linear, nn.ReLU())`."""
        if not isinstance(node, ast.Call) or called(node) not in ("Sequential", "ModuleList"):
            return
        parts = node.args
        if called(node) == "ModuleList":
            parts = parts[0].elts if len(parts) == 1 and isinstance(parts[0], ast.List) else []
        for position, part in enumerate(parts):
            if isinstance(part, ast.Starred):
                return
            given = self.path(part)
            if given is not None and is_unplaced(given) and len(given) == 1:
                self._place(given, (*path, position))
            self._place_parts(part, (*path, position))

    # ---- how parameters are made ----

    def _register(self, at: int, call: ast.Call) -> None:
        name, made = argument(call, 0, "name"), argument(call, 1, "param") or argument(call, 1, "parameter")
        of = self.path(call.func.value) if isinstance(call.func, ast.Attribute) else None
        if of is not None and made is not None and isinstance(name, ast.Constant) and isinstance(name.value, str):
            self._forget((*of, name.value))
            self._make(at, made, (*of, name.value))

    def _make(self, at: int, node: ast.expr, path: Path) -> None:
        """A parameter is made: `nn.Parameter(torch.ones(3))`."""
        if isinstance(node, ast.IfExp):
            self._make(at, node.body, path)
        elif called(node) == "Parameter":
            given = argument(node, 0, "data")  # type: ignore[arg-type]
            content = None if given is None else self._content(at, given)
            if content is not None:
                self._told[path] = content._replace(made=True)

    def _content(self, at: int, node: ast.expr) -> Told | None:
        """What a tensor holds; None: draws, nothing, or what is not known."""
        number = self._numbers(at).value(node)
        if type(number) in (int, float):
            return Told(float(number)) if math.isfinite(number) else None
        if isinstance(node, ast.Name):
            return self._contents.get(node.id)
        if isinstance(node, ast.Attribute):  # of an argument
            return None if self._content(at, node.value) is None else Told(None)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return _computed(operator.neg, self._content(at, node.operand))
        if isinstance(node, ast.BinOp):
            does = OPERATORS.get(type(node.op))
            return _computed(does, self._content(at, node.left), self._content(at, node.right))
        if isinstance(node, (ast.List, ast.Tuple)):
            within = [self._content(at, each) for each in node.elts]
            return None if None in within or not within else within[0] if len(set(within)) == 1 else Told(None)
        return self._content_of_call(at, node) if isinstance(node, ast.Call) else None

    def _content_of_call(self, at: int, call: ast.Call) -> Told | None:
        name = called(call)
        if name in _CONSTANT:
            return Told(_CONSTANT[name])
        if name in ("full", "full_like"):
            given = argument(call, 1, "fill_value")
            return Told(None) if given is None else self._content(at, given) or Told(None)
        if name in _PATTERNS:
            return Told(None)
        is_method = isinstance(call.func, ast.Attribute) and not isinstance(call.func.value, ast.Name)
        if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name):
            is_method = call.func.value.id in self._contents
        of: Any = call.func.value if is_method else argument(call, 0, "data")  # type: ignore[attr-defined]
        if of is None or not (is_method or name not in ("Tensor", "FloatTensor") or isinstance(of, ast.List)):
            return None  # torch.Tensor(3, 3) has no values
        if name == "fill_":
            given = argument(call, 0, "value")
            return Told(None) if given is None else self._content(at, given) or Told(None)
        if _ALIKE.fullmatch(name):
            return self._content(at, of)
        if _FUNCTIONS.fullmatch(name):
            return _computed(getattr(math, name, None), self._content(at, of))
        return None

    # ---- what is told ----

    def _sweep(self, path: Path = ()) -> None:
        """A statement that was not understood, such as a loop over modules, may have set anything."""
        self._swept.append(path)
        self._forget(path)

    def _set(self, path: Path, told: Told | None) -> None:
        self._forget(path, rebound=False)
        self._told[path] = told

    def _forget(self, path: Path | None, *, rebound: bool = True) -> None:
        """Forget what has been told of what is at a path, or below it. `rebound`: something else is there now."""
        if path is not None:
            self._told = {each: told for each, told in self._told.items() if not begins(each, path)}
            if path and rebound:
                self._names = {name: each for name, each in self._names.items() if not begins(each, path)}

    def _assignment(self, at: int, statement: ast.stmt) -> None:
        """A statement that may set values, and is no call: an assignment, or anything else."""
        target: ast.expr | None = None
        if isinstance(statement, ast.Assign):
            of = argument(statement.value, 0, "data") if called(statement.value) == "Parameter" else statement.value  # type: ignore[arg-type]
            is_new = not any(
                isinstance(each, ast.Subscript) or getattr(each, "attr", "") == "data" for each in statement.targets
            )
            if is_new and of is not None and self._content(at, of) is not None:  # torch.empty(3).fill_(0.1)
                self._assign(at, statement.targets, statement.value)
                return
        if isinstance(statement, ast.AugAssign):
            target = statement.target
        elif isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target = statement.targets[0]
        if target is None or isinstance(target, ast.Name):
            value = getattr(statement, "value", None)
            parts = ast.walk(value) if value is not None else ()
            if isinstance(target, ast.Name) and not any(isinstance(e, ast.Name) and self.path(e) == () for e in parts):
                self._names[target.id] = path = self._new_path()  # zero_module(nn.Linear(3, 3))
                self._told[path] = None if draws(statement) else Told(None)
                return
            self._sweep()
            self._rebind(statement)
            return
        path = self.path(self._whole(target)) or ()
        if not path:
            self._sweep()
        else:
            given: Any = statement
            number: Any = self._numbers(at).value(given.value) if self._is_all_of(target) else None
            if isinstance(statement, ast.Assign) and type(number) in (int, float):
                self._set(path, Told(float(number)))
            else:
                self._set(path, None if draws(statement) else Told(None))

    def _is_all_of(self, node: ast.expr) -> bool:
        """Whether it is `bias.data[:]`."""
        if not isinstance(node, ast.Subscript) or self.path(node.value) is None:
            return False
        at = node.slice
        if isinstance(at, ast.Constant):
            return at.value is Ellipsis
        return isinstance(at, ast.Slice) and at.lower is at.upper is at.step is None

    def _whole(self, node: ast.expr) -> ast.expr:
        """What a slice is taken of."""
        while isinstance(node, ast.Subscript) and self.path(node) is None:
            node = node.value
        return node

    def _call(self, at: int, call: ast.Call) -> None:
        """A statement that calls what sets values."""
        if (code := self._code(at, call)) is not None:
            run, sets = code
            if run is not None and sets is not False:
                self._before.update({path: told for path, told in self._told.items() if begins(path, run.path)})
                self._forget(run.path, rebound=False)
                self._runs.append(run)
            if run is not None or sets is False:
                return
        numbers = self._numbers(at)
        of = self._whole(call.func.value) if isinstance(call.func, ast.Attribute) else None
        is_method = of is not None and self.path(of) is not None
        given: Any = call.func.value if is_method else argument(call, 0, "tensor")  # type: ignore[attr-defined]
        path = None if given is None else self.path(self._whole(given))
        if path:
            told = numbers.constant(call, is_method)
            if told is None and is_method and called(call) == "copy_" and not draws(call):
                told = Told(None)
            self._set(path, Told(None) if told is not None and self.path(given) is None else told)  # of some elements
        else:  # () is self
            self._sweep()

    def _code(self, at: int, call: ast.Call) -> tuple[Run | None, bool | None] | None:
        """What can be run again of a call, and whether it sets values; None if it is another call."""
        name = called(call)
        path = self.path(call.func.value) if isinstance(call.func, ast.Attribute) else None
        if path is not None and name == "apply":
            if len(call.args) != 1 or call.keywords or not isinstance(self.at(path), nn.Module):
                return None
            given = call.args[0]
            if isinstance(given, ast.Attribute) and self.path(given.value) == ():
                method = of_others(getattr(type(self._module), given.attr, None))
                return (
                    (Run(path, True, given.attr), True)
                    if method and takes(method, 2) and is_for_values(method)
                    else None
                )
            function = of_others(self._object(at, given))
            can_run = function is not None and takes(function, 1) and is_for_values(function)
            return (Run(path, True, function), True) if function and can_run else None
        if path is not None:
            method = of_others(getattr(type(self.at(path)), name, None))
            if method is None:
                return None
            sets = function_sets(method)
            can_run = not call.args and not call.keywords and takes(method, 1) and is_for_values(method)
            return Run(path, False, name) if can_run else None, sets
        function = of_others(self._object(at, call.func))
        if function is None:
            return None
        given_path = self.path(call.args[0]) if len(call.args) == 1 and not call.keywords else None
        can_run = given_path is not None and isinstance(self.at(given_path), nn.Module) and is_for_values(function)
        return Run(given_path or (), False, function) if can_run else None, function_sets(function)

    def at(self, path: Path) -> nn.Module | None:
        """The module at the path."""
        self._ask(Question("module", path))
        return module_at(self._module, path)

    def look(self, path: Path) -> Any:
        """An attribute of the module, or of what that is."""
        self._ask(Question("value", path))
        value = value_at(self._module, path)
        if isinstance(value, (int, float)) and type(value) not in PLAIN:
            self.is_decided = False  # its type is all that is compared
        return value

    def is_none(self, path: Path) -> bool | None:
        """Whether None stands at a path, such as the bias of a map without one; None: nothing stands there."""
        self._ask(Question("none", path))
        return is_none_at(self._module, path)

    def note_object(self) -> None:
        """Note that arithmetic uses an object of which only the type is compared."""
        self.is_decided = False

    def _ask(self, question: Question) -> None:
        if question not in self.asked:
            self.asked[question] = question.answer(self._module)


_CONSTANT = {"zeros": 0.0, "zeros_like": 0.0, "new_zeros": 0.0, "ones": 1.0, "ones_like": 1.0, "new_ones": 1.0}
_PATTERNS = frozenset({"eye", "arange", "linspace", "logspace", "from_numpy"})
# What gives the elements of a tensor in another shape, dtype or place.
_ALIKE = re.compile(
    "(as_)?tensor|(Float)?Tensor|clone|detach|repeat|expand|(un)?squeeze|view|reshape|flatten|to|float|double|half|"
    "contiguous|t|transpose|permute|type|requires_grad_|cpu|cuda|stack|cat|concat|broadcast_to|flip"
)
_FUNCTIONS = re.compile("log|exp|sqrt|sin|cos|tanh|log1p|expm1|outer")


def _computed(function: Any, *given: Told | None) -> Told | None:
    """What a function gives for tensors, element by element."""
    if function is None or any(each is None for each in given):
        return None if any(each is None for each in given) else Told(None)
    try:
        value = function(*(each.value for each in given if each is not None))
        return Told(float(value)) if math.isfinite(value) else Told(None)
    except (TypeError, ValueError, ArithmeticError):
        return Told(None)
