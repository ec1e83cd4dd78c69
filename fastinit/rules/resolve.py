"""Resolving: from a parameter and its treatment to fans and a distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from fastinit.capture.own import Authors
from fastinit.errors import ParameterError
from fastinit.rules.depths import Depths
from fastinit.rules.roles import Treatment
from fastinit.rules.select import Rule
from fastinit.run.memory import check_dtype
from fastinit.schemes.base import Context, Scheme, describe
from fastinit.schemes.distributions import (
    ZERO,
    Blocks,
    Distribution,
    Stack,
    ZeroRow,
    check_distribution,
    check_range,
    range_warning,
)
from fastinit.schemes.fans import (
    FanConvention,
    Fans,
    Geometry,
    block_fans,
    geometry_of,
    is_never_stack,
    is_stack,
    module_geometry,
    reads_as_torch,
)
from fastinit.schemes.named import Constant, Normal, Own, TruncNormal, Uniform, VarianceScaling


class Disagreement(NamedTuple):
    """The std of a parameter by torch's fans and by the module's, and the number of maps that the module has in it."""

    by_torch: float
    by_module: float
    maps: int


class Resolution(NamedTuple):
    """The fans and the distribution of a parameter, and a warning if the dtype spoils the values.

    `fans` is None if no scheme asked for them, or if the blocks of the parameter have different ones.
    `disagreement`: nobody chose a convention for fans, and the module's gives a std that is far from torch's.
    """

    fans: Fans | None
    distribution: Distribution
    warning: str | None = None
    disagreement: Disagreement | None = None
    asked: frozenset[str] = frozenset()  # on what it depends besides scheme, rule, shape, dtype and looks of the module


class Resolver:
    """Resolves parameters, and remembers the result for equal ones.

    Two parameters are equal if the scheme sees no difference between them: scheme, rule, shape and dtype are the same,
    and so are the answers to all further questions of the scheme, in the order in which it asked.

    Some schemes are known to ask for fans at most. What they give is remembered beyond one plan.

    `fan` None: nobody chose a convention. It is then torch's, and resolutions tell where the module's disagrees.
    """

    def __init__(self, fan: FanConvention | None, depths: Depths, authors: Authors | None = None) -> None:
        self._fan = fan
        self._depths = depths
        self._authors = authors
        self._known: dict[Any, Resolution | _Question] = {}
        self._alive: list[object] = []  # objects whose ids are in keys; their ids must not be reused
        self._lasting_keys: dict[int, Any] = {}  # id of a scheme -> what stands for it in _LASTING

    def __call__(
        self,
        name: str,
        own_name: str,
        module: nn.Module | None,
        shape: torch.Size,
        dtype: torch.dtype,
        treatment: Treatment,
    ) -> Resolution:
        """The resolution of the parameter `name`. Its name within its module is `own_name`.

        Raises:
            ParameterError: the scheme, rule or distribution does not fit the parameter, or a user's scheme failed.
        """
        rule = treatment.rule
        fan = self._fan if rule is None or rule.fan is None else rule.fan
        # Where nobody chose a convention, this spares most parameters the question for the module's fans.
        agrees = fan is not None or module is None or reads_as_torch(module, shape)
        module_type: Any = type(module)  # mypy takes the types of modules for unhashable
        may_be_stack = module is not None and len(shape) >= 3 and not is_never_stack(module_type)
        key: Any = (id(treatment.scheme), id(rule), shape, dtype, treatment.zero_row, agrees, may_be_stack)
        known = self._known
        if rule is None and (lasting := self._lasting_key(treatment.scheme)) is not None:
            key, known = (lasting, *key[2:]), _LASTING
        found = known.get(key)
        if type(found) is Resolution:
            return found
        authors = self._authors
        if authors is not None and not treatment.told:  # somebody wants the very distribution of its author
            authors = authors.exactly()
        asked = _Asked(fan or "torch", self._depths, authors, name, own_name, module, tuple(shape), may_be_stack)
        while found is not None:
            if type(found) is Resolution:
                return found
            assert isinstance(found, _Question)
            found = found.next.get(asked.key(found.what))
        resolution = _resolve(asked, treatment, dtype)
        disagreement = None if agrees else _disagreement(asked, treatment, dtype, resolution)
        if asked.path:  # as wherever there is a disagreement
            resolution = Resolution(*resolution[:3], disagreement, frozenset([what for what, _ in asked.path]))
        if known is _LASTING:
            if len(known) >= _MOST_LASTING:
                known.clear()
        else:
            self._alive += (treatment.scheme, rule, module)
        _remember(known, key, asked.path, resolution)
        return resolution

    def _lasting_key(self, scheme: object) -> Any:
        key = self._lasting_keys.get(id(scheme), "")
        if key == "":
            key = None
            if type(scheme) in _ASK_FOR_FANS_ONLY and (self._fan is None or isinstance(self._fan, str)):
                key = repr(scheme), self._fan  # 0.0 and -0.0 are equal, and give other bits
            self._lasting_keys[id(scheme)] = key
            self._alive.append(scheme)
        return key


def _remember(
    known: dict[Any, Resolution | _Question], key: Any, path: Sequence[tuple[str, object]], resolution: Resolution
) -> None:
    for what, answer in path:
        question = known.setdefault(key, _Question(what, {}))
        assert isinstance(question, _Question) and question.what == what, "equal answers lead to equal questions"
        known, key = question.next, answer
    known[key] = resolution


class _Question(NamedTuple):
    """The next question of a scheme, and what follows each answer: a resolution or another question."""

    what: str
    next: dict[Any, Any]


_ASK_FOR_FANS_ONLY = frozenset({VarianceScaling, Uniform, Normal, TruncNormal, Constant})
_LASTING: dict[Any, Resolution | _Question] = {}
_MOST_LASTING = 8192

# Stands for a missing answer. The scheme got an error instead.
_REFUSED = object()


class _Asked:
    """Answers about one parameter. `path`, a list of (question, answer), is all that the scheme learned from them."""

    def __init__(
        self,
        fan: FanConvention,
        depths: Depths,
        authors: Authors | None,
        name: str,
        own_name: str,
        module: nn.Module | None,
        shape: tuple[int, ...],
        may_be_stack: bool,
    ) -> None:
        self.fan = fan
        self.depths = depths
        self.authors = authors
        self.name = name
        self.own_name = own_name
        self.module = module
        self.shape = shape
        self.may_be_stack = may_be_stack and fan in ("torch", "module", "weight")
        # All other conventions look only at the shape, which every key contains, and at whether the parameter is a
        # stack.
        self.looks_at_module = module is not None and (fan == "module" or fan == "weight")
        self.wanted_fans = False
        self.path: list[tuple[str, object]] = []  # each question once
        self._found: dict[str, Any] = {}

    def answer(self, what: str) -> Any:
        """The answer to a question. Question and answer are added to the path.

        Raises:
            ValueError: the question has no answer.
        """
        if what in self._found:
            return self._found[what]
        recorded = what != "geometry" or self.looks_at_module
        try:
            found = self._find(what)
        except Exception:
            if recorded and (what, _REFUSED) not in self.path:
                self.path.append((what, _REFUSED))
            raise
        self._found[what] = found
        if recorded:
            self.path.append((what, id(found) if what == "module" else found))
        return found

    def key(self, what: str) -> object:
        """The answer in the form that a path has it."""
        try:
            found = self._find(what)
        except Exception:
            return _REFUSED
        return id(found) if what == "module" else found

    def _find(self, what: str) -> Any:
        if what == "geometry":
            return geometry_of(self.fan, self.module, self.own_name, self.shape)
        if what == "stack":
            return is_stack(self.module, self.shape)
        if what == "geometry by module":
            assert self.module is not None
            return module_geometry(self.module, self.own_name, self.shape)
        if what == "layer":
            return self.depths.layer(self.name)
        if what == "layers":
            return self.depths.layers(self.name)
        if what == "author":
            return self._author()
        return self.module if what == "module" else self.own_name

    def _author(self) -> Distribution:
        if self.authors is None or self.module is None:
            raise ValueError("expected a parameter of a module, whose code tells; got a tensor")
        author = self.authors.of(self.module, self.own_name)
        if author.distribution is None:
            raise ValueError(f"expected a parameter that its module's own code sets, but {author.reason}")
        return author.distribution

    def geometry(self) -> Geometry:
        if self.may_be_stack and not self.looks_at_module:
            self.answer("stack")
        geometry: Geometry = self.answer("geometry")
        return geometry

    def stacked(self) -> int:
        """How many leading dimensions count equal maps."""
        return self.geometry().stacked if self.may_be_stack else 0


class _Context(Context):
    """The context of a parameter, or of one of its blocks. `block` is the dimension and the size of the block."""

    def __init__(
        self, asked: _Asked, shape: tuple[int, ...], dtype: torch.dtype, block: tuple[int, int] | None
    ) -> None:
        Context.__init__(self, shape, dtype)
        self._asked = asked
        self._block = block

    @property
    def fans(self) -> Fans:
        self._asked.wanted_fans = True
        geometry = self._asked.geometry()
        if self._block is None:
            return geometry.fans
        return block_fans(geometry, self._asked.shape, *self._block)

    @property
    def module(self) -> nn.Module | None:
        module: nn.Module | None = self._asked.answer("module")
        return module

    @property
    def own_name(self) -> str:
        return str(self._asked.answer("own_name"))

    @property
    def layer(self) -> int:
        return int(self._asked.answer("layer"))

    @property
    def layers(self) -> int:
        return int(self._asked.answer("layers"))

    @property
    def author(self) -> Distribution:
        author: Distribution = self._asked.answer("author")
        return author


def _resolve(asked: _Asked, treatment: Treatment, dtype: torch.dtype) -> Resolution:
    given = treatment.scheme
    assert given is not None
    schemes = given if isinstance(given, tuple) else (given,)
    rule, shape = treatment.rule, asked.shape
    fans: Fans | None = None
    of_whole = any(isinstance(each, Own) for each in schemes)  # with its padding row and its blocks
    try:
        dim, sizes = (0, ()) if of_whole else _blocks(asked, rule)
    except Exception as error:
        raise ParameterError(asked.name, f"{_described(schemes)}{error}") from error
    if not sizes:
        distribution = _made(asked, schemes[0], shape, dtype, None)
    else:
        split = rule is not None and rule.split is not None
        of_blocks = []
        for scheme, size in zip(schemes if len(schemes) > 1 else schemes * len(sizes), sizes, strict=True):
            of_block = (*shape[:dim], size, *shape[dim + 1 :])
            # Without a split, the fans of the geometry are already those of one block.
            of_blocks.append(_made(asked, scheme, of_block, dtype, (dim, size) if split else None))
        # Blocks are dropped if all elements have the same distribution.
        first = of_blocks[0]
        alike = len(set(of_blocks)) == 1 and first.same_everywhere
        distribution = first if alike else Blocks(dim, sizes, tuple(of_blocks))
    try:
        if asked.wanted_fans and len(set(sizes)) <= 1:  # else every block has its own fans
            fans = asked.geometry().fans
            if sizes and rule is not None and rule.split is not None:
                fans = block_fans(asked.geometry(), shape, dim, sizes[0])
        if treatment.zero_row is not None and distribution != ZERO and not of_whole:
            distribution = _with_zero_row(distribution, shape, treatment.zero_row)
        check_dtype(dtype, distribution)
        check_range(distribution, dtype)
        return Resolution(fans, distribution, range_warning(distribution, dtype))
    except (ValueError, TypeError) as error:
        raise ParameterError(asked.name, f"{_described(schemes)}{error}") from error


# The std by two conventions may differ by this factor before anybody is told.
_AGREES_WITHIN = 1.5


def _disagreement(asked: _Asked, treatment: Treatment, dtype: torch.dtype, by_torch: Resolution) -> Disagreement | None:
    """How far the values by fan="module" are from those by torch's fans; None if not far, or if no fans matter.

    Rows of embeddings are looked up and never summed. So they have no fan, and both conventions are equally good.
    """
    given = treatment.scheme
    is_own = any(isinstance(each, Own) for each in (given if isinstance(given, tuple) else (given,)))
    alike = by_torch.distribution.same_everywhere and not asked.wanted_fans
    if alike or is_own or asked.module is None or isinstance(asked.module, (nn.Embedding, nn.EmbeddingBag)):
        return None
    context = asked.depths, asked.authors, asked.name, asked.own_name, asked.module, asked.shape, asked.may_be_stack
    other = _Asked("module", *context)
    try:
        geometry: Geometry = asked.answer("geometry by module")
        if geometry == asked.geometry():
            return None
        by_module = _resolve(other, treatment, dtype).distribution
    except Exception:  # a scheme that fits only one reading
        return None
    finally:
        asked.path += [each for each in other.path if each[0] != "geometry" and each not in asked.path]
    if not all(each.told_by_formula for both in (by_torch.distribution, by_module) for each in both.each_block()):
        return None
    least, most = sorted((by_torch.distribution.std(), by_module.std()))
    if not 0.0 < least * _AGREES_WITHIN < most:
        return None
    return Disagreement(by_torch.distribution.std(), by_module.std(), geometry.blocks)


def _described(schemes: Sequence[Scheme]) -> str:
    return f"{describe(schemes[0])}: " if len(schemes) == 1 else ""


def _made(
    asked: _Asked, scheme: Scheme, shape: tuple[int, ...], dtype: torch.dtype, block: tuple[int, int] | None
) -> Distribution:
    """The distribution that a scheme gives the parameter, or a block of this shape. It is checked."""
    try:
        stacked = 0 if isinstance(scheme, Own) else asked.stacked()  # an author's distribution is that of the whole
        if not stacked:
            return _fitted(asked, scheme, shape, dtype, block)
        return _made_of_maps(asked, scheme, shape, stacked, dtype, block)
    except Exception as error:  # a user's scheme may raise anything
        told = str(error) if isinstance(error, (ValueError, TypeError)) else f"{type(error).__name__}: {error}"
        raise ParameterError(asked.name, f"{describe(scheme)}: {told}") from error


def _made_of_maps(
    asked: _Asked,
    scheme: Scheme,
    shape: tuple[int, ...],
    stacked: int,
    dtype: torch.dtype,
    block: tuple[int, int] | None,
) -> Distribution:
    """The distribution of a stack. The scheme sees one map of it.

    A scheme that fits no map, such as dirac, takes the parameter for a convolution, and gets the whole.
    """
    try:
        distribution = _fitted(asked, scheme, shape[stacked:], dtype, block)
    except ValueError as error:
        try:
            return _fitted(asked, scheme, shape, dtype, block)
        except ValueError:
            raise error from None
    if not distribution.same_everywhere:
        for size in reversed(shape[:stacked]):
            distribution = Stack(size, distribution)
    return distribution


def _fitted(
    asked: _Asked, scheme: Scheme, shape: tuple[int, ...], dtype: torch.dtype, block: tuple[int, int] | None
) -> Distribution:
    """The distribution that a scheme gives for this shape."""
    distribution = scheme.distribution(_Context(asked, shape, dtype, block))
    check_distribution(distribution)
    distribution.check(shape)
    return distribution


def _with_zero_row(distribution: Distribution, shape: tuple[int, ...], row: int) -> ZeroRow:
    if not shape or not -shape[0] <= row < shape[0]:
        raise ValueError(f"zero_row: expected a row of shape {shape}, got {row}")
    split = distribution.blocks()
    if split is not None and split.dim == 0:
        raise ValueError("split: expected another dimension than the rows, of which one is a padding row")
    return ZeroRow(row % shape[0], shape[0], distribution)


def _blocks(asked: _Asked, rule: Rule | None) -> tuple[int, tuple[int, ...]]:
    """(dimension, sizes) of the maps fused in a parameter. Without sizes, the parameter is one map."""
    shape = asked.shape
    split = None if rule is None else rule.split
    if rule is None or split is None:
        # No other convention knows fused maps. A bias beside fused maps has the same distribution for each.
        if asked.fan != "module" or asked.module is None or len(shape) < 2:
            return 0, ()
        geometry = asked.geometry()
        dim = geometry.out_dim
        return dim, (shape[dim] // geometry.blocks,) * geometry.blocks if geometry.blocks > 1 else ()
    dim = rule.split_dim if rule.split_dim is not None else asked.geometry().out_dim if len(shape) >= 2 else 0
    if not -len(shape) <= dim < len(shape):
        raise ValueError(f"split_dim: expected a dimension of shape {shape}, got {dim}")
    dim %= len(shape)
    if isinstance(split, int):
        if shape[dim] % split != 0:
            raise ValueError(f"split: expected dim {dim} to be divisible by {split}, got {shape[dim]} (shape {shape})")
        return dim, (shape[dim] // split,) * split
    if sum(split) != shape[dim]:
        raise ValueError(f"split: expected sizes that add up to {shape[dim]} (dim {dim} of {shape}), got {split}")
    return dim, split
