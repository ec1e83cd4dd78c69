"""`fastinit demo`: a 1.5-billion-parameter GPT-2 XL, initialised by the usual loop and by fastinit, and its plan.

Then a smaller model that is built with and without `fused()`, and built twice with different numbers of threads; and
how a signal fares in a deep network. All of it takes under 30 seconds on two cores.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from fastinit.audit.fingerprints import fingerprint
from fastinit.audit.signal import text_plot
from fastinit.audit.statistics import statistics as measure
from fastinit.capture.contexts import fused
from fastinit.model import init_model_, plan
from fastinit.schemes.base import Scheme
from fastinit.schemes.named import Normal
from fastinit.schemes.structured import Orthogonal


class Size(NamedTuple):
    layers: int
    width: int
    heads: int
    vocabulary: int
    context: int


GPT2_XL = Size(layers=48, width=1600, heads=25, vocabulary=50257, context=1024)  # Radford et al. 2019, table 2


class Block(nn.Module):
    """A GPT-2 block: attention and MLP, each behind a layer norm."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.ln_1 = nn.LayerNorm(size.width)
        self.qkv = nn.Linear(size.width, 3 * size.width)
        self.proj = nn.Linear(size.width, size.width)
        self.ln_2 = nn.LayerNorm(size.width)
        self.fc = nn.Linear(size.width, 4 * size.width)
        self.fc_proj = nn.Linear(4 * size.width, size.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.ln_1(x)).view(batch, length, 3, self.heads, width // self.heads).unbind(2)
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(attended.transpose(1, 2).reshape(batch, length, width))
        y: torch.Tensor = x + self.fc_proj(nn.functional.gelu(self.fc(self.ln_2(x)), approximate="tanh"))
        return y


class GPT2(nn.Module):
    """GPT-2 from plain torch modules, the output projection tied to the token embedding."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.wte = nn.Embedding(size.vocabulary, size.width)
        self.wpe = nn.Embedding(size.context, size.width)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.ln_f = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, size.vocabulary, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.head(self.ln_f(x))
        return logits


def build(size: Size, dtype: torch.dtype = torch.float32) -> GPT2:
    """The model, allocated but not initialised, so that neither contestant pays for the other's work."""
    with torch.device("meta"):
        model = GPT2(size).to(dtype)
    model = model.to_empty(device="cpu")
    model.head.weight = model.wte.weight  # to_empty unties
    return model


def usual_loop(model: nn.Module) -> None:
    """The loop of a usual training script: torch.nn.init for module after module."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Linear) and module.bias is not None:  # all but the tied head
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)


class LlamaLayer(nn.Module):
    """The parameters of a Llama layer: attention with a quarter as many keys and values, and a gated MLP."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(width)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width // 4, bias=False)
        self.v_proj = nn.Linear(width, width // 4, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.post_attention_layernorm = nn.RMSNorm(width)
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)


class Llama(nn.Module):
    """The parameters of a small Llama, initialised twice as transformers does: by torch's modules, then by its own."""

    def __init__(self, layers: int = 4, width: int = 768, hidden: int = 2048, vocabulary: int = 8000) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(LlamaLayer(width, hidden) for _ in range(layers))
        self.norm = nn.RMSNorm(width)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
        self.lm_head.weight = self.embed_tokens.weight


def build_fused(kind: Callable[[], nn.Module]) -> nn.Module:
    with fused():
        return kind()


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _most_memory(work: Callable[[], object]) -> float:
    """Megabytes that are added at most while `work` runs, what it returns included. NaN where Linux does not tell."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak is now what the process has
        before = _peak()
    except OSError:
        work()
        return math.nan
    kept = work()
    most = _peak() - before
    del kept
    return most


def _peak() -> float:
    """The most megabytes that the process has had since the peak was set back."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def run_construction(kind: Callable[[], nn.Module] = Llama) -> None:
    """Build a model with and without `fused()`, and print times and memory."""
    builds: dict[str, Callable[[], object]] = {
        "as it is": kind,
        "with fastinit.fused()": lambda: build_fused(kind),
    }
    # After this, both find memory that was touched before. The second may find some that the first has left.
    memory = {name: _most_memory(builds[name]) for name in reversed(builds)}
    seconds: dict[str, list[float]] = {name: [] for name in builds}
    for _ in range(3):
        for name, build in builds.items():
            seconds[name].append(_seconds(build))
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    numel = sum(parameter.numel() for parameter in build_fused(kind).parameters())

    print(f"\nA Llama of {numel / 1e6:.0f} million parameters, built from its class (medians of 3, in turns):\n")
    print(f"{'':44}{'seconds':>9}{'MB, most':>10}")
    for name in builds:
        print(f"{name:44}{medians[name]:9.2f}{memory[name]:10.0f}")
    plain, short = medians.values()
    print(f"\nUnder fused() it is built {plain / short:.1f} times as fast, its class unchanged.")


def run_threads(kind: Callable[[], nn.Module] = Llama) -> None:
    """Build a model twice, under one thread and under two, and print the fingerprints of its values."""
    threads = torch.get_num_threads()
    print("\nThe same model, built twice (xavier_uniform, seed 0):\n")
    prints = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            prints.append(fingerprint(init_model_(build_fused(kind), "xavier_uniform", seed=0)))
            print(f"{count} thread{'s' if count > 1 else ' '}  fingerprint {prints[-1]:016x}")
    finally:
        torch.set_num_threads(threads)
    print("Equal, to the bit." if prints[0] == prints[1] else "Different: this is a bug.")


@torch.no_grad()
def run_signal(layers: int = 30, width: int = 256) -> None:
    """Plot how far a signal comes in a deep network of linear maps and tanh, by scheme."""
    maps = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
    batch = torch.randn(64, width, generator=torch.Generator().manual_seed(0))
    schemes: dict[str, str | Scheme] = {
        "Normal(std=0.05)": Normal(std=0.05),
        "xavier_uniform": "xavier_uniform",
        "orthogonal, gain 5/3": Orthogonal(gain=5.0 / 3.0),
    }
    curves: dict[str, list[float]] = {}
    for name, scheme in schemes.items():
        init_model_(maps, scheme, seed=0)
        x, curves[name] = batch, []
        for each in maps:
            x = torch.tanh(each(x))
            curves[name].append(float(x.std()))
    print(f"\nThe signal in {layers} layers of width {width} with tanh: its std behind each layer:\n")
    print(text_plot(curves))


_HEAD, _WIDTH = 8, 150  # lines of the plan that are shown, and their columns


def run(size: Size = GPT2_XL) -> None:
    """Run all parts, one after the other. Each can be run alone."""
    run_speed(size)
    run_construction()
    run_threads()
    run_signal()


def run_speed(size: Size = GPT2_XL) -> None:
    """Build the model, initialise it both ways, and print times, standard deviations and the head of the plan."""
    model = build(size)
    parameters = list(model.parameters())
    numel = sum(parameter.numel() for parameter in parameters)
    gigabytes = sum(parameter.numel() * parameter.element_size() for parameter in parameters) / 1e9
    print(f"GPT-2 XL from plain torch modules: {len(parameters)} tensors, {numel / 1e9:.2f} billion parameters,")
    print(f"{gigabytes:.1f} GB of float32, {torch.get_num_threads()} threads\n")

    fresh = _seconds(lambda: init_model_(model, "xavier_uniform", seed=0))
    loop = _seconds(lambda: usual_loop(model))

    def fill_all() -> None:
        with torch.no_grad():
            for parameter in parameters:
                parameter.fill_(0.5)

    limit = min(_seconds(fill_all) for _ in range(2))
    fast = min(_seconds(lambda: init_model_(model, "xavier_uniform", seed=0)) for _ in range(2))

    print(f"{'':44}{'seconds':>9}{'GB/s':>8}")
    print(f"{'torch.nn.init, the usual loop':44}{loop:9.2f}{gigabytes / loop:8.1f}")
    print(f"{'fastinit.init_model_(model, xavier_uniform)':44}{fast:9.2f}{gigabytes / fast:8.1f}")
    print(f"{'the first time, with the page faults':44}{fresh:9.2f}{gigabytes / fresh:8.1f}")
    print(f"{'tensor.fill_, the memory limit':44}{limit:9.2f}{gigabytes / limit:8.1f}")
    print(f"\nfastinit is {loop / fast:.1f} times as fast as the loop (best of 2 against 1, warm memory).\n")

    print(f"{'parameter':24}{'shape':>14}{'wanted std':>13}{'measured':>13}{'deviation':>11}")
    planned = plan(model, "xavier_uniform", seed=0)
    wanted = {row.name: row for row in planned.rows}
    last = size.layers - 1
    for name in ("wte.weight", "blocks.0.qkv.weight", "blocks.0.fc.weight", f"blocks.{last}.fc_proj.weight"):
        row = wanted[name]
        assert row.distribution is not None
        std = row.distribution.std()
        measured = measure(row.tensor.detach()).std
        shape = "x".join(map(str, row.tensor.shape))
        print(f"{name:24}{shape:>14}{std:13.6f}{measured:13.6f}{measured / std - 1.0:+11.2%}")

    print("\nThe head of its plan, in which equal layers are folded (print(fastinit.plan(model, ...))):\n")
    lines = str(planned).split("\n")
    for line in lines[:_HEAD]:
        print(line if len(line) <= _WIDTH else line[: _WIDTH - 1] + "…")
    print(f"... and {len(lines) - _HEAD} lines more")
