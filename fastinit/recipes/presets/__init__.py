"""How published models are initialised. Every preset is a recipe for a model, whose sizes and config it looks at."""

from fastinit.recipes.presets.by_name import as_recipe, preset, preset_names
from fastinit.recipes.presets.diffusion import controlnet, dit, unet
from fastinit.recipes.presets.language import (
    bert,
    deepseek_v3,
    gpt2,
    llama,
    llama_depth,
    mixtral,
    modded_nanogpt,
    nanochat,
    nanogpt,
    qwen_moe,
    t5,
)
from fastinit.recipes.presets.multimodal import clip, siglip, whisper
from fastinit.recipes.presets.recurrent import mamba, mamba2, rwkv7
from fastinit.recipes.presets.vision import LAST_NORMS, convnext, dcgan, deit, dinov2, resnet, siren, swin, vit

__all__ = [
    "LAST_NORMS",
    "as_recipe",
    "bert",
    "clip",
    "controlnet",
    "convnext",
    "dcgan",
    "deepseek_v3",
    "deit",
    "dinov2",
    "dit",
    "gpt2",
    "llama",
    "llama_depth",
    "mamba",
    "mamba2",
    "mixtral",
    "modded_nanogpt",
    "nanochat",
    "nanogpt",
    "preset",
    "preset_names",
    "qwen_moe",
    "resnet",
    "rwkv7",
    "siglip",
    "siren",
    "swin",
    "t5",
    "unet",
    "vit",
    "whisper",
]
