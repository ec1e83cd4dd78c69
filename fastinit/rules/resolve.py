"""From a parameter and its treatment to fans and a distribution."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from fastinit.rules.depths import Depths
from fastinit.rules.roles import Treatment
from fastinit.rules.select import Rule
from fastinit.run.memory import NAMELESS, check_dtype
from fastinit.schemes.base import Scheme, at_layer, describe, distribution_of
from fastinit.schemes.distributions import Blocks, Constant, Distribution, ZeroRow, check_range, is_composed
from fastinit.schemes.fans import FanConvention, Fans, Geometry, block_fans, geometry_of
from fastinit.schemes.named import DepthScaled, Scaled


class Resolution(NamedTuple):
    """What a parameter gets. `warning`: what its dtype makes of the values, where that is not what was meant."""

    fans: Fans | None
    distribution: Distribution
    warning: str | None = None


class Resolver:
    """From parameter and treatment to fans and distribution, remembering what equal parameters gave."""

    def __init__(self, fan: FanConvention, depths: Depths) -> None:
        self._fan = fan
        self._depths = depths
        self._known: dict[Any, tuple[Fans | None, Distribution]] = {}

    def __call__(
        self,
        name: str,
        own_name: str,
        module: nn.Module | None,
        shape: torch.Size,
        dtype: torch.dtype,
        treatment: Treatment,
    ) -> Resolution:
        return Resolution(
            *self._resolve(name, own_name, module, torch.empty(shape, dtype=dtype, device="meta"), treatment)
        )

    def _resolve(
        self, name: str, own_name: str, module: nn.Module | None, tensor: torch.Tensor, treatment: Treatment
    ) -> tuple[Fans | None, Distribution]:
        scheme, rule, shape, dtype = treatment.scheme, treatment.rule, tensor.shape, tensor.dtype
        fan = self._fan if rule is None or rule.fan is None else rule.fan
        # torch's fans are those of the shape; the others look at the module.
        geometry = None if fan == "torch" else self._geometry(name, own_name, module, tensor, treatment, fan)
        depth = self._depth(name, scheme)
        if depth is not None and depth[0] is not None and not _differs_by_layer(scheme):
            depth = (0, depth[1])  # one answer for all layers
        key = (id(scheme), id(rule), shape, dtype, geometry, depth, treatment.zero_row)
        known = self._known.get(key)
        if known is None:
            try:
                known = _distribution(own_name, module, shape, treatment, fan, depth)
                check_dtype(dtype, name or NAMELESS, known[1])
                check_range(known[1], dtype)
            except (ValueError, TypeError) as error:
                message = str(error)
                label = name or NAMELESS
                if message.startswith(f"{label}: "):
                    raise
                shown = f"{describe(scheme)}: " if isinstance(scheme, Scheme) else ""
                lacks_fans = "fans need" in message
                hint = "; give it a rule with a scheme without fans, such as 'normal'" if lacks_fans else ""
                raise ValueError(f"{label}: {shown}{message}{hint}") from error
            self._known[key] = known
        return known

    def _depth(self, name: str, scheme: Any) -> tuple[int | None, int | None] | None:
        if not _looks_at_depth(scheme):
            return None
        try:
            layer = self._depths.layer(name)
        except ValueError:
            return None, None
        return layer, self._depths.layers(name)

    def _geometry(
        self,
        name: str,
        own_name: str,
        module: nn.Module | None,
        tensor: torch.Tensor,
        treatment: Treatment,
        fan: FanConvention,
    ) -> Geometry | None:
        if not _needs_geometry(treatment):
            return None
        try:
            return geometry_of(fan, module, own_name, tensor.shape)
        except ValueError as error:
            raise ValueError(f"{name or NAMELESS}: {error}") from error


def _looks_at_depth(scheme: Scheme | tuple[Scheme, ...] | None) -> bool:
    if isinstance(scheme, tuple):
        return any(map(_looks_at_depth, scheme))
    return hasattr(scheme, "at_layer")


def _differs_by_layer(scheme: Any) -> bool:
    """Whether a scheme that looks at the depth looks at the layer, and not only at how many there are."""
    if isinstance(scheme, tuple):
        return any(map(_differs_by_layer, scheme))
    if isinstance(scheme, Scaled):
        return _differs_by_layer(scheme.scheme)
    if isinstance(scheme, DepthScaled):
        return scheme.by == "layer" or _differs_by_layer(scheme.scheme)
    return hasattr(scheme, "at_layer")  # of the user's own


def _needs_geometry(treatment: Treatment) -> bool:
    scheme = treatment.scheme
    if treatment.rule is not None and treatment.rule.split is not None:
        return True
    # Blocks matter to schemes of the shape, too: an orthogonal matrix a gate.
    return (
        scheme is not None
        and not isinstance(scheme, tuple)
        and (scheme.needs_fans or hasattr(scheme, "distribution_of"))
    )


def _distribution(
    own_name: str,
    module: nn.Module | None,
    shape: torch.Size,
    treatment: Treatment,
    fan: FanConvention,
    depth: tuple[int | None, int | None] | None,
) -> tuple[Fans | None, Distribution]:
    scheme, rule = treatment.scheme, treatment.rule
    assert scheme is not None
    schemes = scheme if isinstance(scheme, tuple) else (scheme,)
    if depth is not None:
        schemes = tuple(at_layer(each, *depth) for each in schemes)
    needs_fans = any(each.needs_fans for each in schemes)
    geometry = (
        geometry_of(fan, module, own_name, shape)
        if needs_fans or (_needs_geometry(treatment) and len(shape) >= 2)
        else None
    )
    dim, sizes = _blocks(shape, rule, geometry)
    fans: Fans | None = None
    if not sizes:
        fans = geometry.fans if needs_fans and geometry is not None else None
        distribution = distribution_of(schemes[0], shape, fans)
    else:
        each_scheme = schemes if len(schemes) > 1 else schemes * len(sizes)
        split = rule is not None and rule.split is not None
        parts = []
        for of_block, size in zip(each_scheme, sizes, strict=True):
            if of_block.needs_fans:
                assert geometry is not None
                fans = block_fans(geometry, shape, dim, size) if split else geometry.fans
            block_shape = (*shape[:dim], size, *shape[dim + 1 :])
            parts.append(distribution_of(of_block, block_shape, fans if of_block.needs_fans else None))
        # Elements that are sampled one by one alike need no blocks.
        alike = len(set(parts)) == 1 and not (is_composed(parts[0]) or hasattr(parts[0], "period"))
        distribution = parts[0] if alike else Blocks(dim, sizes, tuple(parts))
        if len(set(sizes)) > 1:
            fans = None  # every block has its own
    if treatment.zero_row is not None and distribution != Constant(0.0):
        if not shape or not -shape[0] <= treatment.zero_row < shape[0]:
            raise ValueError(f"zero_row: expected a row of shape {tuple(shape)}, got {treatment.zero_row}")
        if isinstance(distribution, Blocks) and distribution.dim == 0:
            raise ValueError("split: expected another dimension than the rows, of which one is a padding row")
        distribution = ZeroRow(treatment.zero_row % shape[0], shape[0], distribution)
    return fans, distribution


def _blocks(shape: torch.Size, rule: Rule | None, geometry: Geometry | None) -> tuple[int, tuple[int, ...]]:
    """(dimension, sizes) of the maps fused in a parameter; no sizes: it is one map."""
    split = None if rule is None else rule.split
    if rule is None or split is None:
        if geometry is None or geometry.blocks == 1:
            return 0, ()
        dim = geometry.out_dim
        return dim, (shape[dim] // geometry.blocks,) * geometry.blocks
    dim = rule.split_dim if rule.split_dim is not None else (0 if geometry is None else geometry.out_dim)
    if not -len(shape) <= dim < len(shape):
        raise ValueError(f"split_dim: expected a dimension of shape {tuple(shape)}, got {dim}")
    dim %= len(shape)
    if isinstance(split, int):
        if shape[dim] % split != 0:
            raise ValueError(
                f"split: expected dim {dim} to be divisible by {split}, got {shape[dim]} (shape {tuple(shape)})"
            )
        return dim, (shape[dim] // split,) * split
    if sum(split) != shape[dim]:
        raise ValueError(
            f"split: expected sizes that add up to {shape[dim]} (dim {dim} of {tuple(shape)}), got {split}"
        )
    return dim, split
