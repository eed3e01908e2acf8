"""A visible world that tests make: a small base, two LoRAs of it, networks of random weights, a folder like COCO."""

from pathlib import Path

import torch

from rapm_cli.runs.authors_lora import convert_pickle
from tests.bases.conftest import random_lora
from tests.bases.small_models import write_sdxl
from tests.evaluate.coco_folder import write_coco
from tests.extractors.models import write_clip, write_inception

COUNT = 12  # captioned images


def write_world(place: Path) -> Path:
    base = write_sdxl(place / "small-sdxl")
    state = random_lora(base)
    for name, size in (("a", 1.0), ("b", 0.7)):
        changed = {key: value if key.endswith("alpha") else size * value for key, value in state.items()}
        torch.save(changed, place / "lora.pt")
        recipe = {"base": "small-sdxl", "teacher": {"num_slots": 2, "fine_steps": 3, "guidance_scale": 3.0}}
        convert_pickle(place / "lora.pt", place / f"{name}.safetensors", recipe | {"sampler": {"steps": 2}})
    write_inception(place / "inception.pth")
    write_clip(place / "clip")
    write_coco(place / "coco", COUNT)
    return place


def command(place: Path, *more: object, lora: str = "a") -> list[str]:
    """`rapm eval` in that world."""
    named = {
        "base": "small-sdxl", "lora": f"{lora}.safetensors", "inception": "inception.pth", "clip-model": "clip",
    }  # fmt: skip
    options = [word for name, file in named.items() for word in (f"--{name}", str(place / file))]
    return ["eval", *options, "--precision", "fp32", "--device", "cpu", *map(str, more)]
