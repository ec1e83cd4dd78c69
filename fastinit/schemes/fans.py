"""fan_in and fan_out of a parameter: the inputs that meet in one output, and the outputs that one input reaches.

Four conventions give them: torch's, JAX's and Keras' read the shape, and "module" looks at what the module computes.
Only stacks of maps, such as experts, are known to torch's convention, too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrize

from fastinit._torch import CONVOLUTIONS
from fastinit.distributed.held import global_shape


class Fans(NamedTuple):
    """The fans of one map, as numbers of values. A rule or a plan takes `Fans(in, out)` as its `fan`.

    fan_in: how many inputs meet in one output: the size of the input axis, times the receptive field.
    fan_out: how many outputs one input reaches: the size of the output axis, times the receptive field.

    The receptive field is the product of the kernel's axes; a linear map has none, and its field is 1. The convention
    says which axes are which: torch's shapes are (out, in, kernel ...), JAX's and Keras' are (kernel ..., in, out).

    >>> torch_fans((64, 3, 7, 7))
    Fans(fan_in=147, fan_out=3136)
    """

    fan_in: int
    fan_out: int


class Geometry(NamedTuple):
    """A parameter as a map: its fans, its input and output dimensions, and the number of equal maps along `out_dim`.

    With `blocks` > 1 (fused projections, gates) the fans are those of one block. With `groups` > 1, dimension 0 counts
    the channels of all groups, and the fans count one group. `given`: the user gave the fans; they do not follow from
    the shape. `stacked` leading dimensions count equal maps, and the fans are those of one map.
    """

    fans: Fans
    in_dim: int = 1
    out_dim: int = 0
    blocks: int = 1
    groups: int = 1
    given: bool = False
    stacked: int = 0


class FanAxes(NamedTuple):
    """JAX's convention: fan_in and fan_out are the sizes of these axes, times the receptive field.

    The receptive field is the product of all remaining axes except the batch axes. The defaults are those of
    jax.nn.initializers.variance_scaling: kernels are (..., in, out).
    """

    in_axis: int | tuple[int, ...] = -2
    out_axis: int | tuple[int, ...] = -1
    batch_axis: int | tuple[int, ...] = ()


FanConvention = Literal["torch", "module", "jax", "keras", "weight"] | Fans | FanAxes
FAN_NAMES = ("torch", "module", "jax", "keras", "weight")


def _no_fans(shape: Sequence[int]) -> ValueError:
    return ValueError(
        f"fans need at least 2 dimensions, got shape {tuple(shape)}; give it a rule with a scheme without fans, such "
        "as 'normal'"
    )


def torch_fans(shape: Sequence[int]) -> Fans:
    """The fans that `torch.nn.init` computes: dimension 1 is in, dimension 0 is out, the rest is the receptive field.

    fan_in = shape[1] * prod(shape[2:]), fan_out = shape[0] * prod(shape[2:]).

    Raises:
        ValueError: fewer than two dimensions.

    >>> torch_fans((64, 3, 7, 7))
    Fans(fan_in=147, fan_out=3136)
    """
    if len(shape) < 2:
        raise _no_fans(shape)
    receptive_field = math.prod(shape[2:])
    return Fans(shape[1] * receptive_field, shape[0] * receptive_field)


def axes_fans(shape: Sequence[int], axes: FanAxes = FanAxes()) -> Fans:  # noqa: B008 (immutable)
    """The fans that JAX computes: fan_in = prod(in axes) * field, fan_out = prod(out axes) * field.

    The field is the product of all remaining axes except the batch axes. A fan without axes equals the field; the
    fan_out of a vector may be such a fan.

    Raises:
        ValueError: the shape has fewer than two dimensions and the axes are the defaults, an axis is out of range, or
            an axis is named twice.

    >>> axes_fans((3, 3, 16, 32))
    Fans(fan_in=144, fan_out=288)
    >>> axes_fans((5,), FanAxes(in_axis=(0,), out_axis=()))
    Fans(fan_in=5, fan_out=1)
    """
    dimensions = len(shape)
    if dimensions < 2 and axes == FanAxes():  # axes that the user names may fit a vector
        raise _no_fans(shape)
    seen: set[int] = set()

    def size(name: str, axis: int | tuple[int, ...]) -> int:
        product = 1
        for each in (axis,) if isinstance(axis, int) else axis:
            if not -dimensions <= each < dimensions:
                raise ValueError(f"{name}: expected an axis of shape {tuple(shape)}, got {each}")
            if each % dimensions in seen:
                raise ValueError(f"{name}: axis {each} of shape {tuple(shape)} stands for another already")
            seen.add(each % dimensions)
            product *= shape[each]
        return product

    fan_in, fan_out = size("in_axis", axes.in_axis), size("out_axis", axes.out_axis)
    size("batch_axis", axes.batch_axis)
    field = math.prod(size for dimension, size in enumerate(shape) if dimension not in seen)
    return Fans(fan_in * field, fan_out * field)


def keras_fans(shape: Sequence[int]) -> Fans:
    """The fans that Keras computes. Kernels are (..., in, out).

    A vector of length n has the fans (n, n), a scalar (1, 1). No fan is below 1.

    >>> keras_fans((7,))
    Fans(fan_in=7, fan_out=7)
    """
    if len(shape) < 2:
        size = max(1, math.prod(shape))
        return Fans(size, size)
    field = math.prod(shape[:-2])
    return Fans(max(1, shape[-2] * field), max(1, shape[-1] * field))


def torch_geometry(module: nn.Module | None, shape: Sequence[int]) -> Geometry:
    """torch's reading of the shape, except that a stack of maps has the fans of one map, (..., out, in).

    Three dimensions and more are a stack in a module that is neither one of torch.nn's nor a convolution. A class is
    taken for a convolution by its name or a base's ("Conv" in it), by an attribute `kernel_size` or `groups`, or by
    what its `forward` calls (`F.conv2d`). An axis of length 1 after the first does not belong to a map: depthwise
    kernels (channels, 1, k, k) and stacks of vectors (n, 1, d) keep torch's reading. So do tensors without a module.

    Raises:
        ValueError: fewer than two dimensions.

    >>> experts = nn.Module()
    >>> torch_geometry(experts, (8, 64, 128)).fans
    Fans(fan_in=128, fan_out=64)
    >>> torch_geometry(nn.Conv1d(64, 8, 128), (8, 64, 128)).fans
    Fans(fan_in=8192, fan_out=1024)
    """
    if is_stack(module, shape):
        return Geometry(
            Fans(shape[-1], shape[-2]), in_dim=len(shape) - 1, out_dim=len(shape) - 2, stacked=len(shape) - 2
        )
    return Geometry(torch_fans(shape))


def is_stack(module: nn.Module | None, shape: Sequence[int]) -> bool:
    """Whether a parameter of this shape is a stack of maps to `torch_geometry`."""
    return len(shape) >= 3 and module is not None and 1 not in shape[1:] and not _is_known_or_convolution(module)


@lru_cache(maxsize=4096)
def is_never_stack(module_type: type) -> bool:
    """Whether `is_stack` is false for all parameters of a class: it is one of torch.nn's, or called a convolution."""
    return _reader_of(module_type) is not None or _is_called_convolution(module_type)


def _is_known_or_convolution(module: Any) -> bool:
    module_type: Any = type(module)  # mypy takes the types of modules for unhashable
    if is_never_stack(module_type):
        return True
    for name in ("kernel_size", "groups"):
        size = getattr(module, name, None)
        if type(size) is int or (isinstance(size, (tuple, list)) and all(type(each) is int for each in size)):
            return True
    # What a module holds under such a name (self.conv1d) is a convolution of its own, with its own weight.
    return any(not hasattr(module, name) for name in _convolutions_in_forward(module_type))


_CONVOLUTION = re.compile("[Cc]onv(?!e)")  # without Converter and Convex


@lru_cache(maxsize=4096)
def _is_called_convolution(module_type: type) -> bool:
    return any(_CONVOLUTION.search(base.__name__) for base in module_type.__mro__)


@lru_cache(maxsize=4096)
def _convolutions_in_forward(module_type: type) -> tuple[str, ...]:
    """Names of convolutions that `forward` uses: functions, such as conv2d, or attributes."""
    code = getattr(getattr(module_type, "forward", None), "__code__", None)
    return tuple(filter(_CONVOLUTION.search, getattr(code, "co_names", ())))


def weight_geometry(module: nn.Module | None, shape: Sequence[int]) -> Geometry:
    """torch's fans of the `weight` beside a vector. torch's own reset_parameters bounds a bias by them."""
    beside = None if len(shape) >= 2 or module is None else _shape_of(module, "weight")
    if beside is None:
        return torch_geometry(module, shape)
    return Geometry(torch_geometry(module, beside).fans)


def _shape_of(module: nn.Module, own_name: str) -> torch.Size | None:
    """The shape of a parameter, or of the tensor that a parametrisation computes in its place; None without either."""
    if parametrize.is_parametrized(module, own_name):
        chain: Any = module.parametrizations[own_name]  # type: ignore[index]
        # The meta device gives the shape without computing, and without updating a spectral norm's estimate.
        on_meta = {name: each.to("meta") for name, each in (*chain.named_parameters(), *chain.named_buffers())}
        computed: torch.Tensor = torch.func.functional_call(chain, on_meta, ())
        return computed.shape
    weight = getattr(module, own_name, None)
    return global_shape(weight) if isinstance(weight, torch.Tensor) else None


def module_geometry(module: nn.Module, own_name: str, shape: Sequence[int]) -> Geometry:
    """The map that the module computes with its parameter `own_name`.

    - Convolutions count one group. Transposed ones have in before out.
    - The fused in_proj of MultiheadAttention is three maps.
    - Weights of LSTM and GRU are one map per gate, and the fans are those of one gate. Their biases have the fans of a
      square weight_hh.
    - Bilinear sums over pairs.
    - Rows of an Embedding are looked up and never summed. The vocabulary therefore counts for neither fan, and both
      are the width.
    - GPT-2's Conv1D is (in, out).
    - Three dimensions and more outside of convolutions are a stack of maps, such as experts: (experts, out, in), or
      (experts, in, out) if the module has `is_transposed` set. `torch_geometry` says what a convolution is.
    - A bias has the fans of the weight beside it.

    Raises:
        ValueError: the parameter is a vector or scalar without a weight beside it.
    """
    if len(shape) < 2:
        if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            return _recurrent(module, own_name, (*shape, module.hidden_size))
        for name_beside in (own_name.replace("bias", "weight"), "weight") if "bias" in own_name else ():
            beside = _shape_of(module, name_beside)
            if beside is not None and len(beside) >= 2:
                return module_geometry(module, name_beside, beside)._replace(in_dim=1, out_dim=0, stacked=0)
        raise _no_fans(shape)
    module_type: Any = type(module)  # mypy takes the types of modules for unhashable
    read = _reader_of(module_type)
    if read is not None:
        return read(module, own_name, shape)
    if _is_conv1d_of_gpt2(module, shape):
        return Geometry(Fans(shape[0], shape[1]), in_dim=0, out_dim=1)
    if len(shape) >= 3 and getattr(module, "is_transposed", False):
        return Geometry(
            Fans(shape[-2], shape[-1]), in_dim=len(shape) - 2, out_dim=len(shape) - 1, stacked=len(shape) - 2
        )
    return torch_geometry(module, shape)


def reads_as_torch(module: Any, shape: Sequence[int]) -> bool:
    """Whether `module_geometry` is torch's for certain: a quick answer for most parameters."""
    module_type: Any = type(module)  # mypy takes the types of modules for unhashable
    read = _reader_of(module_type)
    if read is None:
        return len(shape) == 2 and not _is_called_conv1d(module_type)
    return read is _convolution and module.groups == 1 and not module.transposed


def _convolution(module: Any, own_name: str, shape: Sequence[int]) -> Geometry:
    field = math.prod(shape[2:])
    # The shape is (out, in / groups, ...), or (in, out / groups, ...) if transposed: dimension 0 counts all groups.
    of_group = shape[0] // module.groups
    if module.transposed:
        return Geometry(Fans(of_group * field, shape[1] * field), in_dim=0, out_dim=1, groups=module.groups)
    return Geometry(Fans(shape[1] * field, of_group * field), groups=module.groups)


def _attention(module: Any, own_name: str, shape: Sequence[int]) -> Geometry:
    if own_name == "in_proj_weight":
        return Geometry(Fans(shape[1], shape[0] // 3), blocks=3)
    if len(shape) == 3:  # bias_k and bias_v, (1, 1, width): an additional key and value
        return Geometry(Fans(shape[2], shape[2]))
    return Geometry(torch_fans(shape))


def _recurrent(module: Any, own_name: str, shape: Sequence[int]) -> Geometry:
    if not own_name.startswith(("weight_ih", "weight_hh", "bias_ih", "bias_hh")):  # weight_hr, an LSTM's projection
        return Geometry(torch_fans(shape))
    gates = shape[0] // module.hidden_size
    return Geometry(Fans(shape[1], shape[0] // gates), blocks=gates)


def _bilinear(module: Any, own_name: str, shape: Sequence[int]) -> Geometry:
    return Geometry(Fans(shape[1] * shape[2], shape[0]))


def _embedding(module: Any, own_name: str, shape: Sequence[int]) -> Geometry:
    return Geometry(Fans(shape[1], shape[1]), in_dim=0, out_dim=1)


def _is_conv1d_of_gpt2(module: Any, shape: Sequence[int]) -> bool:
    # transformers.pytorch_utils.Conv1D: `nf` is the number of outputs, and the weight is (in, out).
    module_type: Any = type(module)  # mypy takes the types of modules for unhashable
    return len(shape) == 2 and _is_called_conv1d(module_type) and getattr(module, "nf", None) == shape[1]


@lru_cache(maxsize=4096)
def _is_called_conv1d(module_type: type) -> bool:
    return any(base.__name__ == "Conv1D" for base in module_type.__mro__)


_Kind = type[nn.Module] | tuple[type[Any], ...]
_Reader = Callable[[Any, str, Sequence[int]], Geometry]
_GEOMETRIES: tuple[tuple[_Kind, _Reader], ...] = (
    (CONVOLUTIONS, _convolution),
    (nn.MultiheadAttention, _attention),
    (nn.RNNBase, _recurrent),
    (nn.RNNCellBase, _recurrent),
    (nn.Bilinear, _bilinear),
    (nn.Embedding, _embedding),
    (nn.EmbeddingBag, _embedding),
)


@lru_cache(maxsize=4096)
def _reader_of(module_type: type) -> _Reader | None:
    """What reads the parameters of torch.nn's modules with fans of their own; None for other modules."""
    return next((read for kind, read in _GEOMETRIES if issubclass(module_type, kind)), None)


def geometry_of(convention: FanConvention, module: nn.Module | None, own_name: str, shape: Sequence[int]) -> Geometry:
    """Fans and dimensions of a parameter by any convention. Without a module, "module" and "weight" mean "torch".

    "torch" is `torch_geometry`, which knows stacks of maps.

    Raises:
        ValueError: the convention has no fans for this shape.
    """
    if isinstance(convention, Fans):
        return Geometry(convention, given=True)
    if convention == "jax":
        convention = FanAxes()
    if isinstance(convention, FanAxes):
        in_dim, out_dim = (_first(axis, len(shape)) for axis in convention[:2])
        return Geometry(axes_fans(shape, convention), in_dim, out_dim)
    if convention == "module" and module is not None:
        return module_geometry(module, own_name, shape)
    if convention == "weight":
        return weight_geometry(module, shape)
    if convention == "keras":
        return Geometry(keras_fans(shape), in_dim=max(0, len(shape) - 2), out_dim=max(0, len(shape) - 1))
    return torch_geometry(module, shape)


def _first(axis: int | tuple[int, ...], dimensions: int) -> int:
    axes = (axis,) if isinstance(axis, int) else axis
    return axes[0] % max(dimensions, 1) if axes else -1


def block_fans(geometry: Geometry, shape: Sequence[int], dim: int, size: int) -> Fans:
    """The fans of one of several maps along `dim`. The map has the size `size` along it.

    The fan that counts `dim` shrinks in proportion; the other one stays. Fans that the user gave hold for every map.
    """
    fan_in, fan_out = geometry.fans
    length = shape[dim] // geometry.groups if dim == 0 else shape[dim]
    size = min(size, length)  # a block may span several groups, but the fans count one
    if dim == geometry.out_dim and not geometry.given:
        return Fans(fan_in, fan_out * geometry.blocks * size // length)
    if dim == geometry.in_dim and not geometry.given:
        return Fans(fan_in * size // length, fan_out)
    return geometry.fans
