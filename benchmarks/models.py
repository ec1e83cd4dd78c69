"""Parameter shapes of real models, for the benchmarks: (name, shape) in the order of named_parameters()."""

from __future__ import annotations

from typing import NamedTuple

import torch

Shapes = list[tuple[str, tuple[int, ...]]]


def gpt2_xl() -> Shapes:
    """1.56 billion parameters in 580 tensors; torch's layout of linear layers (Radford et al. 2019, table 2)."""
    width, vocabulary, context = 1600, 50257, 1024
    shapes: Shapes = [("wte.weight", (vocabulary, width)), ("wpe.weight", (context, width))]
    for layer in range(48):
        block = f"h.{layer}."
        shapes += [(block + "ln_1.weight", (width,)), (block + "ln_1.bias", (width,))]
        shapes += [(block + "attn.c_attn.weight", (3 * width, width)), (block + "attn.c_attn.bias", (3 * width,))]
        shapes += [(block + "attn.c_proj.weight", (width, width)), (block + "attn.c_proj.bias", (width,))]
        shapes += [(block + "ln_2.weight", (width,)), (block + "ln_2.bias", (width,))]
        shapes += [(block + "mlp.c_fc.weight", (4 * width, width)), (block + "mlp.c_fc.bias", (4 * width,))]
        shapes += [(block + "mlp.c_proj.weight", (width, 4 * width)), (block + "mlp.c_proj.bias", (width,))]
    return [*shapes, ("ln_f.weight", (width,)), ("ln_f.bias", (width,))]


def llama_3_2_1b() -> Shapes:
    """1.24 billion parameters in 146 tensors, embeddings tied (Llama 3.2 model card: 16 layers, 8 key-value heads)."""
    return _llama(16, 2048, 8192, kv=512)


def llama_3_8b() -> Shapes:
    """8.03 billion parameters in 291 tensors (Llama 3 model card: 32 layers, 8 key-value heads, embeddings untied)."""
    return [*_llama(32, 4096, 14336, kv=1024), ("lm_head.weight", (128256, 4096))]


def _llama(layers: int, width: int, hidden: int, *, kv: int) -> Shapes:
    shapes: Shapes = [("model.embed_tokens.weight", (128256, width))]
    for layer in range(layers):
        block = f"model.layers.{layer}."
        shapes += [(block + "self_attn.q_proj.weight", (width, width))]
        shapes += [(block + "self_attn.k_proj.weight", (kv, width)), (block + "self_attn.v_proj.weight", (kv, width))]
        shapes += [(block + "self_attn.o_proj.weight", (width, width))]
        shapes += [(block + "mlp.gate_proj.weight", (hidden, width)), (block + "mlp.up_proj.weight", (hidden, width))]
        shapes += [(block + "mlp.down_proj.weight", (width, hidden))]
        shapes += [(block + "input_layernorm.weight", (width,)), (block + "post_attention_layernorm.weight", (width,))]
    return [*shapes, ("model.norm.weight", (width,))]


class Leaf(torch.nn.Module):
    """Holds the parameters of one layer."""


class LeafLayerNorm(Leaf):
    """A normalisation layer, recognised by its name's ending."""


class Allocated(NamedTuple):
    model: torch.nn.Module
    parameters: list[torch.nn.Parameter]


def allocate(shapes: Shapes, dtype: torch.dtype) -> Allocated:
    """A model with these parameters in fresh, untouched memory."""
    model = torch.nn.Module()
    for name, shape in shapes:
        *path, own_name = name.split(".")
        module = model
        for part in path:
            if part not in module._modules:
                is_norm = part == path[-1] and (part.startswith("ln_") or part.endswith("norm"))
                module.add_module(part, LeafLayerNorm() if is_norm else Leaf())
            module = module._modules[part]  # type: ignore[assignment]
        module.register_parameter(own_name, torch.nn.Parameter(torch.empty(shape, dtype=dtype)))
    return Allocated(model, list(model.parameters()))
