"""Schemes that look at the shape: identities, orthogonal, sparse and Hadamard matrices, and state-space parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fastinit.schemes import distributions
from fastinit.schemes.base import Context, check_choice, register_scheme
from fastinit.schemes.distributions import Distribution, check_time_steps
from fastinit.schemes.named import set_finite, set_not_negative
from fastinit.schemes.numbers import as_finite


def _check_dimensions(shape: Sequence[int], *wanted: int) -> None:
    if len(shape) not in wanted:
        listed = ", ".join(map(str, wanted[:-1])) + " or " if len(wanted) > 1 else ""
        raise ValueError(f"expected {listed}{wanted[-1]} dimensions, got shape {tuple(shape)}")


def _kernel_middle(kernel: Sequence[int]) -> int:
    """The row-major position of the middle of a kernel. An even size takes the later of the two, as torch's dirac_."""
    middle = 0
    for size in kernel:
        middle = middle * size + size // 2
    return middle


def _partial_identity(shape: Sequence[int]) -> Distribution:
    rows, columns = shape
    return distributions.Diagonal(1.0, 0, columns + 1, min(rows, columns), rows * columns)


@dataclass(frozen=True)
class Eye:
    """The identity: ones on the main diagonal of a matrix, square or not, zeros elsewhere (torch.nn.init.eye_).

    Le, Jaitly, Hinton 2015 use it for recurrent networks of ReLUs. Raises ValueError unless there are two dimensions.

    >>> print(Eye().distribution(Context((2, 3))))
    1 on a diagonal
    """

    def distribution(self, context: Context) -> Distribution:
        shape = context.shape
        _check_dimensions(shape, 2)
        return _partial_identity(shape)


@dataclass(frozen=True)
class Dirac:
    """The convolution that passes its input through: ones at the middle of the kernels (i, i), zeros elsewhere.

    With `groups`, every group of dim 0 has such ones (torch.nn.init.dirac_). The shape is (out, in / groups,
    kernel ...). Raises ValueError unless there are three to five dimensions and groups divides dim 0.

    >>> print(Dirac().distribution(Context((4, 4, 3))))
    1 on a diagonal
    """

    groups: int = 1

    def __post_init__(self) -> None:
        if type(self.groups) is not int:
            raise TypeError(f"groups: expected an int, got {self.groups!r}")
        if self.groups < 1:
            raise ValueError(f"groups: expected groups >= 1, got {self.groups}")

    def distribution(self, context: Context) -> Distribution:
        shape = context.shape
        _check_dimensions(shape, 3, 4, 5)
        if shape[0] % self.groups != 0:
            raise ValueError(f"expected dim 0 to be divisible by groups, got {shape[0]} and {self.groups}")
        group_out, channels = shape[0] // self.groups, shape[1]
        kernel = math.prod(shape[2:])
        period = group_out * channels * kernel
        first = _kernel_middle(shape[2:])
        return distributions.Diagonal(1.0, first, (channels + 1) * kernel, min(group_out, channels), period)


@dataclass(frozen=True)
class Orthogonal:
    """gain times a Haar distributed matrix with orthonormal rows or columns, whichever are fewer (torch's orthogonal_).

    The rows of the matrix are dim 0, its columns all others. With `column_axis`, that axis is the columns and all
    others are the rows: -1 gives the matrices of JAX and Keras. Saxe, McClelland, Ganguli 2014; Mezzadri 2007 for the
    Haar distribution. Raises ValueError if there are fewer than two dimensions, or no such axis.

    >>> print(Orthogonal().distribution(Context((3, 5))))
    orthogonal, 3 of length 5
    """

    gain: float = 1.0
    column_axis: int | None = None

    def __post_init__(self) -> None:
        set_finite(self, "gain")
        if self.column_axis is not None and type(self.column_axis) is not int:
            raise TypeError(f"column_axis: expected an int or None, got {self.column_axis!r}")

    def distribution(self, context: Context) -> Distribution:
        shape = context.shape
        if len(shape) < 2:
            raise ValueError(f"expected 2 dimensions or more, got shape {tuple(shape)}")
        axis = self.column_axis
        if axis is not None and not -len(shape) <= axis < len(shape):
            raise ValueError(f"column_axis: expected an axis of shape {tuple(shape)}, got {axis}")
        rows = shape[0 if axis is None else axis]
        columns = math.prod(shape) // rows
        return distributions.Orthogonal(float(self.gain), min(rows, columns), max(rows, columns), axis)


_SPECTRA = ("flat", "linear", "power", "marchenko_pastur")


@dataclass(frozen=True)
class Spectral:
    """gain U diag(s) V^T: Haar distributed singular vectors, and chosen singular values (the SVD scheme).

    The rows of the matrix are dim 0, its columns all others. Its rank is r = min(rows, columns). `values` are the r
    singular values, or a function of r that returns them, or one of these names:

    - "flat": all are 1. The matrix is then `Orthogonal` (Saxe, McClelland, Ganguli 2014, section 3).
    - "linear": 1, 1 - 1/r, ..., 1/r.
    - "power": 1, 2^-p, ..., r^-p with p = `power`.
    - "marchenko_pastur": the quantiles (i + 1/2) / r of the singular values of a Gaussian matrix of variance
      1 / max(rows, columns) (Marchenko, Pastur 1967).

    Raises ValueError for values that are negative, not finite, or not r in number, and for fewer than two dimensions.

    >>> print(Spectral("linear").distribution(Context((4, 6))))
    singular values 0.25 to 1
    """

    values: str | tuple[float, ...] | Callable[[int], Sequence[float]] = "flat"
    gain: float = 1.0
    power: float = 1.0

    def __post_init__(self) -> None:
        set_finite(self, "gain", "power")
        if isinstance(self.values, str):
            check_choice("values", self.values, _SPECTRA)
        elif not callable(self.values):
            object.__setattr__(self, "values", _singular_values(self.values))

    def _singular_values(self, rows: int, columns: int) -> tuple[float, ...]:
        rank = min(rows, columns)
        if callable(self.values):
            values = _singular_values(self.values(rank))
        elif isinstance(self.values, tuple):
            values = self.values
        elif self.values == "flat":
            values = (1.0,) * rank
        elif self.values == "linear":
            values = tuple(1.0 - i / rank for i in range(rank))
        elif self.values == "power":
            values = tuple((i + 1.0) ** -self.power for i in range(rank))
        else:
            values = _marchenko_pastur(rank, max(rows, columns))
        if len(values) != rank:
            raise ValueError(f"values: expected {rank}, the rank of {rows} x {columns}, got {len(values)}")
        return values

    def distribution(self, context: Context) -> Distribution:
        shape = context.shape
        if len(shape) < 2:
            raise ValueError(f"expected 2 dimensions or more, got shape {tuple(shape)}")
        rows, columns = shape[0], math.prod(shape[1:])
        values = tuple(self.gain * value for value in self._singular_values(rows, columns))
        return distributions.Spectral(values, rows, columns)


def _singular_values(values: Sequence[float]) -> tuple[float, ...]:
    found = tuple(as_finite(f"values[{position}]", value) for position, value in enumerate(values))
    for position, value in enumerate(found):
        if value < 0.0:
            raise ValueError(f"values[{position}]: expected a finite number >= 0, got {value!r}")
    return found


def _marchenko_pastur(rank: int, length: int) -> tuple[float, ...]:
    """Quantiles of the singular values of a rank x length Gaussian matrix of variance 1 / length, largest first.

    Their squares x have the density sqrt((b - x) (x - a)) / (2 pi c x) on [a, b] = (1 -+ sqrt(c))^2, c = rank / length.
    The substitution x = (a + b) / 2 - cos(t) (b - a) / 2 makes the density smooth in t except at x = 0. The
    distribution function is summed up over t.
    """
    ratio = rank / length
    middle, half = 1.0 + ratio, 2.0 * math.sqrt(ratio)
    edges = np.linspace(0.0, math.pi, 1 << 16)
    t = 0.5 * (edges[1:] + edges[:-1])
    mass = np.sin(t) ** 2 / (middle - half * np.cos(t))
    cumulated = np.concatenate([[0.0], np.cumsum(mass)])
    at = np.interp((np.arange(rank) + 0.5) / rank, cumulated / cumulated[-1], edges)
    return tuple(np.sqrt(middle - half * np.cos(at))[::-1].tolist())


@dataclass(frozen=True)
class IdentityPlusOrthogonal:
    """`identity` times the identity plus `gain` times a Haar distributed orthogonal matrix, for recurrent weights.

    With identity = 1 and a small gain, a hidden state stays nearly as it is, and every unit has a part in every other.
    Le, Jaitly, Hinton 2015 use the identity alone. Raises ValueError unless the matrix is square.

    >>> print(IdentityPlusOrthogonal().distribution(Context((4, 4))))
    1 x identity + 0.1 x orthogonal
    """

    identity: float = 1.0
    gain: float = 0.1

    def __post_init__(self) -> None:
        set_finite(self, "identity", "gain")

    def distribution(self, context: Context) -> Distribution:
        shape = context.shape
        if len(shape) != 2 or shape[0] != shape[1]:
            raise ValueError(f"expected a square matrix, got shape {tuple(shape)}")
        return distributions.IdentityPlus(float(self.identity), float(self.gain), shape[0])


@dataclass(frozen=True)
class DeltaOrthogonal:
    """gain times an orthogonal matrix at the middle of the kernels, zeros elsewhere: a convolution that keeps norms.

    The shape is (out, in, kernel ...) of 3 to 5 dimensions with out >= in. The middle is (k - 1) // 2, as in JAX. Xiao,
    Bahri, Sohl-Dickstein, Schoenholz, Pennington, ICML 2018, section 3 (algorithm 1). Raises ValueError for other
    shapes.

    >>> print(DeltaOrthogonal().distribution(Context((4, 2, 3))))
    1 x orthogonal 4 x 2 at the middle of 3
    """

    gain: float = 1.0

    def __post_init__(self) -> None:
        set_finite(self, "gain")

    def distribution(self, context: Context) -> Distribution:
        shape = context.shape
        _check_dimensions(shape, 3, 4, 5)
        if shape[1] > shape[0]:
            raise ValueError(f"expected no more inputs than outputs (dim 1 <= dim 0), got shape {tuple(shape)}")
        return distributions.DeltaOrthogonal(float(self.gain), shape[0], shape[1], math.prod(shape[2:]))


@dataclass(frozen=True)
class Sparse:
    """N(0, std^2), with ceil(sparsity * rows) randomly chosen zeros in every column (torch.nn.init.sparse_).

    Martens 2010. Raises ValueError unless 0 <= sparsity <= 1 and there are two dimensions.

    >>> print(Sparse(0.5).distribution(Context((4, 3))))
    N(0, 0.01^2), 2 of 4 zero in a column
    """

    sparsity: float
    std: float = 0.01

    def __post_init__(self) -> None:
        set_finite(self, "sparsity")
        if not 0.0 <= self.sparsity <= 1.0:
            raise ValueError(f"sparsity: expected 0 <= sparsity <= 1, got {self.sparsity!r}")
        set_not_negative(self, "std")

    def distribution(self, context: Context) -> Distribution:
        shape = context.shape
        _check_dimensions(shape, 2)
        return distributions.Sparse(float(self.std), math.ceil(self.sparsity * shape[0]), shape[0])


@dataclass(frozen=True)
class ZerO:
    """Identity and Hadamard transforms, nothing random (Zhao, Schäfer, Anandkumar, TMLR 2022, algorithm 1).

    A matrix of shape (out, in) with out <= in is the partial identity. A matrix with out > in is the corner of
    2^(-m/2) H, where H is Sylvester's Hadamard matrix of order 2^m, m = ceil(log2 out). The columns are orthonormal
    before the cut. A convolution has the matrix at the middle of its kernels. `transposed`: the shape is
    (in, out, ...). Raises ValueError for fewer than two or more than five dimensions.

    >>> print(ZerO().distribution(Context((4, 2))))
    0.5 x Hadamard
    """

    transposed: bool = False

    def distribution(self, context: Context) -> Distribution:
        shape = context.shape
        _check_dimensions(shape, 2, 3, 4, 5)
        columns, rows = shape[:2] if self.transposed else (shape[1], shape[0])
        if rows <= columns:
            return _partial_identity(shape) if len(shape) == 2 else Dirac().distribution(context)
        order = (rows - 1).bit_length()
        return distributions.Hadamard(2.0 ** (-order / 2), math.prod(shape[2:]))


@dataclass(frozen=True)
class LogRange:
    """log 1, log 2, ..., log n along the last dimension: Mamba's A_log (S4D-Real in Gu, Dao 2023, section 3.6).

    Raises:
        ValueError: in use, the parameter is a scalar.

    >>> print(LogRange().distribution(Context((2, 4))))
    log(1 ... 4)
    """

    def distribution(self, context: Context) -> Distribution:
        shape = context.shape
        if not shape:
            raise ValueError("expected 1 dimension or more, got a scalar")
        return distributions.LogRange(shape[-1])


@dataclass(frozen=True)
class TimeStep:
    """The bias that gives Mamba its time steps: softplus^-1(max(floor, exp U[log low, log high])).

    Gu, Dao 2023, section 3.6. Raises ValueError unless 0 < low <= high and floor > 0.

    >>> print(TimeStep().distribution(Context((4,))))
    softplus^-1 of log-uniform [0.001, 0.1]
    """

    low: float = 1e-3
    high: float = 1e-1
    floor: float = 1e-4

    def __post_init__(self) -> None:
        set_finite(self, "low", "high", "floor")
        check_time_steps(self.low, self.high, self.floor)

    def distribution(self, context: Context) -> Distribution:
        return distributions.TimeStep(float(self.low), float(self.high), float(self.floor))


for _name, _make in {
    "eye": Eye,
    "dirac": Dirac,
    "orthogonal": Orthogonal,
    "delta_orthogonal": DeltaOrthogonal,
    "svd": Spectral,
    "identity_plus_orthogonal": IdentityPlusOrthogonal,
    "sparse": Sparse,
    "zer_o": ZerO,
    "log_range": LogRange,
    "time_step": TimeStep,
}.items():
    register_scheme(_name, _make)
