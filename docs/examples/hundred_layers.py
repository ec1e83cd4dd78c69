"""A hundred layers of 256 units: what becomes of the signal, and of the gradient, under four initialisations.

The experiment of Glorot, Bengio 2010 and He et al. 2015, as textbooks tell it: python docs/examples/hundred_layers.py
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

import fastinit

LAYERS, WIDTH, BATCH = 100, 256, 512


class Outcome(NamedTuple):
    """Standard deviations of the activations after every layer and of the gradient before every layer; the share of
    the last activations beyond 0.99 in absolute value."""

    signal: list[float]
    gradient: list[float]
    saturated: float


def network(activation: type[nn.Module]) -> nn.Sequential:
    """A hundred times linear and activation, in float64: the signal shall explode without overflowing."""
    layers = (nn.Sequential(nn.Linear(WIDTH, WIDTH, dtype=torch.float64), activation()) for _ in range(LAYERS))
    return nn.Sequential(*layers)


def propagate(model: nn.Sequential, seed: int = 0) -> Outcome:
    """Send standard normal values through, and a standard normal gradient back."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCH, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)
    activations = [x]
    for layer in model:
        activations.append(layer(activations[-1]))
    last = activations[-1]
    gradients = torch.autograd.grad(last, activations[:-1], torch.randn(last.shape, generator=generator).double())
    return Outcome(
        [each.std().item() for each in activations[1:]],
        [each.std().item() for each in gradients],
        (last.abs() > 0.99).double().mean().item(),
    )


SCHEMES = {
    "relu": {
        "normal, std 1": fastinit.Normal(std=1.0),
        "normal, std 0.01": fastinit.Normal(std=0.01),
        "kaiming_normal": fastinit.scheme("kaiming_normal", nonlinearity="relu"),
        "xavier_normal, gain sqrt(2)": fastinit.scheme("xavier_normal", gain=fastinit.calculate_gain("relu")),
    },
    "tanh": {
        "normal, std 1": fastinit.Normal(std=1.0),
        "normal, std 0.01": fastinit.Normal(std=0.01),
        "kaiming_normal": fastinit.scheme("kaiming_normal", nonlinearity="tanh"),
        "xavier_normal, gain 5/3": fastinit.scheme("xavier_normal", gain=fastinit.calculate_gain("tanh")),
    },
}
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


def main() -> None:
    """Print a table for each activation."""
    for activation, schemes in SCHEMES.items():
        model = network(ACTIVATIONS[activation])
        beyond = ("beyond", "0.99") if activation == "tanh" else ("", "")
        print(f"\n{activation:30}{'signal after layer':>34}{'gradient':>11}{beyond[0]:>9}".rstrip())
        print(f"{'':30}{1:>10}{10:>12}{100:>12}{'at layer 1':>11}{beyond[1]:>9}".rstrip())
        for name, scheme in schemes.items():
            outcome = propagate(fastinit.init_model_(model, scheme, seed=0))
            first, tenth, last = (outcome.signal[layer - 1] for layer in (1, 10, 100))
            beyond = f"{outcome.saturated:9.0%}" if activation == "tanh" else ""
            print(f"{name:30}{first:10.2e}{tenth:12.2e}{last:12.2e}{outcome.gradient[0]:11.1e}{beyond}")


if __name__ == "__main__":
    main()
