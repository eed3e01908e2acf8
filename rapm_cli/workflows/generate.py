"""Prompts to pictures with the student, each with the recipe that makes it again."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rapm_cli import __version__
from rapm_cli.bases import Base, LoadedBase, find_base
from rapm_cli.bases.device import DTYPES, find_precision
from rapm_cli.core.backbone import Conditioning
from rapm_cli.core.errors import ConfigError, InputError, WeightsError
from rapm_cli.core.sample import sample_student
from rapm_cli.core.schedule import fine_grid, slot_edges
from rapm_cli.core.trajectories import walk_teacher
from rapm_cli.formats.lora import LoraFile, apply_lora, load_lora
from rapm_cli.workflows.pictures import grid, read_recipe, save_png, to_image
from rapm_cli.workflows.rundir import all_loras, find_lora, newest_run
from rapm_cli.workflows.watch import Watcher, batches


@dataclass(frozen=True)
class Picture:
    """One written picture.

    Args:
        path: PNG file.
        prompt: What it shows.
        seed: Seed of its noise.
        seconds: Time of the student's sampling and decoding, its share of the batch.
        teacher_seconds: The teacher's, where it was drawn beside.
    """

    path: Path
    prompt: str
    seed: int
    seconds: float
    teacher_seconds: float | None = None


@dataclass(frozen=True)
class Chosen:
    """A base and the LoRA to use with it, and a sentence on how they were chosen."""

    base: Base
    lora_path: Path
    lora: LoraFile
    reason: str


def choose(base_name: str | None, lora_name: str | None) -> Chosen:
    """Base and LoRA: as named, else the newest run's, else what ships with the base.

    Raises:
        WeightsError: Nothing was named, there is no run, and the default weights are not here.
        InputError: The LoRA was made for another base.
    """
    if lora_name:
        path, reason = find_lora(lora_name), ""
    elif (run := newest_run()) and (base_name is None or run.config()["base"] == base_name):
        path, reason = run.lora, f"newest run, {run.folder}"
    elif base_name and (shipped := find_base(base_name).student) and shipped.is_file():
        path, reason = shipped, f"the LoRA that ships with {base_name}"
    elif base_name in (None, "sdxl"):
        raise WeightsError(
            "there is no run yet, and the authors' weights for sdxl (guoqiang-x/RAPM_SDXL) are not supported yet",
            'try the embedded base: rapm generate "a red cube left of a blue sphere" --base demo',
        )
    else:
        raise WeightsError(f"there is no LoRA for base {base_name}", f"run: rapm distill --base {base_name}")
    lora = load_lora(path)
    made_for = lora.recipe.get("base")
    if base_name and made_for and made_for != base_name:
        raise InputError(f"{path} was distilled from base {made_for}, not {base_name}", f"use --base {made_for}")
    if not (base_name or made_for):
        raise ConfigError(f"{path} does not name its base", "give --base")
    return Chosen(find_base(base_name or str(made_for)), path, lora, reason)


def steps_of(lora: LoraFile) -> int:
    """The number of steps that a LoRA was distilled for; 4 where its file does not say."""
    return int(lora.recipe.get("sampler", {}).get("steps", 4))


def noise_for(seeds: list[int], shape: tuple[int, int, int]) -> Tensor:
    """(B, C, h, w) noise; row i is what diffusers draws from `torch.Generator().manual_seed(seeds[i])`."""
    return torch.cat([torch.randn((1, *shape), generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def generate(
    chosen: Chosen,
    prompts: list[str],
    seeds: list[int],
    *,
    steps: int,
    output: Path,
    device: torch.device,
    precision: str,
    batch_size: int | None,
    compare: bool,
    with_grid: bool,
    watcher: Watcher,
) -> Iterator[Picture]:
    """Write a picture for every prompt and seed.

    Args:
        chosen: Base and LoRA.
        prompts: What to draw.
        seeds: Seeds of the noise; every prompt gets all of them.
        steps: N.
        output: Folder for the PNGs.
        device: Where to compute.
        precision: "auto", "fp32", "bf16" or "fp16".
        batch_size: Pictures at once, or None for the base's own number.
        compare: Draw the guided teacher's picture beside each.
        with_grid: Also write all of them as one picture.
        watcher: Sees the bar and what the base cannot know.
    """
    slot_edges(steps)
    unknown = next((text for prompt in prompts if (text := chosen.base.warn(prompt))), "")
    if unknown:
        watcher.warn(unknown)
    precision = find_precision(precision, device)
    loaded = chosen.base.load(device, DTYPES[precision])
    apply_lora(loaded.backbone, chosen.lora, chosen.lora_path)
    jobs = [(prompt, seed) for prompt in prompts for seed in seeds]
    images = []
    with watcher.bar("pictures", len(jobs), "picture", device) as bar:
        for part in batches(jobs, batch_size or chosen.base.defaults.picture_batch):
            noise = noise_for([seed for _, seed in part], loaded.latent_shape).to(device)
            cond = loaded.encode([prompt for prompt, _ in part])
            begun = time.perf_counter()
            drawn = loaded.decode(sample_student(loaded.backbone, noise, cond, steps)[0])
            seconds = (time.perf_counter() - begun) / len(part)
            teacher, teacher_seconds = _teacher_pictures(chosen, loaded, noise, cond) if compare else (None, None)
            for k, (prompt, seed) in enumerate(part):
                recipe = _recipe(chosen, prompt, seed, steps, precision)
                image = to_image(drawn[k])
                if teacher is not None:
                    image = grid([to_image(teacher[k]), image], columns=2)
                path = _path(output, prompts.index(prompt), seed, "-compare" if compare else "")
                save_png(image, path, recipe)
                images.append(image)
                yield Picture(path, prompt, seed, seconds, teacher_seconds)
            bar.advance(len(part))
    if with_grid and len(images) > 1:
        columns = len(seeds) if len(prompts) > 1 and len(seeds) > 1 else min(len(images), 4)
        save_png(grid(images, columns), output / "grid.png", {"prompts": prompts, "seeds": seeds})


def _teacher_pictures(chosen: Chosen, loaded: LoadedBase, noise: Tensor, cond: Conditioning) -> tuple[Tensor, float]:
    """The guided teacher's pictures, and seconds for each."""
    settings = chosen.lora.recipe.get("teacher", {})
    fine_steps = settings.get("fine_steps", chosen.base.defaults.fine_steps)
    guidance_scale = settings.get("guidance_scale", chosen.base.defaults.guidance_scale)
    times = fine_grid(settings.get("num_slots", 4), fine_steps, loaded.backbone.schedule.length)
    begun = time.perf_counter()
    *_, clean = walk_teacher(loaded.backbone, noise, times, cond, loaded.unconditional, guidance_scale)
    return loaded.decode(clean), (time.perf_counter() - begun) / len(noise)


def _recipe(chosen: Chosen, prompt: str, seed: int, steps: int, precision: str) -> dict[str, Any]:
    return {
        "rapm": __version__,
        "prompt": prompt,
        "seed": seed,
        "steps": steps,
        "base": chosen.base.name,
        "lora_sha256": _sha256(chosen.lora_path),
        "precision": precision,
        "sampler": chosen.lora.recipe.get("sampler", {}),
    }


def _sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def _path(output: Path, index: int, seed: int, suffix: str) -> Path:
    """A file name that is not there yet; the prompt never becomes part of it."""
    stem = f"{index:03d}-seed{seed}{suffix}"
    path, copy = output / f"{stem}.png", 1
    while path.exists():
        path, copy = output / f"{stem}-{copy}.png", copy + 1
    return path


def recall(path: Path, lora_name: str | None) -> dict[str, Any]:
    """The recipe of a picture, with the `lora` file that made it.

    The picture holds the LoRA's sha256 and no path, so that it can be given away; the file is looked for among
    the runs and what ships with the base.

    Args:
        path: A PNG of ours.
        lora_name: Where the LoRA is, if it is elsewhere.

    Raises:
        InputError: It says no recipe, or its LoRA is not found.
    """
    recipe = read_recipe(path)
    shipped = find_base(str(recipe["base"])).student
    places = [find_lora(lora_name)] if lora_name else [*all_loras(), *([shipped] if shipped else [])]
    for place in places:
        if place.is_file() and _sha256(place) == recipe.get("lora_sha256"):
            return recipe | {"lora": str(place)}
    raise InputError(
        f"the LoRA that made {path} is not {'that one' if lora_name else 'among the runs here'}",
        f"name the file whose sha256 is {recipe.get('lora_sha256')} with --lora",
    )
