"""What a LoRA file says of itself in its header; read without torch."""

import json
import math
from pathlib import Path
from typing import Any

from rapm_cli.core.errors import InputError

PREFIX = "unet."
RECIPE_KEY = "rapm_recipe"
GROUPS = ("sampler", "teacher", "training")  # of a recipe
ADAPTER_KEY = "lora_adapter_metadata"  # where diffusers looks for rank and alpha


def lora_facts(path: Path, metadata: dict[str, str], names: list[str]) -> tuple[int, float, dict[str, Any]]:
    """Rank, alpha and recipe from a header.

    Raises:
        InputError: The file holds no LoRA in diffusers' form, or does not say its rank and alpha.
    """
    if not names or not all(name.startswith(PREFIX) and ".lora_" in name for name in names):
        raise InputError(f"{path} holds no LoRA in diffusers' form", "give a file that rapm distill or export wrote")
    try:
        adapter = json.loads(metadata[ADAPTER_KEY])
        rank, alpha = int(adapter[PREFIX + "r"]), float(adapter[PREFIX + "lora_alpha"])
        recipe = json.loads(metadata.get(RECIPE_KEY, "{}"))
        is_sound = rank >= 1 and 0 < alpha < math.inf and isinstance(recipe, dict)
        is_sound = is_sound and all(isinstance(recipe.get(group, {}), dict) for group in GROUPS)
    except (KeyError, ValueError, TypeError, OverflowError):
        is_sound = False
    if not is_sound:
        raise InputError(f"{path} does not say its rank and alpha as rapm writes them", "give a file that rapm wrote")
    ups, downs = ({name.split(".lora_")[0] for name in names if f".lora_{half}." in name} for half in "BA")
    if ups != downs:
        raise InputError(f"{path} lacks half of {min(ups ^ downs)}", "give a file that is whole")
    return rank, alpha, recipe
