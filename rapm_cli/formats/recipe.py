"""What a LoRA file says of itself in its header; read without torch."""

import json
from pathlib import Path
from typing import Any

from rapm_cli.core.errors import InputError

PREFIX = "unet."
RECIPE_KEY = "rapm_recipe"
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
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path} does not say its rank and alpha", "give a file that rapm wrote") from error
    return rank, alpha, recipe
