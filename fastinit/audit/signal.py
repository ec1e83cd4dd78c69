"""What becomes of a signal and of its gradient from layer to layer: one pass forward and one back, with hooks."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from fastinit.audit.statistics import Statistics, statistics
from fastinit.distributed.held import local_tensor
from fastinit.run.memory import check_readable
from fastinit.run.names import named_modules, named_parameters

Verdict = Literal["vanishing", "exploding", "level", "not finite", "no signal"]

# A signal has vanished or exploded if its std has changed by the first factor. It is on its way there if the std has
# changed by the second factor, at a pace that reaches the first within a hundred layers. A ReLU and the map before it
# differ by less than that, and so do networks that walk at random.
_FACTOR, _ON_ITS_WAY = 1e3, 10.0


class LayerSignal(NamedTuple):
    """What passes one layer: its output on the way forward, the gradient with respect to that output on the way back.

    `activation` and `gradient` are the statistics of the values; None where the layer gave none (or no gradient came).
    """

    name: str
    kind: str
    activation: Statistics
    gradient: Statistics | None


class Course(NamedTuple):
    """The verdict on a sequence of stds. `layer`: the first one at which it holds; None where all is level."""

    verdict: Verdict
    layer: str | None
    factor: float  # from the first std to the last

    def __str__(self) -> str:
        where = "" if self.layer is None else f" from {self.layer} on"
        return f"{self.verdict}{where} ({self.factor:.2g} times the first std at the end)"


class Trace:
    """The signal after every layer, in the order of the pass. `print` shows a table, `plot()` a picture.

    `activations` and `gradients` are the verdicts (`Course`); that on the gradients is read from the last layer to the
    first, the way in which they flow.
    """

    def __init__(self, layers: Sequence[LayerSignal], name: str = "") -> None:
        self.layers = tuple(layers)
        self.name = name
        self.activations = course([(each.name, each.activation) for each in layers])
        back = [(each.name, each.gradient) for each in reversed(layers) if each.gradient is not None]
        self.gradients = course(back) if back else None

    def __str__(self) -> str:
        table: list[tuple[str, ...]] = [("layer", "", "std", "mean", "zeros", "gradient std", "zeros")]
        for each in self.layers:
            table.append((each.name, each.kind, *_cells(each.activation, True), *_cells(each.gradient, False)))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in table]
        return "\n".join((*lines, *self.verdicts()))

    def __repr__(self) -> str:
        return f"<fastinit trace of {len(self.layers)} layers: {'; '.join(self.verdicts())}>"

    def verdicts(self) -> tuple[str, ...]:
        """One line for the signal, and one for the gradient."""
        lines = [f"signal: {self.activations}"]
        return (*lines, f"gradient: {self.gradients}") if self.gradients is not None else tuple(lines)

    def to_json(self) -> str:
        """The layers as a JSON array of objects; what JSON cannot write (NaN, inf) is null."""
        return json.dumps([_record(each) for each in self.layers], indent=1, allow_nan=False)

    def plot(self, axes: Any = None) -> Any:
        """Depth against std on a log scale, in matplotlib axes; without matplotlib, the text of `text_plot()`.

        A triangle at the foot marks the first zero of a curve, one at the head the first value that is not finite.
        The text is printed and returned. With matplotlib, the axes are returned: those given, or new ones.
        """
        return _plotted([self], axes)

    def text_plot(self, width: int = 64, height: int = 16) -> str:
        """Depth against std on a log scale, in characters."""
        return text_plot({f"{self.name} {what}".strip(): stds for what, stds in _curves(self)}, width, height)


class Comparison:
    """The traces of one model under several schemes, by the names of these. `plot()` lays them over each other."""

    def __init__(self, traces: Mapping[str, Trace]) -> None:
        self.traces = dict(traces)

    def __getitem__(self, name: str) -> Trace:
        return self.traces[name]

    def __str__(self) -> str:
        width = max(map(len, self.traces), default=0)
        return "\n".join(
            f"{name.ljust(width) if at == 0 else ' ' * width}  {line}"
            for name, trace in self.traces.items()
            for at, line in enumerate(trace.verdicts())
        )

    def plot(self, axes: Any = None) -> Any:
        """As `Trace.plot`, with a curve for every scheme."""
        return _plotted(list(self.traces.values()), axes)

    def text_plot(self, width: int = 64, height: int = 16) -> str:
        """As `Trace.text_plot`, of the activations alone."""
        return text_plot({name: _curves(trace)[0][1] for name, trace in self.traces.items()}, width, height)


# ---- the pass ----


def trace_signal(
    model: nn.Module,
    batch: Any,
    loss: Callable[[Any], torch.Tensor] | None = None,
    *,
    layers: str | None = None,
    name: str = "",
) -> Trace:
    """Send a batch through a model and a gradient back, and measure both after every layer.

    Layers are the innermost modules that return a tensor, in the order in which they finish; one that runs twice comes
    twice. Parameters, their gradients, buffers (the statistics of a batch norm, the estimates of a spectral norm)
    and the states of the random generators are afterwards as they were: the pass works on copies of the buffers, and
    gradients are only read as they flow. The model stays in its mode, training or not.

    The verdict is "vanishing" or "exploding" if the std at the last layer is a thousand times smaller or larger than at
    the first, or ten times, at a pace that makes it a thousand within a hundred layers. It names the layer from which
    on the std stays ten times away. For gradients, the first layer is the last one.

    Args:
        model: any module whose parameters have memory.
        batch: what its forward takes: a tensor, a tuple of positional or a mapping of keyword arguments.
        loss: a function of the model's output that gives a scalar, from which the gradient flows back. None: the
            gradient at the output is standard normal (one fixed draw), as if the loss knew nothing yet; the parts of
            the output that need no gradient are left out.
        layers: a glob on the names of the modules to look at instead, `"h.?"` for the blocks of a residual network.
        name: what plots call the trace.

    Raises:
        TypeError: the model is not a module.
        ValueError: a parameter has no memory, or no layer returned a floating-point tensor.

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh())
    >>> [layer.name for layer in trace_signal(model, torch.ones(2, 4)).layers]
    ['0', '1']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    for canonical, _, parameter in named_parameters(model):
        check_readable(parameter, canonical)
    modules = [each for each in named_modules(model) if layers is None or fnmatchcase(each.name, layers)]
    found: list[_Passed] = []
    with _untouched(model), ExitStack() as stack:
        for each in modules:
            for handle in _Looker(each.name, each.module, found, layers is not None).handles:
                stack.callback(handle.remove)
        with torch.enable_grad():
            output = _called(model, batch)
            if loss is not None:
                value = loss(output)
                if not isinstance(value, torch.Tensor) or value.numel() != 1:
                    raise TypeError("loss: expected a function that gives a tensor of one element")
                ends, gradients = [value], [torch.ones_like(value)]
            else:
                ends = [each for each in _tensors(output) if each.requires_grad]
                generator = torch.Generator().manual_seed(0)
                gradients = [
                    torch.randn(each.shape, generator=generator, dtype=torch.float32).to(each) for each in ends
                ]
        leaves = [each for each in (*model.parameters(), *_tensors(batch)) if each.requires_grad]
        if leaves and any(each.requires_grad for each in ends):
            torch.autograd.grad(ends, leaves, gradients, allow_unused=True)
    if not found:
        raise ValueError(
            "layers: no module " + ("" if layers is None else f"of {layers!r} ") + "returned a float tensor"
        )
    traced = (LayerSignal(each.name, each.kind, each.activation, next(iter(each.gradients), None)) for each in found)
    return Trace(tuple(traced), name)


class _Looker:
    """Hooks of one module. It is a layer of the trace if no module inside of it has become one."""

    def __init__(self, name: str, module: nn.Module, found: list[_Passed], chosen: bool) -> None:
        self._name, self._found, self._chosen = name, found, chosen
        self._before: list[int] = []  # how many layers there were when the module began; it may run within itself
        self.handles = (
            module.register_forward_pre_hook(self._begin),
            module.register_forward_hook(self._end),
        )

    def _begin(self, *_: Any) -> None:
        self._before.append(len(self._found))

    def _end(self, module: nn.Module, _: Any, output: Any) -> None:
        is_innermost = self._before.pop() == len(self._found)
        tensor = next((each for each in _tensors(output) if each.is_floating_point()), None)
        if tensor is None or not (self._chosen or is_innermost):
            return
        passed = _Passed(self._name, type(module).__name__, statistics(local_tensor(tensor)), [])
        self._found.append(passed)
        if tensor.requires_grad:
            hooked: Any = tensor  # whose method has no types
            hooked.register_hook(lambda gradient: passed.gradients.append(statistics(local_tensor(gradient))))


class _Passed(NamedTuple):
    name: str
    kind: str
    activation: Statistics
    gradients: list[Statistics]


def _called(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple) else model(batch)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested tuples, lists, mappings and dataclasses such as transformers' outputs."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors(each)


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Give back buffers, gradients and the states of random generators as they were.

    Buffers are exchanged for copies, so that a pass that fails has changed nothing either. An attribute that the pass
    has set to another object gets its old object back. A change inside of an object stays.
    """
    devices = [
        each.index for each in {p.device for p in (*model.parameters(), *model.buffers())} if each.type == "cuda"
    ]
    modules = [each.module for each in named_modules(model)]
    attributes = [(module, dict(module.__dict__)) for module in modules]
    buffers = [(module, dict(module._buffers)) for module in modules]
    copies: dict[int, torch.Tensor] = {}  # buffers that modules share stay shared
    try:
        for module, own in buffers:
            for name, buffer in own.items():
                if buffer is not None:
                    if id(buffer) not in copies:
                        copies[id(buffer)] = buffer.detach().clone()
                    module._buffers[name] = copies[id(buffer)]
        with torch.random.fork_rng(devices):
            yield
    finally:
        for module, before in attributes:
            for name in [each for each in module.__dict__ if each not in before]:
                del module.__dict__[name]
            module.__dict__.update(before)
        for module, own in buffers:
            module._buffers.clear()
            module._buffers.update(own)


# ---- the verdict ----


def course(layers: Sequence[tuple[str, Statistics]]) -> Course:
    """What becomes of the std from layer to layer. Layers of one value say nothing of it."""
    unknown = next((name for name, each in layers if each.non_finite), None)
    if unknown is not None:
        return Course("not finite", unknown, math.nan)
    stds = [(name, each.std) for name, each in layers if each.numel > 1]
    first = next((std for _, std in stds if std > 0.0), 0.0)
    if first == 0.0:
        return Course("no signal", stds[0][0] if stds else None, 0.0)
    ways = [math.log(std / first) if std > 0.0 else -math.inf for _, std in stds]
    end = ways[-1]
    factor, pace = math.exp(end) if end < 700.0 else math.inf, abs(end) * 100.0 / max(1, len(stds) - 1)
    if abs(end) < math.log(_ON_ITS_WAY) or max(abs(end), pace) < math.log(_FACTOR):
        return Course("level", None, factor)
    near = math.copysign(math.log(_ON_ITS_WAY), end)
    # The layer after the last one that is not yet that far.
    at = max(at for at, way in enumerate(ways) if way / near < 1.0) + 1
    return Course("exploding" if end > 0.0 else "vanishing", stds[at][0], factor)


# ---- what is shown ----


def _cells(found: Statistics | None, with_mean: bool) -> tuple[str, ...]:
    if found is None:
        return ("", "") if not with_mean else ("", "", "")
    zeros = f"{round(100.0 * found.zeros / found.numel, 2):g}%" if found.zeros else ""
    return (f"{found.std:.3g}", f"{found.mean:.2g}", zeros) if with_mean else (f"{found.std:.3g}", zeros)


def _record(layer: LayerSignal) -> dict[str, Any]:
    found: dict[str, Any] = {"name": layer.name, "kind": layer.kind}
    for what, held in (("activation", layer.activation), ("gradient", layer.gradient)):
        numbers = None if held is None else {"std": held.std, "mean": held.mean, "zeros": held.zeros / held.numel}
        found[what] = (
            None
            if numbers is None
            else {key: value if math.isfinite(value) else None for key, value in numbers.items()}
        )
    return found


def _curves(trace: Trace) -> list[tuple[str, list[float]]]:
    curves = [("signal", [each.activation.std for each in trace.layers])]
    if trace.gradients is not None:
        backward = [math.nan if each.gradient is None else each.gradient.std for each in trace.layers]
        curves.append(("gradient", backward))
    return curves


def _plotted(traces: Sequence[Trace], axes: Any) -> Any:
    try:
        pyplot = importlib.import_module("matplotlib.pyplot")
    except ImportError:
        if axes is not None:
            raise
        several = len(traces) > 1
        curves = {
            f"{each.name} {what}".strip(): s for each in traces for what, s in _curves(each)[: 1 if several else 2]
        }
        text = text_plot(curves)
        print(text)
        return text
    if axes is None:
        axes = pyplot.subplots(figsize=(7.0, 4.0), layout="constrained")[1]
        axes.set_xlim(0.5, max(len(trace.layers) for trace in traces) + 0.5)
    for trace in traces:
        line = None
        for what, stds in _curves(trace):
            depth = range(1, len(stds) + 1)
            label = f"{trace.name} {what}".strip()
            style = "-" if what == "signal" else "--"
            shown = [each if 0.0 < each < math.inf else math.nan for each in stds]
            (line,) = axes.plot(depth, shown, style, label=label, color=None if line is None else line.get_color())
            _mark_ends(axes, stds, line.get_color())
    axes.set(yscale="log", xlabel="layer", ylabel="std")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    if len(traces) > 1:  # beside the curves, which go everywhere
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    else:
        axes.legend(fontsize="small")
    return axes


def _mark_ends(axes: Any, stds: Sequence[float], color: Any) -> None:
    """Mark where a log scale has no place for a curve: the first zero, and the first infinity or NaN."""
    place = axes.get_xaxis_transform()
    for mark, height, is_out in (
        ("v", 0.02, [each == 0.0 for each in stds]),
        ("^", 0.98, [not each < math.inf for each in stds]),
    ):
        if any(is_out):
            first = is_out.index(True) + 1
            axes.scatter(first, height, marker=mark, color=color, transform=place, zorder=3, clip_on=False)


_MARKS = "*o+x#@%&"


def text_plot(curves: Mapping[str, Sequence[float]], width: int = 64, height: int = 16) -> str:
    """Curves over the layers on a log scale, in characters: a mark for each, and a legend.

    >>> print(text_plot({"signal": [1.0, 0.1, 0.01]}, width=9, height=3))
      1e+00 |*
      1e-01 |    *
      1e-02 |        *
            +---------
             1       3
    * signal
    """
    logs = [
        [math.log10(each) if each > 0.0 and math.isfinite(each) else None for each in stds] for stds in curves.values()
    ]
    known = [each for stds in logs for each in stds if each is not None]
    longest = max((len(stds) for stds in logs), default=0)
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    if high - low < 1.0:  # level curves shall look level
        low, high = (low + high - 1.0) / 2.0, (low + high + 1.0) / 2.0
    grid = [[" "] * width for _ in range(height)]
    for which, stds in enumerate(logs):
        for at, each in enumerate(stds):
            if each is not None:
                column = round(at * (width - 1) / max(1, longest - 1))
                row = round((high - each) / (high - low) * (height - 1))
                grid[row][column] = _MARKS[which % len(_MARKS)]
    lines = []
    for row, cells in enumerate(grid):
        label = f"{10.0 ** (high - (high - low) * row / (height - 1)):.0e}" if row % 5 == 0 or height < 6 else ""
        lines.append(f"{label:>7} |{''.join(cells)}".rstrip())
    lines.append(" " * 8 + "+" + "-" * width)
    lines.append(" " * 9 + f"1{longest:>{width - 1}}")
    lines += [f"{_MARKS[at % len(_MARKS)]} {name}" for at, name in enumerate(curves)]
    return "\n".join(lines)
