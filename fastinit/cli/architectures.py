"""Published models by name: their shapes as plain torch modules, with the names of transformers' parameters.

`fastinit plan` and `fastinit init` take these names. A model has no forward pass; it is built on the meta device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import nn


class Conv1D(nn.Module):
    """GPT-2's linear map, with its weight as (inputs, outputs)."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))


def _linear(inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=bias)


class GPT2LMHeadModel(nn.Module):
    """The parameters of GPT-2; the output projection is tied to the token embedding."""

    def __init__(self, layers: int, width: int, vocabulary: int = 50257, context: int = 1024) -> None:
        super().__init__()
        blocks = nn.ModuleList()
        for _ in range(layers):
            block = nn.Module()
            block.ln_1 = nn.LayerNorm(width)
            block.attn = nn.Module()
            block.attn.c_attn = Conv1D(3 * width, width)
            block.attn.c_proj = Conv1D(width, width)
            block.ln_2 = nn.LayerNorm(width)
            block.mlp = nn.Module()
            block.mlp.c_fc = Conv1D(4 * width, width)
            block.mlp.c_proj = Conv1D(width, 4 * width)
            blocks.append(block)
        self.transformer = nn.Module()
        self.transformer.wte = nn.Embedding(vocabulary, width)
        self.transformer.wpe = nn.Embedding(context, width)
        self.transformer.h = blocks
        self.transformer.ln_f = nn.LayerNorm(width)
        self.lm_head = _linear(width, vocabulary)
        self.lm_head.weight = self.transformer.wte.weight


class LlamaForCausalLM(nn.Module):
    """The parameters of Llama, and of Mistral and Qwen2, which has biases for queries, keys and values."""

    def __init__(
        self,
        layers: int,
        width: int,
        hidden: int,
        heads: int,
        kv_heads: int,
        vocabulary: int,
        *,
        head_width: int | None = None,
        tied: bool = False,
        qkv_bias: bool = False,
    ) -> None:
        super().__init__()
        each = head_width or width // heads
        stack = nn.ModuleList()
        for _ in range(layers):
            layer = nn.Module()
            layer.self_attn = nn.Module()
            layer.self_attn.q_proj = _linear(width, heads * each, qkv_bias)
            layer.self_attn.k_proj = _linear(width, kv_heads * each, qkv_bias)
            layer.self_attn.v_proj = _linear(width, kv_heads * each, qkv_bias)
            layer.self_attn.o_proj = _linear(heads * each, width)
            layer.mlp = nn.Module()
            layer.mlp.gate_proj = _linear(width, hidden)
            layer.mlp.up_proj = _linear(width, hidden)
            layer.mlp.down_proj = _linear(hidden, width)
            layer.input_layernorm = nn.RMSNorm(width)
            layer.post_attention_layernorm = nn.RMSNorm(width)
            stack.append(layer)
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(vocabulary, width)
        self.model.layers = stack
        self.model.norm = nn.RMSNorm(width)
        self.lm_head = _linear(width, vocabulary)
        if tied:
            self.lm_head.weight = self.model.embed_tokens.weight


class Architecture(NamedTuple):
    """A published model: how its shapes are built, the preset that initialises it, and where they were published."""

    build: Callable[[], nn.Module]
    preset: str
    source: str


_GPT2 = "Radford et al. 2019, table 2"
_LLAMA2 = "Touvron et al. 2023, Llama 2; its config.json"
_LLAMA3 = "Grattafiori et al. 2024, table 3"
_LLAMA32 = "Meta's model card of Llama 3.2; its config.json"
_QWEN25 = "Qwen Team 2024, Qwen2.5 technical report, table 1; its config.json"
_llama = LlamaForCausalLM

ARCHITECTURES = {
    "gpt2": Architecture(partial(GPT2LMHeadModel, 12, 768), "gpt2", _GPT2),
    "gpt2-medium": Architecture(partial(GPT2LMHeadModel, 24, 1024), "gpt2", _GPT2),
    "gpt2-large": Architecture(partial(GPT2LMHeadModel, 36, 1280), "gpt2", _GPT2),
    "gpt2-xl": Architecture(partial(GPT2LMHeadModel, 48, 1600), "gpt2", _GPT2),
    "llama-2-7b": Architecture(partial(_llama, 32, 4096, 11008, 32, 32, 32000), "llama", _LLAMA2),
    "llama-2-13b": Architecture(partial(_llama, 40, 5120, 13824, 40, 40, 32000), "llama", _LLAMA2),
    "llama-3-8b": Architecture(partial(_llama, 32, 4096, 14336, 32, 8, 128256), "llama", _LLAMA3),
    "llama-3-70b": Architecture(partial(_llama, 80, 8192, 28672, 64, 8, 128256), "llama", _LLAMA3),
    "llama-3.1-405b": Architecture(partial(_llama, 126, 16384, 53248, 128, 8, 128256), "llama", _LLAMA3),
    "llama-3.2-1b": Architecture(
        partial(_llama, 16, 2048, 8192, 32, 8, 128256, head_width=64, tied=True), "llama", _LLAMA32
    ),
    "llama-3.2-3b": Architecture(
        partial(_llama, 28, 3072, 8192, 24, 8, 128256, head_width=128, tied=True), "llama", _LLAMA32
    ),
    "mistral-7b": Architecture(
        partial(_llama, 32, 4096, 14336, 32, 8, 32000), "llama", "Jiang et al. 2023, Mistral 7B, table 1"
    ),
    "qwen2.5-0.5b": Architecture(
        partial(_llama, 24, 896, 4864, 14, 2, 151936, tied=True, qkv_bias=True), "llama", _QWEN25
    ),
    "qwen2.5-7b": Architecture(partial(_llama, 28, 3584, 18944, 28, 4, 152064, qkv_bias=True), "llama", _QWEN25),
}
