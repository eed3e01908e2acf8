"""What a file's header says of it to programs that are not ours: Stability's ModelSpec.

Source: https://github.com/Stability-AI/ModelSpec, version 1.0.1.
"""

import json
from collections.abc import Mapping
from typing import Any

from rapm_cli.formats.recipe import RECIPE_KEY
from rapm_cli.formats.stream import DIGEST

ARCHITECTURES = {True: "stable-diffusion-xl-v1-base", False: "stable-diffusion-v1"}  # by whether it is an SDXL
SGM = "https://github.com/Stability-AI/generative-models"


def usage_hint(recipe: Mapping[str, Any]) -> str:
    """How a student is sampled, in words, of a few-step model the most needed ones; empty where it is not said."""
    sampler = recipe.get("sampler", {})
    if not sampler:
        return ""
    steps = sampler.get("steps", 4)
    hint = f"{steps} steps, CFG scale 1, {sampler.get('scheduler', 'DDIM')}"
    if spacing := sampler.get("timestep_spacing"):
        hint += f" with {spacing} timesteps"
    if times := sampler.get("timesteps"):
        hint += f" {', '.join(map(str, times))}"
    return hint


def method_of(recipe: Mapping[str, Any]) -> str:
    """By which method rapm trained it; empty where rapm did not."""
    return str(recipe["training"].get("method", "rapm")).upper() if "training" in recipe else ""


def title(recipe: Mapping[str, Any]) -> str:
    """What a student is called."""
    steps, method = recipe.get("sampler", {}).get("steps"), method_of(recipe)
    name = str(recipe.get("base", "few-step model"))
    return name + (f" in {steps} steps" if steps else "") + (f" ({method})" if method else "")


def model_spec(
    recipe: Mapping[str, Any], *, is_xl: bool, is_lora: bool, implementation: str, side_px: int
) -> dict[str, str]:
    """The header of a LoRA or of a whole model.

    Args:
        recipe: How it was made and is sampled.
        is_xl: Whether its base is an SDXL; else it is a Stable Diffusion 1.5.
        is_lora: Whether it is a LoRA.
        implementation: Whose names its tensors have: "diffusers", or `SGM`.
        side_px: Width and height of its pictures.
    """
    spec = {
        "sai_model_spec": "1.0.1",
        "architecture": ARCHITECTURES[is_xl] + ("/lora" if is_lora else ""),
        "implementation": implementation,
        "title": title(recipe),
        "description": f"Distilled by {method} with rapm" if (method := method_of(recipe)) else "Exported by rapm",
        "resolution": f"{side_px}x{side_px}",
        "usage_hint": usage_hint(recipe),
        "hash_sha256": f"0x{DIGEST}",
    }
    named = {f"modelspec.{name}": value for name, value in spec.items() if value}
    return {"format": "pt", RECIPE_KEY: json.dumps(recipe, sort_keys=True), **named}
