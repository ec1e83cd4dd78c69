"""torch.nn.init's functions under its names and signatures, and those of other systems, for one tensor or a list.

A call draws one seed, from `generator` or from torch's default CPU generator. A single tensor has the empty name, so
that equal seeds give equal values; the tensors of a list have their positions as names, and so values of their own.
As in torch, nothing happens to tensors without memory, those on the meta device and fake ones: they are returned as
they are. docs/MIGRATING.md lists what differs from torch.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, ParamSpec, TypeVar

import torch

from fastinit._torch import in_fake_mode, is_compiling, is_fake, is_traced, keep_order, traced_constant, uncompiled
from fastinit.capture import later
from fastinit.distributed.held import is_whole, local_tensor, registered
from fastinit.distributed.megatron import is_megatron
from fastinit.errors import warn
from fastinit.rules.depths import Depths
from fastinit.rules.lists import plan_tensors
from fastinit.rules.resolve import Resolver
from fastinit.rules.roles import Treatment
from fastinit.rules.select import as_fan
from fastinit.run.at_exit import waited_for_at_exit
from fastinit.run.direct import short_way
from fastinit.run.streams import draw_seed
from fastinit.schemes import named as schemes
from fastinit.schemes import structured
from fastinit.schemes.base import Scheme, as_written
from fastinit.schemes.distributions import Distribution
from fastinit.schemes.fans import FanAxes, FanConvention
from fastinit.schemes.gains import calculate_gain as calculate_gain

__all__ = [
    "calculate_gain",
    "constant",
    "constant_",
    "delta_orthogonal_",
    "dirac",
    "dirac_",
    "eye",
    "eye_",
    "kaiming_normal",
    "kaiming_normal_",
    "kaiming_uniform",
    "kaiming_uniform_",
    "lecun_normal_",
    "lecun_uniform_",
    "normal",
    "normal_",
    "ones_",
    "orthogonal",
    "orthogonal_",
    "sparse",
    "sparse_",
    "spectral_",
    "trunc_normal_",
    "uniform",
    "uniform_",
    "variance_scaling_",
    "xavier_normal",
    "xavier_normal_",
    "xavier_uniform",
    "xavier_uniform_",
    "zeros_",
]

Fan = Literal["fan_in", "fan_out"]
# What is given is what is returned.
TensorsT = TypeVar("TensorsT", bound=torch.Tensor | Sequence[torch.Tensor])


def _run(
    tensor: TensorsT,
    make: Callable[..., Scheme],
    arguments: tuple[Any, ...] = (),
    generator: torch.Generator | None = None,
    fan: FanConvention = "torch",
    *,
    warn_of_empty: bool = False,
) -> TensorsT:
    """Fill a tensor, or those of a list, as the scheme make(*arguments) says."""
    if is_compiling():
        if generator is None and isinstance(fan, str) and not _is_divided(tensor):
            return _run_traced(tensor, make, arguments, fan)
    # Without attributes, what looks plain is no shard of a kind known here: this spares small tensors a call.
    elif (not (registered or getattr(tensor, "__dict__", True)) or is_whole(tensor)) and _fill_directly(
        tensor, make, arguments, fan, generator
    ):
        return tensor
    if is_traced() and generator is None and isinstance(fan, str) and not _is_divided(tensor):
        return _run_traced(tensor, make, arguments, fan)
    return _run_plan(tensor, make, arguments, generator, fan, warn_of_empty)


def _is_divided(tensor: Any) -> bool:
    """Whether a shard is known by attributes alone, which are no part of a graph."""
    return any(map(is_megatron, [tensor] if isinstance(tensor, torch.Tensor) else tensor))


@uncompiled
@waited_for_at_exit
def _run_plan(
    tensor: TensorsT,
    make: Callable[..., Scheme],
    arguments: tuple[Any, ...],
    generator: torch.Generator | None,
    fan: FanConvention,
    warn_of_empty: bool,
) -> TensorsT:
    scheme = make(*arguments)
    named = _named(tensor, scheme)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: expected a torch.Generator or None, got {type(generator).__name__}")
    real = {name: each for name, each in named.items() if not is_fake(each)}
    if real and in_fake_mode():
        raise ValueError("tensor: has memory, but is given inside FakeTensorMode; initialise it outside")
    plan = plan_tensors(real.values(), scheme, names=list(real), fan=fan, generator=generator)
    if warn_of_empty and any(each.numel() == 0 for each in named.values()):
        warn("Initializing zero-element tensors is a no-op")
    if any(local_tensor(each).is_meta for each in real.values()):
        plan = plan.filter(lambda row: not local_tensor(row.tensor).is_meta)
    later.run_(plan)
    return tensor


# What torch.compile traces of a call: two operators, of which the first takes a seed when the graph runs. So the graph
# is not broken, and gives the values of the same calls without it. A generator is no value of a graph: with one, or
# with axes given, the graph breaks, and the call is made as it is.
_traced: dict[str, tuple[Callable[..., Scheme], tuple[Any, ...], FanConvention]] = {}
_NOT_RANDOM = (schemes.Constant, structured.Eye, structured.Dirac)


@traced_constant
def _traced_key(make: Callable[..., Scheme], arguments: tuple[Any, ...], fan: FanConvention) -> str:
    """What stands in the graph for a scheme, whenever the graph runs."""
    key = f"{make.__module__}.{make.__qualname__}{arguments!r} {fan!r}"
    _traced[key] = make, arguments, fan
    return key


def _run_traced(
    tensor: TensorsT, make: Callable[..., Scheme], arguments: tuple[Any, ...], fan: FanConvention
) -> TensorsT:
    key = _traced_key(make, arguments, fan)
    seed = torch.zeros((), dtype=torch.int64, device="cpu") if make in _NOT_RANDOM else _seed_operator()
    tensors: list[torch.Tensor] = [tensor] if isinstance(tensor, torch.Tensor) else list(tensor)
    # No torch.no_grad: after an error in a graph, torch would leave gradients off.
    _fill_operator([each.detach() for each in tensors], seed, key, isinstance(tensor, torch.Tensor))
    return tensor


@torch.library.custom_op("fastinit::draw_seed", mutates_args=())
def _seed_operator() -> torch.Tensor:
    seed = draw_seed(None)
    return torch.tensor(seed - 2**64 if seed >= 2**63 else seed, dtype=torch.int64, device="cpu")


@_seed_operator.register_fake
def _() -> torch.Tensor:
    return torch.empty((), dtype=torch.int64, device="cpu")


keep_order("fastinit::draw_seed")


@torch.library.custom_op("fastinit::fill_", mutates_args={"tensors"})
def _fill_operator(tensors: list[torch.Tensor], seed: torch.Tensor, key: str, alone: bool) -> None:
    make, arguments, fan = _traced[key]
    names = [""] if alone else None
    plan_tensors(tensors, make(*arguments), names=names, fan=fan, seed=int(seed.item()) % 2**64).run_()


def _distribution(
    tensor: torch.Tensor, make: Callable[..., Scheme], arguments: tuple[Any, ...], fan: FanConvention
) -> Distribution | None:
    """The distribution of a tensor; None: a plan has to give a warning, at every call."""
    treatment = Treatment(make(*arguments), "listed")
    found = Resolver(as_fan(fan), Depths([""]))("", "", None, tensor.shape, tensor.dtype, treatment)
    return found.distribution if found.warning is None else None


_fill_directly = short_way(_distribution)


def _trunc_normal(mean: float, std: float, a: float, b: float) -> Scheme:
    return schemes.TruncNormal(mean, std, (a, b))


def _named(tensor: Any, scheme: Scheme) -> dict[str, torch.Tensor]:
    """The tensors to fill under the names that their streams have: the empty one, or positions in a list."""
    if isinstance(tensor, torch.Tensor):
        return {"": tensor}
    kind = type(tensor).__name__
    if isinstance(tensor, torch.nn.Module):
        line = f"fastinit.init_model_(model, {as_written(scheme)})"
        raise TypeError(f"tensor: expected a tensor or a list of them, got a {kind}; write {line}")
    if not isinstance(tensor, Iterable) or hasattr(tensor, "shape"):  # arrays of other libraries can be iterated over
        raise TypeError(f"tensor: expected a torch.Tensor or a list of them, got {kind}")
    named = {str(position): each for position, each in enumerate(tensor)}
    for position, each in named.items():
        if not isinstance(each, torch.Tensor):
            raise TypeError(f"tensor[{position}]: expected a torch.Tensor, got {type(each).__name__}")
    return named


def _lower(mode: Fan) -> Fan:
    """`mode` as torch reads it, in either case."""
    return mode.lower() if isinstance(mode, str) else mode  # type: ignore[return-value]


def uniform_(tensor: TensorsT, a: float = 0.0, b: float = 1.0, generator: torch.Generator | None = None) -> TensorsT:
    """U[a, b]: every value is as likely as another, both ends included.

    Args:
        tensor: of any shape, or a list of tensors; filled in place and returned.
        a, b: the bounds, a <= b.
        generator: gives the seed; None: torch's default CPU generator.

    Raises:
        TypeError: no tensor, a dtype that is neither floating-point nor complex, a bound that is no number.
        ValueError: a bound that is not finite, or a > b.

    >>> weight = uniform_(torch.empty(3, 5), -0.1, 0.1)
    >>> bool(weight.abs().max() <= 0.1)
    True
    """
    return _run(tensor, schemes.Uniform, (a, b), generator)


def normal_(
    tensor: TensorsT, mean: float = 0.0, std: float = 1.0, generator: torch.Generator | None = None
) -> TensorsT:
    """N(mean, std^2).

    Args:
        tensor: of any shape, or a list of tensors; filled in place and returned.
        mean, std: of the values, std >= 0.
        generator: gives the seed; None: torch's default CPU generator.

    Raises:
        TypeError: no tensor, a dtype that is neither floating-point nor complex, a mean or std that is no number.
        ValueError: a mean or std that is not finite, or std < 0.

    >>> weight = normal_(torch.empty(100, 100), std=0.02)
    >>> bool(0.015 < weight.std() < 0.025)
    True
    """
    return _run(tensor, schemes.Normal, (mean, std), generator)


def trunc_normal_(
    tensor: TensorsT,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: torch.Generator | None = None,
) -> TensorsT:
    """N(mean, std^2) conditioned on [a, b]. The bounds are absolute, not multiples of std.

    With std=0.02, the default bounds cut nothing off; fastinit.TruncNormal(..., unit="sigma") takes multiples of std.

    Args:
        tensor: of any shape, or a list of tensors; filled in place and returned.
        mean, std: of the normal distribution before it is cut, std >= 0.
        a, b: the bounds, in the unit of the values, a <= b.
        generator: gives the seed; None: torch's default CPU generator.

    Raises:
        TypeError: no tensor, a dtype that is not floating-point, an argument that is no number.
        ValueError: a number that is not finite, std < 0, a > b, or bounds farther than 6 std from the mean.

    >>> weight = trunc_normal_(torch.empty(100, 100), std=0.02, a=-0.04, b=0.04)
    >>> bool(weight.abs().max() <= 0.04)
    True
    """
    return _run(tensor, _trunc_normal, (mean, std, a, b), generator)


def constant_(tensor: TensorsT, val: float) -> TensorsT:
    """Every element is `val`.

    Args:
        tensor: of any shape and dtype, or a list of tensors; filled in place and returned.
        val: the value.

    Raises:
        TypeError: no tensor, or a value that is no real number.
        ValueError: a value that the dtype cannot hold.

    >>> constant_(torch.empty(3), 0.5)
    tensor([0.5000, 0.5000, 0.5000])
    """
    return _run(tensor, schemes.Constant, (val,))


def ones_(tensor: TensorsT) -> TensorsT:
    """Every element is 1.

    Args:
        tensor: of any shape and dtype, or a list of tensors; filled in place and returned.

    Raises:
        TypeError: no tensor.

    >>> ones_(torch.empty(3))
    tensor([1., 1., 1.])
    """
    return _run(tensor, schemes.Constant, (1.0,))


def zeros_(tensor: TensorsT) -> TensorsT:
    """Every element is 0.

    Args:
        tensor: of any shape and dtype, or a list of tensors; filled in place and returned.

    Raises:
        TypeError: no tensor.

    >>> zeros_(torch.empty(3))
    tensor([0., 0., 0.])
    """
    return _run(tensor, schemes.Constant, (0.0,))


def xavier_uniform_(tensor: TensorsT, gain: float = 1.0, generator: torch.Generator | None = None) -> TensorsT:
    """U[-b, b] with b = gain sqrt(6 / (fan_in + fan_out)), so that the variance is 2 gain^2 / (fan_in + fan_out).

    Args:
        tensor: (out, in, ...), or a list of tensors; filled in place and returned. fan_in = in * field, fan_out =
            out * field, where the field is the product of the other dimensions (the kernel of a convolution).
        gain: a factor on the std, gain >= 0; see `calculate_gain`.
        generator: gives the seed; None: torch's default CPU generator.

    Raises:
        TypeError: no tensor, a dtype that is neither floating-point nor complex, a gain that is no number.
        ValueError: fewer than two dimensions, a gain that is negative or not finite.

    Glorot, Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010.

    >>> weight = xavier_uniform_(torch.empty(2, 4))
    >>> bool(weight.abs().max() <= 1.0)  # sqrt(6 / (4 + 2))
    True
    """
    return _run(tensor, schemes.xavier_uniform, (gain,), generator)


def xavier_normal_(tensor: TensorsT, gain: float = 1.0, generator: torch.Generator | None = None) -> TensorsT:
    """N(0, std^2) with std = gain sqrt(2 / (fan_in + fan_out)).

    Args:
        tensor: (out, in, ...), or a list of tensors; filled in place and returned. fan_in = in * field, fan_out =
            out * field, where the field is the product of the other dimensions (the kernel of a convolution).
        gain: a factor on the std, gain >= 0; see `calculate_gain`.
        generator: gives the seed; None: torch's default CPU generator.

    Raises:
        TypeError: no tensor, a dtype that is neither floating-point nor complex, a gain that is no number.
        ValueError: fewer than two dimensions, a gain that is negative or not finite.

    Glorot, Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010.

    >>> weight = xavier_normal_(torch.empty(100, 100))
    >>> bool(0.09 < weight.std() < 0.11)  # sqrt(2 / 200)
    True
    """
    return _run(tensor, schemes.xavier_normal, (gain,), generator)


def kaiming_uniform_(
    tensor: TensorsT,
    a: float = 0,
    mode: Fan = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: torch.Generator | None = None,
) -> TensorsT:
    """U[-b, b] with b = gain sqrt(3 / fan) and gain = calculate_gain(nonlinearity, a): the variance is gain^2 / fan.

    Args:
        tensor: (out, in, ...), or a list of tensors; filled in place and returned. fan_in = in * field, fan_out =
            out * field, where the field is the product of the other dimensions (the kernel of a convolution).
        a: the slope of the leaky ReLU for negative inputs; other nonlinearities ignore it.
        mode: "fan_in" keeps the variance of the signal forwards, "fan_out" that of the gradient backwards.
        nonlinearity: what follows the layer; see `calculate_gain`.
        generator: gives the seed; None: torch's default CPU generator.

    Raises:
        TypeError: no tensor, or a dtype that is neither floating-point nor complex.
        ValueError: fewer than two dimensions, an unknown mode or nonlinearity, a slope that is no finite number.

    He, Zhang, Ren, Sun, "Delving deep into rectifiers", ICCV 2015.

    >>> weight = kaiming_uniform_(torch.empty(2, 6), nonlinearity="relu")
    >>> bool(weight.abs().max() <= 1.0)  # sqrt(2) sqrt(3 / 6)
    True
    """
    return _run(tensor, schemes.kaiming_uniform, (a, _lower(mode), nonlinearity), generator, warn_of_empty=True)


def kaiming_normal_(
    tensor: TensorsT,
    a: float = 0,
    mode: Fan = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: torch.Generator | None = None,
) -> TensorsT:
    """N(0, std^2) with std = gain / sqrt(fan) and gain = calculate_gain(nonlinearity, a).

    Args:
        tensor: (out, in, ...), or a list of tensors; filled in place and returned. fan_in = in * field, fan_out =
            out * field, where the field is the product of the other dimensions (the kernel of a convolution).
        a: the slope of the leaky ReLU for negative inputs; other nonlinearities ignore it.
        mode: "fan_in" keeps the variance of the signal forwards, "fan_out" that of the gradient backwards.
        nonlinearity: what follows the layer; see `calculate_gain`.
        generator: gives the seed; None: torch's default CPU generator.

    Raises:
        TypeError: no tensor, or a dtype that is neither floating-point nor complex.
        ValueError: fewer than two dimensions, an unknown mode or nonlinearity, a slope that is no finite number.

    He, Zhang, Ren, Sun, "Delving deep into rectifiers", ICCV 2015.

    >>> weight = kaiming_normal_(torch.empty(100, 200), nonlinearity="relu")
    >>> bool(0.09 < weight.std() < 0.11)  # sqrt(2 / 200)
    True
    """
    return _run(tensor, schemes.kaiming_normal, (a, _lower(mode), nonlinearity), generator, warn_of_empty=True)


def lecun_uniform_(tensor: TensorsT, generator: torch.Generator | None = None) -> TensorsT:
    """U[-b, b] with b = sqrt(3 / fan_in), so that the variance is 1 / fan_in.

    Args:
        tensor: (out, in, ...), or a list of tensors; filled in place and returned. fan_in = in * field, where the
            field is the product of the other dimensions (the kernel of a convolution).
        generator: gives the seed; None: torch's default CPU generator.

    Raises:
        TypeError: no tensor, or a dtype that is neither floating-point nor complex.
        ValueError: fewer than two dimensions.

    LeCun, Bottou, Orr, Müller, "Efficient backprop", in Neural Networks: Tricks of the Trade, 1998.

    >>> weight = lecun_uniform_(torch.empty(2, 3))
    >>> bool(weight.abs().max() <= 1.0)  # sqrt(3 / 3)
    True
    """
    return _run(tensor, schemes.lecun_uniform, (), generator)


def lecun_normal_(tensor: TensorsT, generator: torch.Generator | None = None) -> TensorsT:
    """A normal distribution that is truncated at two sigma, with mean 0 and, after truncation, the variance 1 / fan_in.

    JAX and Keras truncate alike.

    Args:
        tensor: (out, in, ...), or a list of tensors; filled in place and returned. fan_in = in * field, where the
            field is the product of the other dimensions (the kernel of a convolution).
        generator: gives the seed; None: torch's default CPU generator.

    Raises:
        TypeError: no tensor, or a dtype that is not floating-point.
        ValueError: fewer than two dimensions.

    LeCun, Bottou, Orr, Müller, "Efficient backprop", in Neural Networks: Tricks of the Trade, 1998.

    >>> weight = lecun_normal_(torch.empty(100, 100))
    >>> bool(0.09 < weight.std() < 0.11)  # sqrt(1 / 100)
    True
    """
    return _run(tensor, schemes.lecun_normal, (), generator)


def eye_(tensor: TensorsT) -> TensorsT:
    """W[i, j] = 1 where i = j, else 0: the identity, as much of it as the matrix holds.

    Args:
        tensor: (rows, columns), of any dtype, or a list of matrices; filled in place and returned.

    Raises:
        TypeError: no tensor.
        ValueError: not two dimensions.

    >>> eye_(torch.empty(2, 3))
    tensor([[1., 0., 0.],
            [0., 1., 0.]])
    """
    return _run(tensor, structured.Eye)


def dirac_(tensor: TensorsT, groups: int = 1) -> TensorsT:
    """W[i, i, middle] = 1, else 0: the convolution hands its input on, as many channels of it as it can.

    Args:
        tensor: (out, in / groups, kernel ...) with one to three dimensions of the kernel, of any dtype, or a list of
            such tensors; filled in place and returned.
        groups: of the convolution; each of them is set in the same way. Divides the first dimension.

    Raises:
        TypeError: no tensor, or groups that are no int.
        ValueError: not three to five dimensions, groups < 1, or a first dimension that groups do not divide.

    >>> dirac_(torch.empty(2, 2, 3))
    tensor([[[0., 1., 0.],
             [0., 0., 0.]],
    <BLANKLINE>
            [[0., 0., 0.],
             [0., 1., 0.]]])
    """
    return _run(tensor, structured.Dirac, (groups,))


def orthogonal_(tensor: TensorsT, gain: float = 1, generator: torch.Generator | None = None) -> TensorsT:
    """gain Q, where the rows or the columns of Q, whichever are fewer, are orthonormal, and Q is Haar distributed.

    Args:
        tensor: (rows, ...), or a list of tensors; filled in place and returned. All dimensions but the first are the
            columns.
        gain: a factor on Q, of either sign.
        generator: gives the seed; None: torch's default CPU generator.

    Raises:
        TypeError: no tensor, a dtype that is neither floating-point nor complex, a gain that is no number.
        ValueError: fewer than two dimensions, a gain that is not finite.

    Saxe, McClelland, Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks",
    ICLR 2014.

    >>> weight = orthogonal_(torch.empty(3, 5))
    >>> torch.allclose(weight @ weight.T, torch.eye(3), atol=1e-6)
    True
    """
    return _run(tensor, structured.Orthogonal, (gain,), generator)


def sparse_(tensor: TensorsT, sparsity: float, std: float = 0.01, generator: torch.Generator | None = None) -> TensorsT:
    """N(0, std^2), with ceil(sparsity * rows) elements of every column, chosen at random, set to 0.

    Args:
        tensor: (rows, columns), or a list of matrices; filled in place and returned.
        sparsity: the share of zeros in a column, 0 <= sparsity <= 1.
        std: of the values that are not set to 0, std >= 0.
        generator: gives the seed of the values and of the places of zeros; None: torch's default CPU generator.

    Raises:
        TypeError: no tensor, a dtype that is neither floating-point nor complex, an argument that is no number.
        ValueError: not two dimensions, a sparsity outside of [0, 1], a std that is negative or not finite.

    Martens, "Deep learning via Hessian-free optimization", ICML 2010.

    >>> (sparse_(torch.empty(4, 3), 0.5) == 0).sum(dim=0)
    tensor([2, 2, 2])
    """
    return _run(tensor, structured.Sparse, (sparsity, std), generator)


def delta_orthogonal_(tensor: TensorsT, gain: float = 1.0, generator: torch.Generator | None = None) -> TensorsT:
    """W[:, :, middle] = gain Q, where the columns of Q are orthonormal, and zero elsewhere.

    The convolution multiplies the norm of its input by gain.

    Args:
        tensor: (out, in, kernel ...) with out >= in and one to three dimensions of the kernel, or a list of such
            tensors; filled in place and returned.
        gain: a factor on Q, of either sign.
        generator: gives the seed; None: torch's default CPU generator.

    Raises:
        TypeError: no tensor, a dtype that is not floating-point, a gain that is no number.
        ValueError: not three to five dimensions, out < in, a gain that is not finite.

    Xiao, Bahri, Sohl-Dickstein, Schoenholz, Pennington, "Dynamical isometry and a mean field theory of CNNs", ICML
    2018.

    >>> weight = delta_orthogonal_(torch.empty(4, 2, 3))
    >>> middle = weight[:, :, 1]
    >>> torch.allclose(middle.T @ middle, torch.eye(2), atol=1e-6), weight[:, :, 0].any().item()
    (True, False)
    """
    return _run(tensor, structured.DeltaOrthogonal, (gain,), generator)


Spectrum = str | tuple[float, ...] | Callable[[int], Sequence[float]]


def spectral_(
    tensor: TensorsT,
    values: Spectrum = "flat",
    gain: float = 1.0,
    generator: torch.Generator | None = None,
) -> TensorsT:
    """gain U diag(values) V^T, where U and V are Haar distributed: a matrix with the given singular values.

    Args:
        tensor: (rows, ...), or a list of tensors; filled in place and returned. All dimensions but the first are the
            columns.
        values: the min(rows, columns) singular values, none of them negative; or a function of their number that gives
            them; or "flat", "linear", "power" or "marchenko_pastur", as fastinit.Spectral explains them.
        gain: a factor on the values.
        generator: gives the seed; None: torch's default CPU generator.

    Raises:
        TypeError: no tensor, a dtype that is neither floating-point nor complex, a gain that is no number.
        ValueError: fewer than two dimensions, values that are negative, not finite or of another number.

    Saxe, McClelland, Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks",
    ICLR 2014, section 3 ("flat").

    >>> weight = spectral_(torch.empty(2, 3), values=(2.0, 1.0))
    >>> torch.allclose(torch.linalg.svdvals(weight), torch.tensor([2.0, 1.0]), atol=1e-6)
    True
    """
    return _run(tensor, structured.Spectral, (values, gain), generator)


Axis = int | Sequence[int]


def variance_scaling_(
    tensor: TensorsT,
    scale: float = 1.0,
    mode: schemes.FanMode = "fan_in",
    distribution: Literal["uniform", "normal", "truncated_normal"] = "truncated_normal",
    in_axis: Axis | None = None,
    out_axis: Axis | None = None,
    batch_axis: Axis = (),
    generator: torch.Generator | None = None,
) -> TensorsT:
    """Mean 0 and variance scale / fan: variance_scaling of JAX and of Keras, whose defaults these are.

    Args:
        tensor: of two dimensions or more, of fewer where axes are given as lists; or a list of tensors. Filled in place
            and returned.
        scale: the variance times the fan, scale >= 0.
        mode: which fan: "fan_in", "fan_out", "fan_avg" (their mean) or "fan_geo_avg" (their geometric mean).
        distribution: "uniform", "normal" or "truncated_normal" (at two sigma; the variance is that after truncation).
        in_axis, out_axis: an axis or several, whose product of sizes, times the field, is fan_in or fan_out. The field
            is the product of all axes that have no name. If no axis is given: 1 and 0, as in torch; if one of the three
            is: -2 and -1, as in JAX.
        batch_axis: an axis or several that count for neither fan.
        generator: gives the seed; None: torch's default CPU generator.

    Raises:
        TypeError: no tensor, a dtype that cannot hold the distribution, a scale that is no number, an axis that is no
            int.
        ValueError: fewer than two dimensions, an axis that the tensor lacks or that is named twice, scale < 0, an
            unknown mode or distribution.

    He, Zhang, Ren, Sun, "Delving deep into rectifiers", ICCV 2015 (fan_in, scale 2); Glorot, Bengio, AISTATS 2010
    (fan_avg, scale 1).

    >>> weight = variance_scaling_(torch.empty(100, 50), 2.0, "fan_in", "normal", in_axis=0, out_axis=1)
    >>> bool(0.12 < weight.std() < 0.16)  # sqrt(2 / 100)
    True
    """
    fan: FanConvention = "torch"
    in_axes, out_axes, batch_axes = map(_as_axes, (in_axis, out_axis, batch_axis))
    if in_axes is not None or out_axes is not None or batch_axes != ():
        axes = FanAxes(-2 if in_axes is None else in_axes, -1 if out_axes is None else out_axes, batch_axes)
        fan = as_fan(axes, "")  # the function has no argument called fan
    return _run(tensor, schemes.VarianceScaling, (scale, mode, distribution), generator, fan)


def _as_axes(given: Any) -> Any:
    return tuple(given) if isinstance(given, list) else given


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
