"""How published models are initialised. Every preset is a recipe for a model, whose sizes and config it looks at."""

from fastinit.recipes.presets.by_name import as_recipe, preset, preset_names
from fastinit.recipes.presets.language import bert, gpt2, llama, llama_depth, t5
from fastinit.recipes.presets.recurrent import mamba
from fastinit.recipes.presets.vision import LAST_NORMS, dcgan, resnet, vit

__all__ = [
    "LAST_NORMS",
    "as_recipe",
    "bert",
    "dcgan",
    "gpt2",
    "llama",
    "llama_depth",
    "mamba",
    "preset",
    "preset_names",
    "resnet",
    "t5",
    "vit",
]
