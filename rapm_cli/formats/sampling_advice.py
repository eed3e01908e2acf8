"""How other programs sample a student: their names for its sampler and schedule, for people and for their readers.

Source: sampler and schedule names of A1111 1.10.1, Forge dfdcbab, ComfyUI 0.3.64 and Fooocus 2.5.5.
"""

from collections.abc import Mapping
from typing import Any

DDIM = "DDIM"  # the scheduler of a recipe that names none
# A1111's own DDIM ignores the schedule type and makes 3 evaluations of 4, at 751, 501 and 251. Its Euler walks the same
# path as DDIM through the timesteps of its schedule.
WEBUI_SAMPLERS = {DDIM: "Euler", "LCM": "LCM", "EulerDiscrete": "Euler"}  # of A1111 and Forge, by diffusers' name
WEBUI_SCHEDULE = "SGM Uniform"
COMFYUI_SAMPLERS = {DDIM: "ddim", "LCM": "lcm", "EulerDiscrete": "euler"}  # ComfyUI's ddim is its euler
OWN_SAMPLERS = {"TCD": "TCD"}  # of rapm's own images; advice for other programs names DDIM's
FOOOCUS_SAMPLERS = {DDIM: "euler", "LCM": "lcm", "EulerDiscrete": "euler"}
# A setting of A1111's page, and its value for a noise schedule that goes down to zero signal.
WEBUI_SCHEDULE_SETTING, WEBUI_ZERO_SNR = "Noise schedule for sampling", "Zero Terminal SNR"
# Trailing timesteps. Of four DDIM steps the last two differ from diffusers' by 1 of 1000, and the images by 1 of 255.
# LCM's own timesteps are up to 10 of 1000 higher, or 50 where it was trained at 10 timesteps.
COMFYUI_SCHEDULE = "sgm_uniform"  # Fooocus has the same name


def scheduler_of(recipe: Mapping[str, Any]) -> str:
    """Return diffusers' name of a student's scheduler, without the word Scheduler; DDIM for an unknown one."""
    name = recipe.get("sampler", {}).get("scheduler", DDIM)
    return name if name in WEBUI_SAMPLERS else DDIM


def steps_of(recipe: Mapping[str, Any]) -> int:
    """Return a student's number of steps."""
    return int(recipe.get("sampler", {}).get("steps", 4))


def has_zero_snr(recipe: Mapping[str, Any]) -> bool:
    """Return whether a student's noise schedule goes down to zero signal."""
    return bool(recipe.get("sampler", {}).get("rescale_betas_zero_snr"))


def webui_settings(recipe: Mapping[str, Any]) -> str:
    """Return the settings of A1111 and Forge, in the words of their page."""
    sampler = WEBUI_SAMPLERS[scheduler_of(recipe)]
    more = f", and in its settings {WEBUI_SCHEDULE_SETTING} {WEBUI_ZERO_SNR}" if has_zero_snr(recipe) else ""
    return f"{steps_of(recipe)} steps, CFG scale 1, sampler {sampler}, schedule type {WEBUI_SCHEDULE}{more}"


def fooocus_settings(recipe: Mapping[str, Any]) -> str:
    """Return the settings of Fooocus, in the words of its page."""
    sampler = FOOOCUS_SAMPLERS[scheduler_of(recipe)]
    steps = f"Forced Overwrite of Sampling Step {steps_of(recipe)}"
    return f"Guidance Scale 1; in Developer Debug Mode {steps}, Sampler {sampler}, Scheduler {COMFYUI_SCHEDULE}"


def usage_hint(recipe: Mapping[str, Any]) -> str:
    """Return the sampling settings of a student in words, for each program; empty where its recipe has none."""
    sampler = recipe.get("sampler", {})
    if not sampler:
        return ""
    scheduler = scheduler_of(recipe)
    spacing, times = sampler.get("timestep_spacing"), sampler.get("timesteps")
    diffusers = scheduler + (f" with {spacing} timesteps" if spacing else "")
    diffusers += f" {', '.join(map(str, times))}" if times else ""
    diffusers += ", rescale_betas_zero_snr" if has_zero_snr(recipe) else ""
    comfyui = f"{COMFYUI_SAMPLERS[scheduler]} with {COMFYUI_SCHEDULE}"
    return f"{webui_settings(recipe)} (ComfyUI: {comfyui}; diffusers: {diffusers})"


def infotext(image: Mapping[str, Any], size: tuple[int, int]) -> str:
    """Return the text `parameters` of a PNG, as A1111 and Forge write and read it.

    Args:
        image: Recipe of the image, with prompt, seed, steps and sampler.
        size: Width and height of the image, in pixels.
    """
    settings = {
        "Steps": image["steps"],
        "Sampler": OWN_SAMPLERS.get(image.get("sampler", {}).get("scheduler"), WEBUI_SAMPLERS[scheduler_of(image)]),
        "Schedule type": WEBUI_SCHEDULE,
        "CFG scale": 1,
        "Seed": image["seed"],
        "Size": "{}x{}".format(*size),
    } | ({"Noise Schedule": WEBUI_ZERO_SNR} if has_zero_snr(image) else {})
    return f"{image['prompt']}\n{', '.join(f'{name}: {value}' for name, value in settings.items())}"
