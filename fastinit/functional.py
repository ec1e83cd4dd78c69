"""torch.nn.init's functions under its names and signatures, for one tensor or a list of them, and those of other
systems.

A call draws one seed, from `generator` or from torch's default CPU generator. A single tensor has the empty name, so
that equal seeds give equal values; the tensors of a list have their positions as names, and so values of their own.
docs/MIGRATING.md lists where they differ from torch's.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, ParamSpec, TypeVar, overload

import torch

from fastinit.rules.survey import plan_tensors
from fastinit.schemes import named as schemes
from fastinit.schemes import structured
from fastinit.schemes.base import Scheme
from fastinit.schemes.fans import FanAxes, FanConvention
from fastinit.schemes.gains import calculate_gain as calculate_gain

Fan = Literal["fan_in", "fan_out"]
SequenceT = TypeVar("SequenceT", bound=Sequence[torch.Tensor])


def _run(
    tensor: torch.Tensor | SequenceT,
    scheme: Scheme,
    generator: torch.Generator | None = None,
    fan: FanConvention = "torch",
    *,
    warn_of_empty: bool = False,
) -> torch.Tensor | SequenceT:
    if isinstance(tensor, torch.nn.Module):
        raise TypeError(f"expected a tensor or a list of them, got a {type(tensor).__name__}; init_model_ takes models")
    tensors, names = ([tensor], [""]) if isinstance(tensor, torch.Tensor) else (tensor, None)
    plan = plan_tensors(tensors, scheme, names=names, fan=fan, generator=generator)
    if warn_of_empty and any(row.tensor.numel() == 0 for row in plan.rows):
        warnings.warn("Initializing zero-element tensors is a no-op", stacklevel=3)
    plan.run_()
    return tensor


def _lower(mode: Fan) -> Fan:
    """`mode` as torch reads it, in either case."""
    return mode.lower() if isinstance(mode, str) else mode  # type: ignore[return-value]


@overload
def uniform_(
    tensor: torch.Tensor, a: float = ..., b: float = ..., generator: torch.Generator | None = ...
) -> torch.Tensor: ...
@overload
def uniform_(
    tensor: SequenceT, a: float = ..., b: float = ..., generator: torch.Generator | None = ...
) -> SequenceT: ...
def uniform_(
    tensor: torch.Tensor | SequenceT, a: float = 0.0, b: float = 1.0, generator: torch.Generator | None = None
) -> torch.Tensor | SequenceT:
    """U[a, b], both ends included."""
    return _run(tensor, schemes.Uniform(a, b), generator)


@overload
def normal_(
    tensor: torch.Tensor, mean: float = ..., std: float = ..., generator: torch.Generator | None = ...
) -> torch.Tensor: ...
@overload
def normal_(
    tensor: SequenceT, mean: float = ..., std: float = ..., generator: torch.Generator | None = ...
) -> SequenceT: ...
def normal_(
    tensor: torch.Tensor | SequenceT, mean: float = 0.0, std: float = 1.0, generator: torch.Generator | None = None
) -> torch.Tensor | SequenceT:
    """N(mean, std^2)."""
    return _run(tensor, schemes.Normal(mean, std), generator)


@overload
def trunc_normal_(
    tensor: torch.Tensor,
    mean: float = ...,
    std: float = ...,
    a: float = ...,
    b: float = ...,
    generator: torch.Generator | None = ...,
) -> torch.Tensor: ...
@overload
def trunc_normal_(
    tensor: SequenceT,
    mean: float = ...,
    std: float = ...,
    a: float = ...,
    b: float = ...,
    generator: torch.Generator | None = ...,
) -> SequenceT: ...
def trunc_normal_(
    tensor: torch.Tensor | SequenceT,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: torch.Generator | None = None,
) -> torch.Tensor | SequenceT:
    """N(mean, std^2) conditioned on [a, b]: absolute bounds, not multiples of std."""
    return _run(tensor, schemes.TruncNormal(mean, std, (a, b)), generator)


@overload
def constant_(tensor: torch.Tensor, val: float) -> torch.Tensor: ...
@overload
def constant_(tensor: SequenceT, val: float) -> SequenceT: ...
def constant_(tensor: torch.Tensor | SequenceT, val: float) -> torch.Tensor | SequenceT:
    """Every element is `val`."""
    return _run(tensor, schemes.Constant(val))


@overload
def ones_(tensor: torch.Tensor) -> torch.Tensor: ...
@overload
def ones_(tensor: SequenceT) -> SequenceT: ...
def ones_(tensor: torch.Tensor | SequenceT) -> torch.Tensor | SequenceT:
    """Every element is one."""
    return _run(tensor, schemes.Constant(1.0))


@overload
def zeros_(tensor: torch.Tensor) -> torch.Tensor: ...
@overload
def zeros_(tensor: SequenceT) -> SequenceT: ...
def zeros_(tensor: torch.Tensor | SequenceT) -> torch.Tensor | SequenceT:
    """Every element is zero."""
    return _run(tensor, schemes.Constant(0.0))


@overload
def xavier_uniform_(
    tensor: torch.Tensor, gain: float = ..., generator: torch.Generator | None = ...
) -> torch.Tensor: ...
@overload
def xavier_uniform_(tensor: SequenceT, gain: float = ..., generator: torch.Generator | None = ...) -> SequenceT: ...
def xavier_uniform_(
    tensor: torch.Tensor | SequenceT, gain: float = 1.0, generator: torch.Generator | None = None
) -> torch.Tensor | SequenceT:
    """U[-b, b] with b = gain sqrt(6 / (fan_in + fan_out)) (Glorot, Bengio, AISTATS 2010)."""
    return _run(tensor, schemes.xavier_uniform(gain), generator)


@overload
def xavier_normal_(
    tensor: torch.Tensor, gain: float = ..., generator: torch.Generator | None = ...
) -> torch.Tensor: ...
@overload
def xavier_normal_(tensor: SequenceT, gain: float = ..., generator: torch.Generator | None = ...) -> SequenceT: ...
def xavier_normal_(
    tensor: torch.Tensor | SequenceT, gain: float = 1.0, generator: torch.Generator | None = None
) -> torch.Tensor | SequenceT:
    """N(0, 2 gain^2 / (fan_in + fan_out)) (Glorot, Bengio, AISTATS 2010)."""
    return _run(tensor, schemes.xavier_normal(gain), generator)


@overload
def kaiming_uniform_(
    tensor: torch.Tensor,
    a: float = ...,
    mode: Fan = ...,
    nonlinearity: str = ...,
    generator: torch.Generator | None = ...,
) -> torch.Tensor: ...
@overload
def kaiming_uniform_(
    tensor: SequenceT, a: float = ..., mode: Fan = ..., nonlinearity: str = ..., generator: torch.Generator | None = ...
) -> SequenceT: ...
def kaiming_uniform_(
    tensor: torch.Tensor | SequenceT,
    a: float = 0,
    mode: Fan = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: torch.Generator | None = None,
) -> torch.Tensor | SequenceT:
    """U[-b, b] with b = gain sqrt(3 / fan) (He, Zhang, Ren, Sun, ICCV 2015); `a`: negative slope."""
    return _run(tensor, schemes.kaiming_uniform(a, _lower(mode), nonlinearity), generator, warn_of_empty=True)


@overload
def kaiming_normal_(
    tensor: torch.Tensor,
    a: float = ...,
    mode: Fan = ...,
    nonlinearity: str = ...,
    generator: torch.Generator | None = ...,
) -> torch.Tensor: ...
@overload
def kaiming_normal_(
    tensor: SequenceT, a: float = ..., mode: Fan = ..., nonlinearity: str = ..., generator: torch.Generator | None = ...
) -> SequenceT: ...
def kaiming_normal_(
    tensor: torch.Tensor | SequenceT,
    a: float = 0,
    mode: Fan = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: torch.Generator | None = None,
) -> torch.Tensor | SequenceT:
    """N(0, gain^2 / fan) (He, Zhang, Ren, Sun, ICCV 2015); `a`: negative slope of a leaky ReLU."""
    return _run(tensor, schemes.kaiming_normal(a, _lower(mode), nonlinearity), generator, warn_of_empty=True)


@overload
def lecun_uniform_(tensor: torch.Tensor, generator: torch.Generator | None = ...) -> torch.Tensor: ...
@overload
def lecun_uniform_(tensor: SequenceT, generator: torch.Generator | None = ...) -> SequenceT: ...
def lecun_uniform_(
    tensor: torch.Tensor | SequenceT, generator: torch.Generator | None = None
) -> torch.Tensor | SequenceT:
    """U[-b, b] with b = sqrt(3 / fan_in) (LeCun, Bottou, Orr, Müller 1998)."""
    return _run(tensor, schemes.lecun_uniform(), generator)


@overload
def lecun_normal_(tensor: torch.Tensor, generator: torch.Generator | None = ...) -> torch.Tensor: ...
@overload
def lecun_normal_(tensor: SequenceT, generator: torch.Generator | None = ...) -> SequenceT: ...
def lecun_normal_(
    tensor: torch.Tensor | SequenceT, generator: torch.Generator | None = None
) -> torch.Tensor | SequenceT:
    """Variance 1 / fan_in, truncated at two sigma as in JAX and Keras (LeCun et al. 1998)."""
    return _run(tensor, schemes.lecun_normal(), generator)


@overload
def eye_(tensor: torch.Tensor) -> torch.Tensor: ...
@overload
def eye_(tensor: SequenceT) -> SequenceT: ...
def eye_(tensor: torch.Tensor | SequenceT) -> torch.Tensor | SequenceT:
    """The identity matrix; as much of it as a matrix that is not square holds."""
    return _run(tensor, structured.Eye())


@overload
def dirac_(tensor: torch.Tensor, groups: int = ...) -> torch.Tensor: ...
@overload
def dirac_(tensor: SequenceT, groups: int = ...) -> SequenceT: ...
def dirac_(tensor: torch.Tensor | SequenceT, groups: int = 1) -> torch.Tensor | SequenceT:
    """The Dirac delta of a convolution's weight: it hands on as many input channels as it can, in every group."""
    return _run(tensor, structured.Dirac(groups))


@overload
def orthogonal_(tensor: torch.Tensor, gain: float = ..., generator: torch.Generator | None = ...) -> torch.Tensor: ...
@overload
def orthogonal_(tensor: SequenceT, gain: float = ..., generator: torch.Generator | None = ...) -> SequenceT: ...
def orthogonal_(
    tensor: torch.Tensor | SequenceT, gain: float = 1, generator: torch.Generator | None = None
) -> torch.Tensor | SequenceT:
    """`gain` times a matrix with orthonormal rows or columns, whichever are fewer; dimension 0 against the rest (Saxe
    et al. 2014)."""
    return _run(tensor, structured.Orthogonal(gain), generator)


@overload
def sparse_(
    tensor: torch.Tensor, sparsity: float, std: float = ..., generator: torch.Generator | None = ...
) -> torch.Tensor: ...
@overload
def sparse_(
    tensor: SequenceT, sparsity: float, std: float = ..., generator: torch.Generator | None = ...
) -> SequenceT: ...
def sparse_(
    tensor: torch.Tensor | SequenceT, sparsity: float, std: float = 0.01, generator: torch.Generator | None = None
) -> torch.Tensor | SequenceT:
    """N(0, std^2) with ceil(sparsity * rows) zeros in every column (Martens 2010). `generator` governs the zeros,
    too."""
    return _run(tensor, structured.Sparse(sparsity, std), generator)


@overload
def delta_orthogonal_(
    tensor: torch.Tensor, gain: float = ..., generator: torch.Generator | None = ...
) -> torch.Tensor: ...
@overload
def delta_orthogonal_(tensor: SequenceT, gain: float = ..., generator: torch.Generator | None = ...) -> SequenceT: ...
def delta_orthogonal_(
    tensor: torch.Tensor | SequenceT, gain: float = 1.0, generator: torch.Generator | None = None
) -> torch.Tensor | SequenceT:
    """A convolution's weight (out, in, ...), out >= in, orthogonal at the middle of the kernels, zero elsewhere (Xiao
    et al. 2018)."""
    return _run(tensor, structured.DeltaOrthogonal(gain), generator)


Spectrum = str | tuple[float, ...] | Callable[[int], Sequence[float]]


@overload
def spectral_(
    tensor: torch.Tensor, values: Spectrum = ..., gain: float = ..., generator: torch.Generator | None = ...
) -> torch.Tensor: ...
@overload
def spectral_(
    tensor: SequenceT, values: Spectrum = ..., gain: float = ..., generator: torch.Generator | None = ...
) -> SequenceT: ...
def spectral_(
    tensor: torch.Tensor | SequenceT,
    values: Spectrum = "flat",
    gain: float = 1.0,
    generator: torch.Generator | None = None,
) -> torch.Tensor | SequenceT:
    """`gain` U diag(values) V^T, U and V Haar distributed: the SVD scheme; dimension 0 against the rest.

    `values`: the singular values, a function of their number, or "flat", "linear", "power", "marchenko_pastur"
    (fastinit.Spectral).
    """
    return _run(tensor, structured.Spectral(values, gain), generator)


Axis = int | tuple[int, ...]


@overload
def variance_scaling_(
    tensor: torch.Tensor,
    scale: float = ...,
    mode: schemes.FanMode = ...,
    distribution: Literal["uniform", "normal", "truncated_normal"] = ...,
    in_axis: Axis | None = ...,
    out_axis: Axis | None = ...,
    batch_axis: Axis = ...,
    generator: torch.Generator | None = ...,
) -> torch.Tensor: ...
@overload
def variance_scaling_(
    tensor: SequenceT,
    scale: float = ...,
    mode: schemes.FanMode = ...,
    distribution: Literal["uniform", "normal", "truncated_normal"] = ...,
    in_axis: Axis | None = ...,
    out_axis: Axis | None = ...,
    batch_axis: Axis = ...,
    generator: torch.Generator | None = ...,
) -> SequenceT: ...
def variance_scaling_(
    tensor: torch.Tensor | SequenceT,
    scale: float = 1.0,
    mode: schemes.FanMode = "fan_in",
    distribution: Literal["uniform", "normal", "truncated_normal"] = "truncated_normal",
    in_axis: Axis | None = None,
    out_axis: Axis | None = None,
    batch_axis: Axis = (),
    generator: torch.Generator | None = None,
) -> torch.Tensor | SequenceT:
    """Zero mean and variance scale / fan (JAX's and Keras' variance_scaling; the defaults are Keras').

    Without axes, fans are torch's: dimension 1 is in, dimension 0 out. With an axis, JAX's: the other default is
    in_axis=-2, out_axis=-1; `batch_axis` counts for neither.
    """
    fan: FanConvention = "torch"
    if in_axis is not None or out_axis is not None or batch_axis != ():
        fan = FanAxes(-2 if in_axis is None else in_axis, -1 if out_axis is None else out_axis, batch_axis)
    return _run(tensor, schemes.VarianceScaling(scale, mode, distribution), generator, fan)


_P = ParamSpec("_P")
_R = TypeVar("_R")


def _deprecated(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """torch's old name of a function, without the underscore."""
    new_name = getattr(function, "__name__", "")
    old_name = new_name.removesuffix("_")

    @functools.wraps(function)
    def alias(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        message = f"`nn.init.{old_name}` is now deprecated in favor of `nn.init.{new_name}`."
        warnings.warn(message, FutureWarning, stacklevel=2)
        return function(*args, **kwargs)

    alias.__name__ = alias.__qualname__ = old_name
    alias.__doc__ = f"Deprecated alias of `{new_name}`, as in torch.nn.init."
    return alias


uniform: Any = _deprecated(uniform_)
normal: Any = _deprecated(normal_)
constant: Any = _deprecated(constant_)
eye: Any = _deprecated(eye_)
dirac: Any = _deprecated(dirac_)
xavier_uniform: Any = _deprecated(xavier_uniform_)
xavier_normal: Any = _deprecated(xavier_normal_)
kaiming_uniform: Any = _deprecated(kaiming_uniform_)
kaiming_normal: Any = _deprecated(kaiming_normal_)
orthogonal: Any = _deprecated(orthogonal_)
sparse: Any = _deprecated(sparse_)
