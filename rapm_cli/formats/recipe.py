"""The recipe, rank and alpha in a LoRA's header, read without torch."""

import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rapm_cli.core.common.errors import InputError
from rapm_cli.core.method.sizes import NAME, Size, parse_size
from rapm_cli.core.storage.files import regular_file
from rapm_cli.formats.header import Header
from rapm_cli.formats.lora_ref import are_records

PREFIX = "unet."
RECIPE_KEY = "rapm_recipe"
RECIPE_FILE = "rapm_recipe.json"  # in the folder of a fused model
MODEL_INDEX, SCHEDULER_CONFIG = "model_index.json", "scheduler/scheduler_config.json"  # in a folder of diffusers
GROUPS = ("sampler", "teacher", "training")  # sections of a recipe
# Lists of LoRAs in a recipe: those of its base, those that are in it, and the one that training started from.
LORA_LISTS = ("base_loras", "absorbed", "started_from")
ADAPTER_MODEL, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"  # peft's names
MAX_CONFIG_BYTES = 2**20
ADAPTER_KEY = "lora_adapter_metadata"  # diffusers reads rank and alpha here
UNSUPPORTED_SETTINGS = ("alpha_pattern", "rank_pattern", "use_dora", "use_rslora")  # peft's, which change the update


def with_adapter_config(path: Path, metadata: Mapping[str, str]) -> Mapping[str, str]:
    """Return a header's metadata, with peft's settings from the file beside it where peft saved the LoRA.

    Args:
        path: LoRA's file. peft names it `adapter_model.safetensors`, and keeps rank and alpha in `adapter_config.json`.
        metadata: Metadata of its header.

    Raises:
        InputError: The settings cannot be read.
    """
    beside = path.with_name(ADAPTER_CONFIG)
    if path.name != ADAPTER_MODEL or ADAPTER_KEY in metadata or not beside.is_file():
        return metadata
    try:
        with regular_file(beside, "check the path").open("rb") as file:
            return {**metadata, ADAPTER_KEY: file.read(MAX_CONFIG_BYTES).decode()}
    except (OSError, ValueError) as error:
        raise InputError(f"{beside} cannot be read, and it holds the LoRA's scale", "copy it again") from error


def is_rapm_lora(header: Header) -> bool:
    """Return True for a file that rapm wrote: it has rapm's keys and a recipe, which may be empty."""
    return RECIPE_KEY in header.metadata and _has_rapm_keys(header)


def parse_recipe(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the recipe in a header: settings of training and sampling; empty where the header has none.

    Raises:
        ValueError: The recipe is malformed.
    """
    try:
        recipe: dict[str, Any] = json.loads(metadata.get(RECIPE_KEY, "{}"))
        if not _is_recipe(recipe):
            raise ValueError("a value of the recipe has the wrong type")
    except (TypeError, AttributeError, RecursionError) as error:
        raise ValueError("the recipe is not a JSON object") from error
    return recipe


def parse_lora_header(path: Path, header: Header) -> tuple[int, float, dict[str, Any]]:
    """Return rank, alpha and recipe from the header of a LoRA that rapm wrote.

    Args:
        path: LoRA's file, for messages.
        header: Header of that file.

    Raises:
        InputError: The file holds no LoRA with rapm's keys, its header lacks rank and alpha, or its tensors have other
            ranks.
    """
    names = list(header.tensors)
    if not _has_rapm_keys(header):
        raise InputError(f"{path} holds no LoRA with the keys that rapm writes", _rewrite_command(path))
    try:
        adapter = json.loads(header.metadata[ADAPTER_KEY])
        rank, alpha = int(adapter[PREFIX + "r"]), float(adapter[PREFIX + "lora_alpha"])
        recipe = parse_recipe(header.metadata)
        is_sound = rank >= 1 and 0 < alpha < math.inf
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        is_sound = False
    if not is_sound:
        raise InputError(f"{path} lacks rank and alpha in the form that rapm writes", _rewrite_command(path))
    if variant := next((name for name in UNSUPPORTED_SETTINGS if adapter.get(PREFIX + name)), None):
        raise InputError(f"{path} has the setting {variant}, which rapm does not support", "give a plain LoRA")
    ups, downs = ({name.split(".lora_")[0] for name in names if f".lora_{half}." in name} for half in "BA")
    if ups != downs:
        raise InputError(f"{path} lacks A or B of {min(ups ^ downs)}", "copy or download it again")
    for name, tensor in header.tensors.items():
        inner = tensor.shape[1 if ".lora_B." in name else 0] if len(tensor.shape) >= 2 else 0
        if inner != rank:
            raise InputError(f"{path} says rank {rank}, and {name} has another", "give a plain LoRA of one rank")
    return rank, alpha, recipe


def distilled_sizes(recipe: Mapping[str, Any]) -> list[str]:
    """Return the names of the sizes that a LoRA was distilled at; empty where it was at its base's own alone."""
    sizes = recipe.get("teacher", {}).get("sizes", [])
    return [name for name in sizes if isinstance(name, str) and NAME.fullmatch(name)] if isinstance(sizes, list) else []


def shown_size(recipe: Mapping[str, Any], own: Size) -> Size:
    """Return the first size that a LoRA was distilled at.

    Args:
        recipe: Recipe of the LoRA.
        own: Size of the base's images.
    """
    sizes = distilled_sizes(recipe)
    return parse_size(sizes[0]) if sizes else own


def _rewrite_command(path: Path) -> str:
    """Return the remedy: the command that rewrites another program's LoRA."""
    return f"if another program wrote it: rapm export {shlex.quote(str(path))} --base BASE --output NEW.safetensors"


def _has_rapm_keys(header: Header) -> bool:
    names = header.tensors
    return bool(names) and all(name.startswith(PREFIX) and ".lora_" in name for name in names)


def _is_recipe(recipe: Any) -> bool:
    """Return True where every value that rapm reads has its type; an empty recipe passes."""
    groups = [recipe.get(group, {}) for group in GROUPS]
    steps = recipe.get("sampler", {}).get("steps", 4)
    texts = [
        *(recipe.get(name, "") for name in ("base", "base_identity")),
        recipe.get("training", {}).get("method", ""),
        recipe.get("sampler", {}).get("name", ""),
    ]
    is_typed = all(isinstance(group, dict) for group in groups) and all(isinstance(text, str) for text in texts)
    teacher = recipe.get("teacher", {})
    times = recipe.get("training", {}).get("lcm_times", 1)  # the name of `lcm_timesteps` in files
    counts = [steps, times, *(teacher.get(name, 1) for name in ("num_slots", "fine_steps"))]
    is_typed = is_typed and type(teacher.get("guidance_scale", 1.0)) in (int, float)
    is_typed = is_typed and all(are_records(recipe.get(name, [])) for name in LORA_LISTS)
    return is_typed and all(type(count) is int and 1 <= count <= 1000 for count in counts)
