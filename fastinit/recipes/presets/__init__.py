"""How published models are initialised. Every preset is a recipe for a model, whose sizes and config it looks at."""

from fastinit.recipes.presets.by_name import as_recipe, preset, preset_names
from fastinit.recipes.presets.language import bert, gpt2, llama, llama_depth, t5
from fastinit.recipes.presets.recurrent import mamba
from fastinit.recipes.presets.vision import LAST_NORMS, convnext, dcgan, deit, dinov2, resnet, siren, swin, vit

__all__ = [
    "LAST_NORMS",
    "as_recipe",
    "bert",
    "convnext",
    "dcgan",
    "deit",
    "dinov2",
    "gpt2",
    "llama",
    "llama_depth",
    "mamba",
    "preset",
    "preset_names",
    "resnet",
    "siren",
    "swin",
    "t5",
    "vit",
]
