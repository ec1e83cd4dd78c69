"""The functions of torch that a recording knows: which of them draw, which keep a distribution a distribution, which
make tensors, which only look at a shape. Everything else is a step of a tape.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_variadic

from fastinit import _torch
from fastinit.schemes.base import Context
from fastinit.schemes.distributions import ZERO, Constant, Distribution, Normal, TruncNormal, Uniform
from fastinit.schemes.fans import torch_fans
from fastinit.schemes.gains import calculate_gain
from fastinit.schemes.structured import Dirac, Eye, Orthogonal, Sparse


def _getters(*names: str) -> set[Any]:
    return {getattr(Tensor, name).__get__ for name in names if hasattr(getattr(Tensor, name, None), "__get__")}


def _setters(*names: str) -> set[Any]:
    return {getattr(Tensor, name).__set__ for name in names if hasattr(getattr(Tensor, name, None), "__set__")}


def _methods(*names: str) -> set[Any]:
    """The methods of Tensor, and the functions of torch, of these names."""
    found = {getattr(owner, name) for owner in (Tensor, torch) for name in names if hasattr(owner, name)}
    return found


# They tell what a tensor is, not what it holds. Or they change what no content depends on.
PLAIN: frozenset[Any] = frozenset(
    _getters(
        "shape", "dtype", "device", "layout", "ndim", "grad", "grad_fn", "requires_grad", "is_leaf", "is_meta",
        "is_cuda", "is_cpu", "is_sparse", "is_sparse_csr", "is_quantized", "is_nested", "is_mps", "is_xpu", "is_ipu",
        "is_xla", "is_mkldnn", "is_vulkan", "is_hpu", "is_maia", "is_mtia", "names", "itemsize", "nbytes",
        "_backward_hooks",
        "_post_accumulate_grad_hooks", "_version", "output_nr", "name", "_base", "retains_grad", "volatile", "_cdata",
        "_grad_fn", "_grad", "_has_symbolic_sizes_strides",
    )
    | _setters("requires_grad", "grad", "data", "_backward_hooks")
    | _methods(
        "dim", "size", "stride", "numel", "nelement", "storage_offset", "element_size", "is_contiguous", "ndimension",
        "is_floating_point", "is_complex", "is_signed", "get_device", "register_hook", "requires_grad_", "retain_grad",
        "is_shared", "is_pinned", "is_inference", "is_conj", "is_neg", "__len__", "__hash__", "dense_dim", "sparse_dim",
        "register_post_accumulate_grad_hook", "is_same_size", "result_type", "can_cast", "promote_types", "finfo",
        "has_names", "is_coalesced", "_is_view", "_has_compatible_shallow_copy_type", "is_tensor", "is_set_to",
    )
    | {_torch.SET_GRAD_ENABLED}
)  # fmt: skip

# They tell on which device a tensor is.
PLACES: frozenset[Any] = frozenset(_getters("device", "is_meta", "is_cpu", "is_cuda"))

# They give another tensor over the same memory, always.
VIEWS: frozenset[Any] = frozenset(
    _getters("data", "T", "mT", "H", "mH", "real", "imag")
    | _methods(
        "detach", "view", "view_as", "t", "transpose", "permute", "narrow", "select", "unsqueeze", "squeeze", "expand",
        "expand_as", "chunk", "split", "split_with_sizes", "tensor_split", "unbind", "diagonal", "movedim", "moveaxis",
        "swapaxes", "swapdims", "as_strided", "unfold", "alias", "view_as_real", "view_as_complex", "unflatten",
        "hsplit", "vsplit", "dsplit", "adjoint", "detach_", "t_", "transpose_", "squeeze_", "unsqueeze_", "__iter__",
        "as_subclass", "vander_",
    )
)  # fmt: skip

# They hand the memory itself to somebody who does not ask torch any more.
READS: frozenset[Any] = frozenset(
    _methods(
        "data_ptr", "untyped_storage", "storage", "numpy", "__array__", "tolist", "item", "share_memory_", "pin_memory",
        "__dlpack__", "__repr__", "__str__", "__format__", "__reduce_ex__", "__reduce__", "__bool__", "__float__",
        "__int__", "__index__", "__complex__", "__contains__", "is_nonzero", "equal", "allclose", "set_", "resize_",
        "resize_as_", "_typed_storage", "__setstate__", "__cuda_array_interface__", "storage_type", "apply_", "map_",
        "nonzero", "unique", "masked_select", "backward",
    )
)  # fmt: skip

# Functions that make tensors out of nothing. They take `device`.
FACTORIES: frozenset[Any] = frozenset(_torch.factories())
COPIES_OF_DATA: frozenset[Any] = frozenset({torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor})
# Methods that make a tensor like another one, without reading it.
LIKE: dict[Any, Any] = {
    torch.empty_like: torch.empty_like,
    torch.rand_like: torch.empty_like,
    torch.randn_like: torch.empty_like,
    torch.zeros_like: torch.empty_like,
    torch.ones_like: torch.empty_like,
    Tensor.new_empty: Tensor.new_empty,
    Tensor.new_zeros: Tensor.new_empty,
    Tensor.new_ones: Tensor.new_empty,
}

# Random numbers, of which no distribution of ours tells.
RANDOM: frozenset[Any] = frozenset(
    _methods(
        "bernoulli", "bernoulli_", "multinomial", "randperm", "randint", "randint_like", "random_", "exponential_",
        "cauchy_", "geometric_", "log_normal_", "poisson", "normal", "normal_", "uniform_", "rand", "randn",
        "rand_like", "randn_like", "binomial", "rrelu", "rrelu_", "dropout", "dropout_", "alpha_dropout",
        "feature_dropout", "feature_dropout_", "native_dropout", "alpha_dropout_", "feature_alpha_dropout",
        "feature_alpha_dropout_", "_standard_gamma", "_sample_dirichlet", "lstm", "gru", "rnn_tanh", "rnn_relu",
    )
    | {getattr(nn.functional, name) for name in (
        "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "rrelu",
        "gumbel_softmax", "scaled_dot_product_attention", "multi_head_attention_forward",
    )}
    | {nn.init.normal_, nn.init.uniform_, nn.init.trunc_normal_, nn.init.kaiming_uniform_}
)  # fmt: skip

RANDOM_IN_PLACE: frozenset[Any] = frozenset(
    _methods("bernoulli_", "random_", "exponential_", "cauchy_", "geometric_", "log_normal_", "normal_", "uniform_")
)

# Factories that take no tensor (but `out`) and draw nothing.
QUIET_FACTORIES = frozenset({torch.empty, torch.zeros, torch.ones, torch.eye, torch.empty_strided})

SAMPLED_DTYPES = frozenset(
    {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128}
)


class Filling(NamedTuple):
    """A call that writes one distribution to all of a tensor. `under_grad`: it refuses leaves that need gradients."""

    distribution: Callable[..., Distribution]
    under_grad: bool = False


# Models ask for few distributions, and for each of them often.
_normal_of = lru_cache(maxsize=4096)(Normal)
_uniform_of = lru_cache(maxsize=4096)(Uniform)


def _normal(tensor: Tensor, mean: float = 0.0, std: float = 1.0) -> Distribution:
    return _normal_of(mean, std)


def _uniform(tensor: Tensor, a: float = 0.0, b: float = 1.0) -> Distribution:
    return _uniform_of(a, b)


def _uniform_from(tensor: Tensor, **bounds: float) -> Distribution:
    return _uniform_of(bounds.get("from", 0.0), bounds.get("to", 1.0))


def _uniform_method(tensor: Tensor, *bounds: float, **named: float) -> Distribution:
    return _uniform(tensor, *bounds) if bounds else _uniform_from(tensor, **named)


def _trunc_normal(tensor: Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0) -> Distribution:
    return TruncNormal(mean, std, a, b)


@lru_cache(maxsize=4096)
def _kaiming(shape: torch.Size, a: float, mode: str, nonlinearity: str) -> float:
    fans = torch_fans(shape)
    fan = {"fan_in": fans.fan_in, "fan_out": fans.fan_out}[mode.lower()]
    return calculate_gain(nonlinearity, a) / math.sqrt(fan)


def _kaiming_uniform(
    tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu"
) -> Distribution:
    bound = math.sqrt(3.0) * _kaiming(tensor.shape, a, mode, nonlinearity)
    return _uniform_of(-bound, bound)


def _constant(tensor: Tensor, val: float) -> Distribution:
    return Constant(val)


def _fill(tensor: Tensor, value: float) -> Distribution:
    return Constant(value)


def _zero(tensor: Tensor) -> Distribution:
    return ZERO


FILLS: dict[Any, Filling] = {
    Tensor.normal_: Filling(_normal, under_grad=True),
    Tensor.uniform_: Filling(_uniform_method, under_grad=True),
    Tensor.fill_: Filling(_fill, under_grad=True),
    torch.fill_: Filling(_fill, under_grad=True),
    Tensor.zero_: Filling(_zero, under_grad=True),
    torch.zero_: Filling(_zero, under_grad=True),
    nn.init.normal_: Filling(_normal),
    nn.init.uniform_: Filling(_uniform),
    nn.init.constant_: Filling(_constant),
    nn.init.kaiming_uniform_: Filling(_kaiming_uniform),
}


# The functions of torch.nn.init that ask a mode, by their names.
HANDED_ON: dict[str, Any] = {
    each.__name__: each for each in (nn.init.normal_, nn.init.uniform_, nn.init.constant_, nn.init.kaiming_uniform_)
}


def _orthogonal(tensor: Tensor, gain: float = 1.0) -> Distribution:
    if tensor.dim() < 2:
        raise ValueError("only tensors with 2 or more dimensions")
    return Orthogonal(gain=gain).distribution(Context(tensor.shape, tensor.dtype))


def _sparse(tensor: Tensor, sparsity: float, std: float = 0.01) -> Distribution:
    return Sparse(sparsity, std).distribution(Context(tensor.shape, tensor.dtype))


def _eye(tensor: Tensor) -> Distribution:
    return Eye().distribution(Context(tensor.shape, tensor.dtype))


def _dirac(tensor: Tensor, groups: int = 1) -> Distribution:
    return Dirac(groups).distribution(Context(tensor.shape, tensor.dtype))


def _asking(name: str) -> Callable[..., Any]:
    """torch.nn.init's function of this name, which asks a mode first, as `torch.nn.init.normal_` does."""
    own = getattr(nn.init, name)

    @functools.wraps(own)
    def either(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        if has_torch_function_variadic(tensor):
            return handle_torch_function(either, (tensor,), tensor, *args, **kwargs)
        return own(tensor, *args, **kwargs)

    return either


# torch composes these initialisers of steps without asking a mode. While something is recorded, torch.nn.init has these
# functions under their names.
ASKING: dict[str, Callable[..., Any]] = {
    name: _asking(name) for name in (_torch.TRUNC_NORMAL, "orthogonal_", "sparse_", "eye_", "dirac_")
}
_COMPOSED: tuple[Callable[..., Distribution], ...] = (_trunc_normal, _orthogonal, _sparse, _eye, _dirac)
FILLS |= {function: Filling(make) for function, make in zip(ASKING.values(), _COMPOSED, strict=True)}

# Without a mode, as the functions above: to ask it takes three calls, since gradients are switched off around them.
CONSTANTS: dict[str, Filling] = {_torch.ZEROS: Filling(_zero), _torch.CONSTANTS: Filling(_constant)}

# Factories of random numbers, and the factories of their memory.
DRAWING: dict[Any, Distribution] = {
    torch.randn: Normal(0.0, 1.0),
    torch.rand: Uniform(0.0, 1.0),
    torch.randn_like: Normal(0.0, 1.0),
    torch.rand_like: Uniform(0.0, 1.0),
}
CONSTANT: dict[Any, Distribution] = {
    torch.zeros: Constant(0.0),
    torch.ones: Constant(1.0),
    torch.zeros_like: Constant(0.0),
    torch.ones_like: Constant(1.0),
    Tensor.new_zeros: Constant(0.0),
    Tensor.new_ones: Constant(1.0),
}


# ---- Steps under which a distribution stays one. Each gives None where it does not. ----


def _shifted(given: Distribution, by: float) -> Distribution | None:
    if isinstance(given, Normal):
        return replace(given, center=given.center + by)
    if isinstance(given, Uniform):
        return Uniform(given.low + by, given.high + by)
    if isinstance(given, TruncNormal):
        return TruncNormal(given.center + by, given.sigma, given.low + by, given.high + by)
    return None


def _multiplied(given: Distribution, by: float) -> Distribution | None:
    return given.scaled(by) if by >= 0.0 and not isinstance(given, Constant) else None


def _add(given: Distribution, other: float, *, alpha: float = 1.0) -> Distribution | None:
    return _shifted(given, other * alpha)


def _subtract(given: Distribution, other: float, *, alpha: float = 1.0) -> Distribution | None:
    return _shifted(given, -other * alpha)


def _divide(given: Distribution, other: float) -> Distribution | None:
    return _multiplied(given, 1.0 / other) if other > 0.0 else None


def _erfinv(given: Distribution) -> Distribution | None:
    """erfinv of a uniform share is a normal value of std 1 / sqrt(2), truncated."""
    if not isinstance(given, Uniform) or not -1.0 <= given.low < given.high <= 1.0:
        return None
    return TruncNormal(0.0, math.sqrt(0.5), *_erfinv_of(given.low, given.high))


@lru_cache(maxsize=4096)
def _erfinv_of(low: float, high: float) -> tuple[float, float]:
    """The function of both bounds, which are the same for all that a model truncates alike."""
    low, high = torch.erfinv(torch.tensor([low, high], dtype=torch.float64, device="cpu")).tolist()
    return low, high


def _clamp(given: Distribution, min: float | None = None, max: float | None = None) -> Distribution | None:
    """Bounds that cut off no more than rounding errors, as at the end of a truncated normal distribution."""
    least = -math.inf if min is None else float(min)
    most = math.inf if max is None else float(max)
    slack = 1e-5 * given.std()
    low, high = given.bounds()
    if isinstance(given, Uniform):
        return given if low >= least - slack and high <= most + slack else None
    if not isinstance(given, TruncNormal):
        return None
    if _is_end(given, low, least):
        low = least
    if _is_end(given, high, most):
        high = most
    return replace(given, low=low, high=high) if low >= least and high <= most else None


# So many sigma out, a normal distribution has a mass of 1e-12 left. Rounding errors of float64 move a bound there by
# more than the slack above, or to infinity, as where timm draws with std 0.02 between -2 and 2.
_FAR_OUT = 7.0


def _is_end(given: TruncNormal, computed: float, wanted: float) -> bool:
    """Whether a bound that the steps before have led to is the one that is asked for now."""
    if not math.isfinite(wanted):
        return False
    if abs(computed - wanted) <= 1e-5 * given.std():
        return True
    same_side = (computed > given.center) == (wanted > given.center)
    return same_side and all(abs(each - given.center) > _FAR_OUT * given.sigma for each in (computed, wanted))


STEPS: dict[Any, Callable[..., Distribution | None]] = {
    **dict.fromkeys(_methods("mul", "mul_", "multiply", "multiply_") | {Tensor.__rmul__}, _multiplied),
    **dict.fromkeys(_methods("div", "div_", "divide", "divide_", "true_divide", "true_divide_"), _divide),
    **dict.fromkeys(_methods("add", "add_") | {Tensor.__radd__}, _add),
    **dict.fromkeys(_methods("sub", "sub_", "subtract", "subtract_"), _subtract),
    **dict.fromkeys(_methods("erfinv", "erfinv_"), _erfinv),
    **dict.fromkeys(_methods("clamp", "clamp_", "clip", "clip_"), _clamp),
}

_WRITING = {
    "__setitem__",
    "__iadd__",
    "__isub__",
    "__imul__",
    "__itruediv__",
    "__idiv__",
    "__ipow__",
    "__ior__",
    "__iand__",
}


@lru_cache(maxsize=4096)
def writes_in_place(function: Any) -> bool:
    """Whether a function writes to its first argument, by torch's convention for names."""
    name = getattr(function, "__name__", "")
    return name in _WRITING or (name.endswith("_") and not name.endswith("__"))


def is_basic(index: Any) -> bool:
    """Whether an index gives a view."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(each is None or each is Ellipsis or type(each) in (int, slice) for each in parts)


# They overwrite all of their first argument, whatever it held.
OVERWRITES: frozenset[Any] = (
    frozenset(_methods("copy_", "fill_", "zero_"))
    | RANDOM_IN_PLACE
    | {nn.init.constant_, nn.init.normal_, nn.init.uniform_}
)

# They change dtype or device alone.
CASTS: frozenset[Any] = frozenset(
    _methods("to", "half", "bfloat16", "float", "double", "type", "cpu", "cuda", "type_as")
)
CLONES: frozenset[Any] = frozenset(_methods("clone", "contiguous"))
