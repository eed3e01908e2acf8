"""A ComfyUI workflow that samples an exported file by its recipe."""

import json
from collections.abc import Mapping
from typing import Any

SAMPLERS = {"DDIM": "ddim", "LCM": "lcm"}  # ComfyUI's name by diffusers' name
# Trailing timesteps. Of four DDIM steps the last two differ from diffusers' by 1 of 1000, and the images by 1 of 255.
# LCM's own timesteps are up to 10 of 1000 higher, or 50 where it was trained at 10 timesteps.
SCHEDULER = "sgm_uniform"
NEGATIVE = ""  # ComfyUI ignores the negative prompt at CFG 1


def workflow(
    recipe: Mapping[str, Any], *, checkpoint: str, lora: str | None, side_px: int, prompt: str
) -> dict[str, Any]:
    """Return the nodes of a workflow by number, each with its class and inputs.

    Args:
        recipe: Settings of training and sampling.
        checkpoint: File below ComfyUI's `models/checkpoints`.
        lora: File below ComfyUI's `models/loras`; None where the LoRA is fused into the checkpoint.
        side_px: Width and height of the images, in pixels.
        prompt: Prompt that the workflow starts with.
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
    """Return the workflow as the JSON file that ComfyUI opens; arguments as of `workflow`."""
    return (json.dumps(workflow(*args, **options), indent=2) + "\n").encode()
