"""What the text of a class's constructor says of parameters that no code can be run for again.

A constructor's arguments are gone when a model is there, so it cannot be run again. Statements that set a constant can
be read: `nn.init.constant_(self.head.bias, -4.6)`, `self.lstm.bias_hh_l0.data[4:8].fill_(1)`. A statement is
understood, or makes unknown what it may have set; nothing but arithmetic is executed.

How a parameter is made is read, too: `nn.Parameter(0.1 * torch.ones(size))` is constant, and `nn.Parameter(points)`
holds what somebody gave. Of a map, `torch.zeros` may be a placeholder, as `torch.empty` and draws always are.

Code that a constructor calls without arguments of its own, such as `self.init_biases()`, `head.bias_init()` and
`self.apply(self._init_weights)`, can be run again: it is told to whoever reads reset code (capture/resetting.py).
"""

from __future__ import annotations

import ast
import builtins
import inspect
import math
import operator
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from types import FunctionType
from typing import Any, NamedTuple, TypeAlias

from torch import nn


class Told(NamedTuple):
    """The constant that a constructor sets a parameter to; None: it is computed from what is gone, or a pattern.

    made: whether the parameter was made so, and nothing has set it since.
    """

    value: float | None
    made: bool = False


# From a module to a parameter: names of attributes, and indices of containers.
Path: TypeAlias = tuple[str | int, ...]


class Run(NamedTuple):
    """Code that a constructor calls, and that can be run again.

    path: to the module whose method it is, or that a function is for. each: whether it is applied to every module there
    is. code: a function, or the name of a method: of the module at the path, or of the constructor's if `each`.
    """

    path: Path
    each: bool
    code: str | FunctionType

    def __str__(self) -> str:
        return self.code if isinstance(self.code, str) else self.code.__name__

    def of(self, module: nn.Module) -> nn.Module | None:
        """The module at the path, from the one that was constructed."""
        found = module
        for step in self.path:
            below = _below(found, step)
            if below is None:
                return None
            found = below
        return found

    def again(self, module: nn.Module) -> None:
        """Run it for the module that was constructed."""
        of: Any = self.of(module)
        if isinstance(self.code, str):
            code = getattr(module if self.each else of, self.code)
            of.apply(code) if self.each else code()
        else:
            of.apply(self.code) if self.each else self.code(of)


class _Script(NamedTuple):
    """What the constructors of a class do.

    swept: paths of modules below which they may have set anything, before they set what `told` has.
    told: None: set by a statement that was not understood.
    runs: what they call, before they set what `told` has. before: what they set before they call that. unread: those of
    `swept` that are not swept by runs alone.
    """

    swept: tuple[Path, ...]
    told: dict[Path, Told | None]
    runs: tuple[Run, ...] = ()
    before: dict[Path, Told | None] = {}  # noqa: RUF012 (nobody changes it)
    unread: tuple[Path, ...] = ()


_NOTHING = _Script((), {})
_ANYTHING = _Script(((),), {}, unread=((),))


def told_of(modules: Sequence[nn.Module]) -> tuple[dict[tuple[int, str], Told], set[tuple[int, str]]]:
    """What constructors tell: by the id of a module and the name of the parameter in it. And what they may have set by
    statements that were not understood.

    `modules` are those of a model, each before those below it. The constructor of a module runs after theirs.
    """
    found: dict[tuple[int, str], Told | None] = {}
    unread: set[tuple[int, str]] = set()
    for module in reversed(modules):
        script = _script_of(module)
        if script is _NOTHING:
            continue
        for path in script.swept:
            gone = set(_reached(module, path))
            if path in script.unread:
                unread |= gone
            found = {key: each for key, each in found.items() if key not in gone}
        found.update(_told_by(module, script))
        if any(told is not None and _is_unplaced(path) for path, told in script.told.items()):
            unread.update(_reached(module, ()))  # somewhere
    unread.update(key for key, told in found.items() if told is None)
    told = {key: told for key, told in found.items() if told is not None}
    return told, unread.difference(told)


def runs_of(module: nn.Module) -> tuple[Run, ...]:
    """Code that the constructors of a module call for it, or for a module below it, and that can be run again."""
    return tuple(each for each in _script_of(module).runs if each.of(module) is not None)


def set_before(module: nn.Module) -> dict[tuple[int, str], Told | None]:
    """The parameters that the constructors of one module set before code of it runs, or how they were made.

    By the id of a module and the name in it.
    """
    script = _script_of(module)
    made = {path: told for path, told in script.told.items() if told is not None and told.made}
    return _told_by(module, script._replace(told={**script.before, **made}))


def set_after(module: nn.Module) -> dict[tuple[int, str], Told | None]:
    """The parameters that they set last."""
    script = _script_of(module)
    later = {path: told for path, told in script.told.items() if told is None or not told.made}
    return _told_by(module, script._replace(told=later))


def _told_by(module: nn.Module, script: _Script) -> dict[tuple[int, str], Told | None]:
    found = {key: told for path, told in script.told.items() for key in _reached(module, path)}
    if any(told is not None and told.made for told in found.values()) and "Norm" in type(module).__name__:
        # Every normalisation has such parameters. Those that are as always need no telling.
        usual = {(id(module), name): 0.0 if _SHIFT.search(name) else 1.0 for name in module._parameters}
        return {key: told for key, told in found.items() if key not in usual or told != (usual[key], True)}
    return found


_SHIFT = re.compile("bias|beta|shift|b_2|loc")


def _reached(module: Any, path: Path) -> Iterable[tuple[int, str]]:
    """The parameter at a path, or all of the module that is there; none if it leads elsewhere."""
    for step in path:
        if module._parameters.get(step) is not None:
            return [(id(module), str(step))]
        module = _below(module, step)
        if module is None:
            return []
    return [(id(each), name) for each in module.modules() for name in each._parameters]


def _below(module: Any, step: str | int) -> nn.Module | None:
    """The module that an attribute or an index of a container gives."""
    if isinstance(step, str):
        return module._modules.get(step)  # type: ignore[no-any-return]
    if not isinstance(module, (nn.Sequential, nn.ModuleList)) or not -len(module) <= step < len(module):
        return None
    return module[step]


_PLAIN = (bool, int, float, str)
_scripts: dict[tuple[Any, ...], _Script] = {}
_MOST_SCRIPTS = 4096


def _script_of(module: nn.Module) -> _Script:
    """What the constructors of a module's class, and of the classes that it is derived from, do."""
    kind: Any = type(module)
    constructors = _constructors(kind)
    if not constructors:
        return _ANYTHING if constructors is None else _NOTHING
    plain = [(name, type(each), each) for name, each in module.__dict__.items() if type(each) in _PLAIN]
    key = kind, tuple(plain)
    found = _scripts.get(key)
    if found is None:
        reader = _Reader(module, constructors)
        found = reader.script()
        if not reader.has_looked_further:
            if len(_scripts) >= _MOST_SCRIPTS:
                _scripts.clear()
            _scripts[key] = found
    return found


class _Constructor(NamedTuple):
    """A constructor's statements, the names around it, and which of its arguments are kept, as which attributes."""

    body: list[ast.stmt]
    names: dict[str, Any]
    kept: dict[str, str]
    arguments: tuple[str, ...]


@lru_cache(maxsize=4096)
def _constructors(kind: type) -> tuple[_Constructor, ...] | None:
    """Those that others than torch wrote, of the most derived class first; () if they set nothing, None if one of them
    cannot be read."""
    found = []
    for each in kind.__mro__:
        own = each.__dict__.get("__init__")
        if own is None or each.__module__.split(".")[0] in ("torch", "builtins"):
            continue
        read = _read(own)
        if read is None:
            return None
        found.append(read)
    nodes = (node for each in found for statement in each.body for node in ast.walk(statement))
    sets = any(_called(node) == "Parameter" or _sets_values(node) for node in nodes)
    return tuple(found) if sets else ()


def _read(function: Any) -> _Constructor | None:
    function = inspect.unwrap(function)
    if not isinstance(function, FunctionType):
        return None
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None
    definition = tree.body[0] if tree.body else None
    if not isinstance(definition, ast.FunctionDef) or any(map(_returns, definition.body)):
        return None  # what follows a return is perhaps not done
    given = definition.args
    arguments = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    if not arguments or arguments[0] != "self":
        return None
    kept = {
        statement.value.id: target.attr
        for statement in ast.walk(definition)
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Name)
        for target in statement.targets
        if isinstance(target, ast.Attribute) and _path(target.value, _SELF) == () and statement.value.id in arguments
    }
    return _Constructor(definition.body, function.__globals__, kept, tuple(arguments[1:]))


def _returns(statement: ast.AST) -> bool:
    """Whether a statement may leave the function that it is in. A function within is another one."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
        return False
    return isinstance(statement, ast.Return) or any(map(_returns, ast.iter_child_nodes(statement)))


# Functions and methods whose names say that they set values: init.zeros_, fill_, reset_parameters, zero_module.
_SETS = re.compile(r"[^_]_$|(^|_)(init|reset|zero)(_|$|ial)|^apply$")
_SETS_NO_VALUES = {"requires_grad_", "post_init", "zero_grad"}


def _called(node: ast.AST) -> str:
    """The last name of what is called."""
    if not isinstance(node, ast.Call):
        return ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _sets_values(node: ast.AST) -> bool:
    """Whether an expression or an assignment may set the values of parameters."""
    if isinstance(node, (ast.Assign, ast.AugAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return any(_is_of_elements(each) or getattr(each, "attr", "") == "data" for each in targets)
    name = _called(node)
    return _SETS.search(name) is not None and name not in _SETS_NO_VALUES


def _is_of_elements(node: ast.expr) -> bool:
    """Whether something may be an element of a tensor: what has a string for its key is none."""
    key = node.slice if isinstance(node, ast.Subscript) else None
    return key is not None and not (isinstance(key, ast.Constant) and isinstance(key.value, str))


@lru_cache(maxsize=2**16)
def _may_set(statement: ast.AST) -> bool:
    return any(map(_sets_values, ast.walk(statement)))


_SELF: Mapping[str, Path] = {"self": ()}


def _path(node: ast.expr, names: Mapping[str, Path]) -> Path | None:
    """The path of `self.head[-1].weight.data`; None if an expression is no such thing.

    `names` has what names stand for.
    """
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        above = _path(node.value, names)
        return above if above is None or node.attr == "data" else (*above, node.attr)
    if isinstance(node, ast.Subscript) and (above := _path(node.value, names)):
        try:
            index = ast.literal_eval(node.slice)
        except ValueError:
            return None
        return (*above, index) if type(index) is int else None
    return None


def _begins(path: Path, begin: Path) -> bool:
    return path[: len(begin)] == begin


def _is_unplaced(path: Path) -> bool:
    """Whether a path begins at an object that is no part of the module yet."""
    return bool(path) and str(path[0]).startswith("=")


@lru_cache(maxsize=4096)
def _function_sets(function: FunctionType) -> bool | None:
    """Whether a function may set values, as far as its text tells; None if it has none."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None
    return any(_may_set(statement) for statement in getattr(tree.body[0], "body", []))


def _of_others(code: Any) -> FunctionType | None:
    """A function or method that others than torch wrote."""
    return code if isinstance(code, FunctionType) and not code.__module__.startswith(("torch.", "fastinit.")) else None


def _takes(function: FunctionType, count: int) -> bool:
    try:
        inspect.signature(function).bind(*range(count))
    except (TypeError, ValueError):
        return False
    return True


def _draws(node: ast.AST) -> bool:
    """Whether a call may give random numbers, as far as names tell."""
    return any(re.search("rand|normal|uniform|xavier|kaiming", _called(each)) for each in ast.walk(node))


class _Reader:
    """Reads the constructors of a module's class, from the first statement to the last."""

    def __init__(self, module: nn.Module, constructors: Sequence[_Constructor]) -> None:
        self._module = module
        self._constructors = constructors
        self._told: dict[Path, Told | None] = {}
        self._swept: list[Path] = []
        self._runs: list[Run] = []
        self._before: dict[Path, Told | None] = {}
        self._names = dict(_SELF)  # what local names stand for
        self._contents: dict[str, Told] = {}  # what tensors hold that local names stand for
        self._unplaced = 0
        self.has_looked_further = False  # than at plain attributes of the module

    def script(self) -> _Script:
        self._constructor(0)
        if not (self._told or self._swept or self._runs):
            return _NOTHING
        swept = dict.fromkeys((*self._swept, *(run.path for run in self._runs)))
        return _Script(tuple(swept), self._told, tuple(self._runs), self._before, tuple(self._swept))

    def path(self, node: ast.expr) -> Path | None:
        return _path(node, self._names)

    def _constructor(self, at: int) -> None:
        outer = self._names, self._contents
        self._names = dict(_SELF)
        self._contents = dict.fromkeys(self._constructors[at].arguments, Told(None))
        self._read(at, self._constructors[at].body)
        self._names, self._contents = outer

    def _read(self, at: int, body: Sequence[ast.stmt]) -> None:
        for statement in body:
            self._statement(at, statement)

    def _statement(self, at: int, statement: ast.stmt) -> None:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            if _called(statement.value) == "__init__":
                if at + 1 < len(self._constructors):
                    self._constructor(at + 1)
            elif _called(statement.value) == "register_parameter":
                self._register(at, statement.value)
            elif _sets_values(statement.value):
                self._call(at, statement.value)
        elif isinstance(statement, ast.With):
            self._read(at, statement.body)
        elif isinstance(statement, ast.If):
            test = self._numbers(at).truth(statement.test)
            if test is None:
                self._either(at, statement)
            else:
                self._read(at, statement.body if test else statement.orelse)
        elif isinstance(statement, ast.For) and _may_set(statement) and (rounds := self._rounds(statement)) is not None:
            for target, item in rounds:
                self._bind(target, item)
                self._read(at, statement.body)
        elif _may_set(statement):
            self._assignment(at, statement)
        elif isinstance(statement, ast.Assign):  # of another module under a name
            self._assign(at, statement.targets, statement.value)
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            self._assign(at, [statement.target], statement.value)
        else:
            self._rebind(statement)

    def _numbers(self, at: int) -> _Numbers:
        return _Numbers(self, self._constructors[at])

    def _either(self, at: int, statement: ast.If) -> None:
        """Read both ways, of which one was gone. What both tell alike is told."""
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
        """Names and attributes that are given in a way that is not followed."""
        for each in ast.walk(node):
            if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store):
                self._names.pop(each.id, None)
                self._contents.pop(each.id, None)
            elif isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store):
                self._forget(self.path(each))

    def _assign(self, at: int, targets: Sequence[ast.expr], value: ast.expr) -> None:
        """An assignment of something to names and attributes: another module, a new one, a parameter, a tensor."""
        given, content = self.path(value), self._content(at, value)
        if given is None and self._is_new_module(at, value):
            given = self._new_path()
        for target in targets:
            path = None if isinstance(target, ast.Name) else self.path(target)
            if path:
                if any(told is not None and not told.made and _begins(each, path) for each, told in self._told.items()):
                    self._swept.append(path)  # what was there may have got another place below
                self._forget(path)
                if given is not None and _is_unplaced(given) and len(given) == 1:
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
        return _named(self._constructors[at].names, node)

    def _place(self, old: Path, path: Path) -> None:
        """A new module gets its place."""

        def moved(each: Path) -> Path:
            return path + each[len(old) :] if _begins(each, old) else each

        self._told = {moved(each): told for each, told in self._told.items()}
        self._names = {name: moved(each) for name, each in self._names.items()}
        self._swept = [moved(each) for each in self._swept]

    def _place_parts(self, node: ast.expr, path: Path) -> None:
        """New modules get their places in a container: `nn.Sequential(linear, nn.ReLU())`."""
        if not isinstance(node, ast.Call) or _called(node) not in ("Sequential", "ModuleList"):
            return
        parts = node.args
        if _called(node) == "ModuleList":
            parts = parts[0].elts if len(parts) == 1 and isinstance(parts[0], ast.List) else []
        for position, part in enumerate(parts):
            if isinstance(part, ast.Starred):
                return
            given = self.path(part)
            if given is not None and _is_unplaced(given) and len(given) == 1:
                self._place(given, (*path, position))
            self._place_parts(part, (*path, position))

    # ---- how parameters are made ----

    def _register(self, at: int, call: ast.Call) -> None:
        name, made = _argument(call, 0, "name"), _argument(call, 1, "param") or _argument(call, 1, "parameter")
        of = self.path(call.func.value) if isinstance(call.func, ast.Attribute) else None
        if of is not None and made is not None and isinstance(name, ast.Constant) and isinstance(name.value, str):
            self._forget((*of, name.value))
            self._make(at, made, (*of, name.value))

    def _make(self, at: int, node: ast.expr, path: Path) -> None:
        """A parameter is made: `nn.Parameter(torch.ones(3))`."""
        if isinstance(node, ast.IfExp):
            self._make(at, node.body, path)
        elif _called(node) == "Parameter":
            given = _argument(node, 0, "data")  # type: ignore[arg-type]
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
            does = _OPERATORS.get(type(node.op))
            return _computed(does, self._content(at, node.left), self._content(at, node.right))
        if isinstance(node, (ast.List, ast.Tuple)):
            within = [self._content(at, each) for each in node.elts]
            return None if None in within or not within else within[0] if len(set(within)) == 1 else Told(None)
        return self._content_of_call(at, node) if isinstance(node, ast.Call) else None

    def _content_of_call(self, at: int, call: ast.Call) -> Told | None:
        name = _called(call)
        if name in _CONSTANT:
            return Told(_CONSTANT[name])
        if name in ("full", "full_like"):
            given = _argument(call, 1, "fill_value")
            return Told(None) if given is None else self._content(at, given) or Told(None)
        if name in _PATTERNS:
            return Told(None)
        is_method = isinstance(call.func, ast.Attribute) and not isinstance(call.func.value, ast.Name)
        if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name):
            is_method = call.func.value.id in self._contents
        of: Any = call.func.value if is_method else _argument(call, 0, "data")  # type: ignore[attr-defined]
        if of is None or not (is_method or name not in ("Tensor", "FloatTensor") or isinstance(of, ast.List)):
            return None  # torch.Tensor(3, 3) has no values
        if name == "fill_":
            given = _argument(call, 0, "value")
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
            self._told = {each: told for each, told in self._told.items() if not _begins(each, path)}
            if path and rebound:
                self._names = {name: each for name, each in self._names.items() if not _begins(each, path)}

    def _assignment(self, at: int, statement: ast.stmt) -> None:
        """A statement that may set values, and is no call: an assignment, or anything else."""
        target: ast.expr | None = None
        if isinstance(statement, ast.Assign):
            of = _argument(statement.value, 0, "data") if _called(statement.value) == "Parameter" else statement.value  # type: ignore[arg-type]
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
                self._told[path] = None if _draws(statement) else Told(None)
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
                self._set(path, None if _draws(statement) else Told(None))

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
                self._before.update({path: told for path, told in self._told.items() if _begins(path, run.path)})
                self._forget(run.path, rebound=False)
                self._runs.append(run)
            if run is not None or sets is False:
                return
        numbers = self._numbers(at)
        of = self._whole(call.func.value) if isinstance(call.func, ast.Attribute) else None
        is_method = of is not None and self.path(of) is not None
        given: Any = call.func.value if is_method else _argument(call, 0, "tensor")  # type: ignore[attr-defined]
        path = None if given is None else self.path(self._whole(given))
        if path:
            told = numbers.constant(call, is_method)
            if told is None and is_method and _called(call) == "copy_" and not _draws(call):
                told = Told(None)
            self._set(path, Told(None) if told is not None and self.path(given) is None else told)  # of some elements
        else:  # () is self
            self._sweep()

    def _code(self, at: int, call: ast.Call) -> tuple[Run | None, bool | None] | None:
        """What can be run again of a call, and whether it sets values; None if it is another call."""
        name = _called(call)
        path = self.path(call.func.value) if isinstance(call.func, ast.Attribute) else None
        if path is not None and name == "apply":
            if len(call.args) != 1 or call.keywords or not isinstance(self.at(path), nn.Module):
                return None
            given = call.args[0]
            if isinstance(given, ast.Attribute) and self.path(given.value) == ():
                method = _of_others(getattr(type(self._module), given.attr, None))
                return None if method is None or not _takes(method, 2) else (Run(path, True, given.attr), True)
            function = _of_others(self._object(at, given))
            return None if function is None or not _takes(function, 1) else (Run(path, True, function), True)
        if path is not None:
            method = _of_others(getattr(type(self.at(path)), name, None))
            if method is None:
                return None
            sets = _function_sets(method)
            can_run = not call.args and not call.keywords and _takes(method, 1)
            return Run(path, False, name) if can_run else None, sets
        function = _of_others(self._object(at, call.func))
        if function is None:
            return None
        given_path = self.path(call.args[0]) if len(call.args) == 1 and not call.keywords else None
        can_run = given_path is not None and isinstance(self.at(given_path), nn.Module)
        return Run(given_path or (), False, function) if can_run else None, _function_sets(function)

    def at(self, path: Path) -> nn.Module | None:
        """The module at a path."""
        self.has_looked_further |= bool(path)
        return Run(path, False, "").of(self._module)

    def look(self, name: str) -> Any:
        """An attribute of the module."""
        value = self._module.__dict__.get(name)
        if type(value) not in _PLAIN:
            self.has_looked_further = True
        return value

    def is_none(self, path: Path) -> bool | None:
        """Whether None stands at a path, such as the bias of a map without one; None: nothing stands there."""
        self.has_looked_further = True
        module: Any = self._module
        for step in path[:-1]:
            module = _below(module, step)
            if module is None:
                return None
        for held in (module._parameters, module._modules, module._buffers):
            if path[-1] in held:
                return held[path[-1]] is None
        return None


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


def _named(names: Mapping[str, Any], node: ast.expr) -> Any:
    """What a global name, or a name in a module of Python, stands for."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute) and inspect.ismodule(of := _named(names, node.value)):
        return getattr(of, node.attr, None)
    return None


def _argument(call: ast.Call, at: int, name: str) -> ast.expr | None:
    if at < len(call.args):
        return call.args[at]
    return next((each.value for each in call.keywords if each.arg == name), None)


_OPERATORS: dict[type[ast.operator], Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


_COMPARISONS: dict[type[ast.cmpop], Any] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


class _Numbers:
    """The values of expressions in a constructor, as far as they can be known."""

    def __init__(self, reader: _Reader, constructor: _Constructor) -> None:
        self._reader = reader
        self._kept = constructor.kept
        self._names = constructor.names

    def constant(self, call: ast.Call, is_method: bool) -> Told | None:
        """What a method of a tensor, or a function of torch.nn.init, sets it to, if that is a constant."""
        name = _called(call)
        if name == ("zero_" if is_method else "zeros_"):
            return Told(0.0)
        if name == "ones_" and not is_method:
            return Told(1.0)
        if name == ("fill_" if is_method else "constant_"):
            given = _argument(call, 0, "value") if is_method else _argument(call, 1, "val")
            value = None if given is None else self.value(given)
            return Told(float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None)
        return None

    def truth(self, node: ast.expr) -> bool | None:
        """Whether a condition holds; None if that is not known."""
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            of = self.truth(node.operand)
            return None if of is None else not of
        if isinstance(node, ast.BoolOp):
            each = [self.truth(value) for value in node.values]
            decisive = isinstance(node.op, ast.Or)
            return decisive if decisive in each else None if None in each else not decisive
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], (ast.Is, ast.IsNot)):
            right, path = node.comparators[0], self._reader.path(node.left)
            if isinstance(right, ast.Constant) and right.value is None and path:
                is_none = self._reader.is_none(path)
                return None if is_none is None else is_none == isinstance(node.ops[0], ast.Is)
            return None
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARISONS:
            left, right = self.value(node.left), self.value(node.comparators[0])
            known = type(left) in _PLAIN and type(right) in _PLAIN
            return bool(_COMPARISONS[type(node.ops[0])](left, right)) if known else None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            return self._is_instance(*node.args) if len(node.args) == 2 else None
        found = self.value(node)
        return bool(found) if type(found) in _PLAIN else None

    def _is_instance(self, node: ast.expr, kind: ast.expr) -> bool | None:
        path = self._reader.path(node)
        module = self._reader.at(path) if path else None
        kinds = [_named(self._names, each) for each in (kind.elts if isinstance(kind, ast.Tuple) else [kind])]
        if module is None or not all(isinstance(each, type) for each in kinds):
            return None
        return isinstance(module, tuple(kinds))

    def value(self, node: ast.expr) -> Any:
        """A plain value, or an object whose attributes are asked for; None if it is not known."""
        try:
            return self._evaluated(node)
        except Exception:  # whatever arithmetic and the attributes of others raise
            return None

    def _evaluated(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -self.value(node.operand)
        if isinstance(node, ast.BinOp):
            return _OPERATORS[type(node.op)](self.value(node.left), self.value(node.right))
        if isinstance(node, ast.Name):
            if node.id in self._kept:
                return self._reader.look(self._kept[node.id])
            found = self._names.get(node.id)
            return found if type(found) in _PLAIN else None
        if isinstance(node, ast.Attribute):
            if self._reader.path(node.value) == ():
                return self._reader.look(node.attr)
            if _is_mathematics(node.value):
                return getattr(math, node.attr)
            return getattr(self.value(node.value), node.attr)
        if isinstance(node, ast.Call) and not node.keywords:
            given = [self.value(each) for each in node.args]
            if all(type(each) in (int, float) for each in given):
                if isinstance(node.func, ast.Attribute) and _is_mathematics(node.func.value):
                    return getattr(math, node.func.attr)(*given)
                if isinstance(node.func, ast.Name) and node.func.id in ("float", "int", "min", "max", "abs"):
                    return getattr(builtins, node.func.id)(*given)
        return None


def _is_mathematics(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("math", "np", "numpy")
