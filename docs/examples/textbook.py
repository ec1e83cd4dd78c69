"""The textbook experiments of docs/SIGNAL.md: python docs/examples/textbook.py [folder for the pictures]

Numbers are printed. Pictures are small SVGs that follow the reader's light or dark scheme; they need no library.
"""

from __future__ import annotations

import html
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

import fastinit

LAYERS, WIDTH, BATCH = 100, 256, 64
Curves = dict[str, tuple[Sequence[float], Sequence[float]]]  # the name of each, its x and its y


# ---- the experiments ----


def network(activation: type[nn.Module]) -> nn.Sequential:
    """In float64: the signal shall explode without overflowing."""
    layers = (nn.Sequential(nn.Linear(WIDTH, WIDTH, dtype=torch.float64), activation()) for _ in range(LAYERS))
    return nn.Sequential(*layers)


def hundred_layers(activation: type[nn.Module]) -> tuple[Curves, dict[str, str]]:
    """std after every layer under three schemes, and the verdict on each.

    For ReLU, of the activations; for tanh, which bounds these, of the gradient with respect to them.
    """
    batch = torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gain = fastinit.calculate_gain(activation.__name__.lower())
    schemes = {
        "std 1": fastinit.Normal(std=1.0),
        "std 0.01": fastinit.Normal(std=0.01),
        f"xavier, gain {gain:.3g}": fastinit.scheme("xavier_normal", gain=gain),
    }
    found = fastinit.compare(lambda: network(activation), schemes, batch, layers="*.1")
    curves: Curves = {}
    for name, trace in found.traces.items():
        measured = [layer.gradient if activation is nn.Tanh else layer.activation for layer in trace.layers]
        curves[name] = (range(1, LAYERS + 1), [each.std for each in measured if each is not None])
    return curves, {name: "; ".join(trace.verdicts()) for name, trace in found.traces.items()}


def products() -> Curves:
    """The largest entry of a product of n random 4 x 4 matrices: N(0, 1), N(0, 1 / 4) and orthogonal ones."""
    makers: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "N(0, 1)": lambda matrix: fastinit.normal_(matrix, generator=generator),
        "N(0, 1/4)": lambda matrix: fastinit.normal_(matrix, std=0.5, generator=generator),
        "orthogonal": lambda matrix: fastinit.orthogonal_(matrix, generator=generator),
    }
    curves: Curves = {}
    for name, make in makers.items():
        generator = torch.Generator().manual_seed(0)
        product, largest = torch.eye(4, dtype=torch.float64), []
        for _ in range(100):
            product = make(torch.empty(4, 4, dtype=torch.float64)) @ product
            largest.append(float(product.abs().max()))
        curves[name] = (range(1, 101), largest)
    return curves


def sigmoid() -> Curves:
    """The sigmoid and its derivative, by autograd."""
    x = torch.linspace(-8.0, 8.0, 161, dtype=torch.float64, requires_grad=True)
    y = x.sigmoid()
    (slope,) = torch.autograd.grad(y.sum(), x)
    at = x.detach().tolist()
    return {"sigmoid": (at, y.detach().tolist()), "its derivative": (at, slope.tolist())}


def equal_units(steps: int = 60) -> Curves:
    """How far apart the units of a hidden layer are while it learns y = |x_1| - |x_2|: constant and drawn weights."""
    data = torch.randn(256, 2, generator=torch.Generator().manual_seed(0))
    wanted = (data[:, :1].abs() - data[:, 1:].abs()).detach()
    curves: Curves = {}
    for name, scheme in {"constant 0.5": fastinit.Constant(0.5), "xavier_uniform": "xavier_uniform"}.items():
        model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
        fastinit.init_model_(model, scheme, seed=0)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        spreads = []
        for _ in range(steps):
            spreads.append(float(model[0].weight.detach().std(dim=0).mean()))
            optimiser.zero_grad()
            nn.functional.mse_loss(model(data), wanted).backward()
            optimiser.step()
        curves[name] = (range(steps), spreads)
    return curves


def measured_gain(f: Callable[[torch.Tensor], torch.Tensor], samples: int = 2**20) -> float:
    """1 / sqrt(E f(z)^2) over normal z: the factor on the std of the weights that makes up for one activation."""
    z = torch.randn(samples, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return float(f(z).square().mean().rsqrt())


def settled(gain: float, layers: int = 50) -> float:
    """The std at which a tanh network of this gain settles."""
    model = nn.Sequential(
        *[nn.Sequential(nn.Linear(WIDTH, WIDTH, dtype=torch.float64), nn.Tanh()) for _ in range(layers)]
    )
    fastinit.init_model_(model, fastinit.scheme("xavier_normal", gain=gain), seed=0)
    batch = torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return fastinit.trace_signal(model, batch).layers[-1].activation.std


def tanh_gains() -> Curves:
    gains = (0.9, 1.0, 1.1, 1.25, 1.4, 5.0 / 3.0, 2.0)
    return {"std after 50 layers": (gains, [settled(gain) for gain in gains])}


# ---- the pictures ----

_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 560, 300, 62, 34, 14, 40
# Blue, orange and green that the colour-blind can tell apart, on both backgrounds (Okabe, Ito 2008).
_STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #333 } .title { font-size: 14px; font-weight: 600 }
  .grid { stroke: #0002 } path { fill: none; stroke-width: 2 } .back { fill: #fff }
  .c0 { stroke: #0072b2 } .c1 { stroke: #d55e00 } .c2 { stroke: #009e73 }
  @media (prefers-color-scheme: dark) {
    text { fill: #ddd } .grid { stroke: #fff3 } .back { fill: #161b22 }
    .c0 { stroke: #56b4e9 } .c1 { stroke: #e69f00 } .c2 { stroke: #2fc79a }
  }
"""


def picture(title: str, across: str, up: str, curves: Curves, log: bool) -> str:
    """An SVG of the curves, with a legend above them."""

    def height(y: float) -> float:
        return math.log10(y) if log else y

    points = {
        name: [(x, height(y)) for x, y in zip(*of, strict=True) if math.isfinite(y) and (y > 0.0 or not log)]
        for name, of in curves.items()
    }
    xs = [x for of in points.values() for x, _ in of]
    ys = [y for of in points.values() for _, y in of]
    left, right, low, high = min(xs), max(xs), min(ys), max(ys)
    if high - low < (1.0 if log else 1e-9):
        low, high = (low + high - 1.0) / 2.0, (low + high + 1.0) / 2.0

    def at(x: float, y: float) -> tuple[float, float]:
        across_share, up_share = (x - left) / (right - left), (y - low) / (high - low)
        return (
            _LEFT + across_share * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - up_share * (_HEIGHT - _TOP - _BOTTOM - 20),
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{html.escape(title)}">',
        f"<style>{_STYLE}</style>",
        f'<rect class="back" width="{_WIDTH}" height="{_HEIGHT}" rx="6"/>',
        f'<text class="title" x="{_LEFT}" y="22">{html.escape(title)}</text>',
    ]
    for tick in _ticks(low, high):
        x, y = at(left, tick)
        label = f"10{_raised(round(tick))}" if log else f"{tick:g}"
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for tick in _ticks(left, right):
        x, y = at(tick, low)
        parts.append(f'<text x="{x:.1f}" y="{y + 17:.1f}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end">{html.escape(across)}</text>')
    parts.append(f'<text x="{_LEFT}" y="{_HEIGHT - 6}">{html.escape(up)}, upwards</text>')
    place = _LEFT
    for which, (name, of) in enumerate(points.items()):
        line = " ".join(f"{'M' if at_ == 0 else 'L'}{x:.1f} {y:.1f}" for at_, (x, y) in enumerate(at(*p) for p in of))
        parts.append(f'<path class="c{which}" d="{line}"/>')
        parts.append(f'<path class="c{which}" d="M{place} 38h16"/>')
        parts.append(f'<text x="{place + 21}" y="42">{html.escape(name)}</text>')
        place += 45 + 7 * len(name)
    return "\n".join((*parts, "</svg>\n"))


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers between two."""
    step = 10.0 ** math.floor(math.log10((high - low) / 3.0))
    step *= next(factor for factor in (5.0, 2.0, 1.0) if (high - low) / (step * factor) >= 3.0)
    return [each * step for each in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _raised(number: int) -> str:
    return str(number).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def main(folder: str | None = None) -> None:
    """Print what the experiments give, and write the pictures where a folder is given."""
    pictures: dict[str, str] = {}
    for activation in (nn.ReLU, nn.Tanh):
        name = activation.__name__
        curves, verdicts = hundred_layers(activation)
        print(f"{name}, {LAYERS} layers of {WIDTH}")
        for scheme, verdict in verdicts.items():
            print(f"  {scheme:20} {verdict}")
        title = f"{LAYERS} layers of {WIDTH} units with {name}"
        what = "std of the gradient" if activation is nn.Tanh else "std of the activations"
        pictures[f"hundred_{name.lower()}"] = picture(title, "layer", what, curves, log=True)
    curves = products()
    print("largest entry of a product of 100 random 4 x 4 matrices")
    for kind, (_, largest) in curves.items():
        print(f"  {kind:20} {largest[-1]:.2g}")
    title = "The product of n random 4 × 4 matrices"
    pictures["products"] = picture(title, "n", "largest entry", curves, log=True)
    curves = sigmoid()
    slopes = curves["its derivative"][1]
    print(f"sigmoid: the derivative is at most {max(slopes):.3g}, and {slopes[0]:.2g} at -8")
    pictures["sigmoid"] = picture("The sigmoid's gradient", "x", "value", curves, log=False)
    curves = equal_units()
    print("std over the units of a hidden layer after 60 steps")
    for kind, (_, spreads) in curves.items():
        print(f"  {kind:20} {spreads[-1]:.3g}")
    title = "Units that begin equal stay equal"
    pictures["equal_units"] = picture(title, "step", "std over the units", curves, log=False)
    given, measured = fastinit.calculate_gain("tanh"), measured_gain(torch.tanh)
    print(f"tanh: calculate_gain gives {given:.4g}, 1 / sqrt(E tanh(z)^2) is {measured:.4g}")
    curves = tanh_gains()
    title = "Where a tanh network settles"
    pictures["tanh_gain"] = picture(title, "gain of xavier_normal", "std after 50 layers", curves, log=False)
    for file_name, text in pictures.items() if folder is not None else ():
        (Path(folder or ".") / f"{file_name}.svg").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(*sys.argv[1:2])
