"""A ComfyUI workflow that draws with an exported file as its recipe says, in the form that its interface opens."""

import json
from collections.abc import Mapping
from typing import Any

SAMPLERS = {"DDIM": "ddim", "LCM": "lcm"}  # by diffusers' name
SCHEDULER = "sgm_uniform"  # trailing times: of four, DDIM's last two differ by 1 of 1000, the
# pictures by 1 of 255. LCM's own times lie up to 10 of 1000 higher, or 50 where it was trained at 10 times.
NEGATIVE = ""  # at CFG 1 nobody looks at it


def workflow(
    recipe: Mapping[str, Any], *, checkpoint: str, lora: str | None, side_px: int, prompt: str
) -> dict[str, Any]:
    """The nodes of a workflow by number, each with its class and inputs.

    Args:
        recipe: How the student is sampled.
        checkpoint: File below ComfyUI's `models/checkpoints`.
        lora: File below its `models/loras`; None where it is in the checkpoint.
        side_px: Width and height of the pictures.
        prompt: To begin with.
    """
    sampler = recipe.get("sampler", {})
    nodes: dict[str, Any] = {"1": ("CheckpointLoaderSimple", {"ckpt_name": checkpoint})}
    model: list[Any] = ["1", 0]
    if lora:
        nodes["2"] = ("LoraLoaderModelOnly", {"model": model, "lora_name": lora, "strength_model": 1.0})
        model = ["2", 0]
    nodes |= {
        "3": ("CLIPTextEncode", {"clip": ["1", 1], "text": prompt}),
        "4": ("CLIPTextEncode", {"clip": ["1", 1], "text": NEGATIVE}),
        "5": ("EmptyLatentImage", {"width": side_px, "height": side_px, "batch_size": 1}),
        "6": (
            "KSampler",
            {
                "model": model, "positive": ["3", 0], "negative": ["4", 0], "latent_image": ["5", 0], "seed": 0,
                "steps": sampler.get("steps", 4), "cfg": 1.0, "denoise": 1.0, "scheduler": SCHEDULER,
                "sampler_name": SAMPLERS.get(sampler.get("scheduler", "DDIM"), "ddim"),
            },
        ),
        "7": ("VAEDecode", {"samples": ["6", 0], "vae": ["1", 2]}),
        "8": ("SaveImage", {"images": ["7", 0], "filename_prefix": "rapm"}),
    }  # fmt: skip
    return {number: {"class_type": kind, "inputs": inputs} for number, (kind, inputs) in nodes.items()}


def workflow_bytes(*args: Any, **options: Any) -> bytes:
    """The same as a file."""
    return (json.dumps(workflow(*args, **options), indent=2) + "\n").encode()
