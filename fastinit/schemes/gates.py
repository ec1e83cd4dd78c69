"""Schemes for gates and decays: how long a recurrent unit remembers when training begins."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fastinit.schemes import distributions
from fastinit.schemes.base import Context, register_scheme
from fastinit.schemes.distributions import Distribution, check_logs
from fastinit.schemes.named import set_finite

# The gates that lie along dimension 0 of a bias, as torch orders them. 1: the larger the bias, the longer the memory.
# -1: the gate that lets new input in, where it is another one. 0: neither.
_LSTM_GATES = (-1, 1, 0, 0)  # input, forget, cell, output
_GRU_GATES = (0, 1, 0)  # reset, update, new: torch's GRU keeps the share `update` of its state

_ZERO = distributions.Constant(0.0)


def _of_cells(context: Context, cells: tuple[type[nn.Module], ...], wanted: str) -> bool:
    """Whether a bias of recurrent cells is `bias_ih`, for the input. torch adds its twin, `bias_hh`, to it.

    Raises:
        ValueError: the parameter is no such bias.
    """
    name = context.own_name
    if not isinstance(context.module, cells) or not name.startswith(("bias_ih", "bias_hh")):
        of = "a tensor alone" if context.module is None else f"{name} of {type(context.module).__name__}"
        raise ValueError(f"expected bias_ih or bias_hh of {wanted}, got {of}")
    return name.startswith("bias_ih")


@dataclass(frozen=True)
class Chrono:
    """Biases of an LSTM's or a GRU's gates that give its units memories of all lengths up to `t_max` steps.

    For an LSTM, the forget gate's bias is b = log U[1, t_max - 1], and the input gate's is -b of the same unit; a unit
    then forgets within about 1 + e^b steps. For a GRU, whose update gate does both, that gate's bias is b. The biases
    of the other gates are zero. torch adds two biases up, so `bias_ih` gets these values and `bias_hh` zeros.

    Tallec, Ollivier, ICLR 2018, section 2 (chrono initialisation).

    Args:
        t_max: the longest dependency, in steps.

    Raises:
        ValueError: t_max < 2 or not finite; in use, the parameter is no bias of an LSTM or a GRU.

    >>> lstm = nn.LSTM(4, 8)
    >>> import fastinit
    >>> _ = fastinit.init_model_(lstm, "orthogonal", [("bias_*", Chrono(100))], fan="module", seed=0)
    >>> bool((lstm.bias_ih_l0[:8] == -lstm.bias_ih_l0[8:16]).all()), bool((lstm.bias_hh_l0 == 0).all())
    (True, True)
    """

    t_max: float

    def __post_init__(self) -> None:
        set_finite(self, "t_max")
        if self.t_max < 2.0:
            raise ValueError(f"t_max: expected t_max >= 2, got {self.t_max!r}")

    def distribution(self, context: Context) -> Distribution:
        cells = (nn.LSTM, nn.LSTMCell, nn.GRU, nn.GRUCell)
        if not _of_cells(context, cells, "an LSTM or a GRU"):
            return _ZERO
        gates = _GRU_GATES if isinstance(context.module, (nn.GRU, nn.GRUCell)) else _LSTM_GATES
        return distributions.Chrono(1.0, float(self.t_max) - 1.0, context.shape[0] // len(gates), gates)


@dataclass(frozen=True)
class ForgetBias:
    """Biases of an LSTM: `value` for the forget gate, zero for the others.

    torch adds two biases up, so `bias_ih` gets these values and `bias_hh` zeros.

    Gers, Schmidhuber, Cummins 2000; Jozefowicz, Zaremba, Sutskever, ICML 2015 (value 1).

    Raises:
        ValueError: value is not finite; in use, the parameter is no bias of an LSTM.

    >>> lstm = nn.LSTM(4, 2)
    >>> import fastinit
    >>> _ = fastinit.init_model_(lstm, "orthogonal", [("bias_*", ForgetBias())], fan="module", seed=0)
    >>> lstm.bias_ih_l0.tolist()
    [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        set_finite(self, "value")

    def distribution(self, context: Context) -> Distribution:
        if not _of_cells(context, (nn.LSTM, nn.LSTMCell), "an LSTM"):
            return _ZERO
        units = context.shape[0] // 4
        forget = distributions.Constant(float(self.value))
        return distributions.Blocks(0, (units,) * 4, (_ZERO, forget, _ZERO, _ZERO))


@dataclass(frozen=True)
class LogOfUniform:
    """log U[low, high]: the A_log of Mamba-2 (mamba_ssm, modules/mamba2.py: A_init_range, 1 to 16).

    Raises:
        ValueError: unless 0 < low <= high, both finite.

    >>> print(LogOfUniform().distribution(Context((4,))))
    log U[1, 16]
    """

    low: float = 1.0
    high: float = 16.0

    def __post_init__(self) -> None:
        set_finite(self, "low", "high")
        check_logs(self.low, self.high)

    def distribution(self, context: Context) -> Distribution:
        return distributions.LogOfUniform(float(self.low), float(self.high))


for _name, _make in {"chrono": Chrono, "forget_bias": ForgetBias, "log_of_uniform": LogOfUniform}.items():
    register_scheme(_name, _make)
