"""torch.nn.init's functions under its names and signatures, for one tensor or a list of them.

A call draws one seed, from `generator` or from torch's default CPU generator. A single tensor has the empty name, so
that equal seeds give equal values; the tensors of a list have their positions as names, and so values of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar, overload

import torch

from fastinit import schemes
from fastinit.plan import plan_tensors
from fastinit.schemes import Scheme

Fan = Literal["fan_in", "fan_out"]
SequenceT = TypeVar("SequenceT", bound=Sequence[torch.Tensor])


@overload
def _run(tensor: torch.Tensor, scheme: Scheme, generator: torch.Generator | None = ...) -> torch.Tensor: ...
@overload
def _run(tensor: SequenceT, scheme: Scheme, generator: torch.Generator | None = ...) -> SequenceT: ...
def _run(
    tensor: torch.Tensor | SequenceT, scheme: Scheme, generator: torch.Generator | None = None
) -> torch.Tensor | SequenceT:
    if isinstance(tensor, torch.Tensor):
        plan_tensors([tensor], scheme, names=[""], generator=generator).run_()
    else:
        plan_tensors(tensor, scheme, generator=generator).run_()
    return tensor


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
    return _run(tensor, schemes.kaiming_uniform(a, mode, nonlinearity), generator)


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
    return _run(tensor, schemes.kaiming_normal(a, mode, nonlinearity), generator)


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
    return _run(tensor, schemes.Eye())


@overload
def dirac_(tensor: torch.Tensor, groups: int = ...) -> torch.Tensor: ...
@overload
def dirac_(tensor: SequenceT, groups: int = ...) -> SequenceT: ...
def dirac_(tensor: torch.Tensor | SequenceT, groups: int = 1) -> torch.Tensor | SequenceT:
    """The Dirac delta of a convolution's weight: it hands on as many input channels as it can, in every group."""
    return _run(tensor, schemes.Dirac(groups))
