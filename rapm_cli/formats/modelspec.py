"""Header metadata for other programs: Stability's ModelSpec.

Source: https://github.com/Stability-AI/ModelSpec, version 1.0.1.
"""

import json
from collections.abc import Mapping
from typing import Any

from rapm_cli.formats.recipe import RECIPE_KEY, shown_size
from rapm_cli.formats.safetensors_writer import DIGEST_PLACEHOLDER
from rapm_cli.formats.sampling_advice import usage_hint

ARCHITECTURES = {True: "stable-diffusion-xl-v1-base", False: "stable-diffusion-v1"}  # by is_xl
SGM = "https://github.com/Stability-AI/generative-models"


def training_method(recipe: Mapping[str, Any]) -> str:
    """Return the name of the distillation method in capitals; empty where rapm did not train the model."""
    return str(recipe["training"].get("method", "rapm")).upper() if "training" in recipe else ""


def loras_in_words(recipe: Mapping[str, Any]) -> str:
    """Return the user's LoRAs that a student was distilled on, each with its weight; empty without any."""
    found = [*recipe.get("base_loras", []), *recipe.get("absorbed", [])]
    return ", ".join(f"{one['name']} at {one['weight']:g}" for one in found)


def model_title(recipe: Mapping[str, Any]) -> str:
    """Return the title of a student: its base with the user's LoRAs, number of steps and method."""
    steps, method = recipe.get("sampler", {}).get("steps"), training_method(recipe)
    name = " with ".join(filter(None, (str(recipe.get("base", "few-step model")), loras_in_words(recipe))))
    return name + (f" in {steps} steps" if steps else "") + (f" ({method})" if method else "")


def model_spec(
    recipe: Mapping[str, Any], *, is_xl: bool, is_lora: bool, implementation: str, size: tuple[int, int]
) -> dict[str, str]:
    """Return the header metadata of a LoRA or of a whole model.

    Args:
        recipe: Settings of training and sampling.
        is_xl: True where the base is an SDXL; False for a Stable Diffusion 1.5.
        is_lora: True for a LoRA; False for a whole model.
        implementation: Code base whose names the tensors have: "diffusers", or `SGM`.
        size: Width and height of the base's images, in pixels.
    """
    spec = {
        "sai_model_spec": "1.0.1",
        "architecture": ARCHITECTURES[is_xl] + ("/lora" if is_lora else ""),
        "implementation": implementation,
        "title": model_title(recipe),
        "description": f"Distilled by {method} with rapm"
        if (method := training_method(recipe))
        else "Exported by rapm",
        "resolution": "{}x{}".format(*shown_size(recipe, size)),
        "usage_hint": usage_hint(recipe),
        "hash_sha256": f"0x{DIGEST_PLACEHOLDER}",
    }
    named = {f"modelspec.{name}": value for name, value in spec.items() if value}
    return {"format": "pt", RECIPE_KEY: json.dumps(recipe, sort_keys=True), **named}
