"""Prompts to pictures with the student, each with the recipe that makes it again."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from rapm_cli import __version__
from rapm_cli.bases import LoadedBase, Weights
from rapm_cli.bases.device import DTYPES, find_precision
from rapm_cli.core.common.errors import DiskError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.method.samplers import sample_student
from rapm_cli.core.method.trajectories import walk_teacher
from rapm_cli.core.network.backbone import Conditioning
from rapm_cli.core.network.schedule import fine_grid, slot_edges
from rapm_cli.core.storage.files import sweep
from rapm_cli.formats.lora import apply_lora
from rapm_cli.formats.merged import merge_lora
from rapm_cli.runs import signals
from rapm_cli.runs.fused_base import FusedBase
from rapm_cli.runs.images import grid, save_png, to_image
from rapm_cli.runs.prompts import warn_of_unread
from rapm_cli.runs.resolve_lora import ResolvedLora
from rapm_cli.runs.retry import with_retries


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


def noise_for(
    seeds: list[int],
    shape: tuple[int, int, int],
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """The noise that a diffusers pipeline starts from.

    Args:
        seeds: One for each picture.
        shape: (C, h, w) of a latent.
        device: Of the generator: another kind of device makes other noise from the same seed.
        dtype: Of the pipeline, in which the noise is drawn.

    Returns:
        (B, C, h, w) float32; row i is what diffusers draws from `torch.Generator(device).manual_seed(seeds[i])`.
    """
    generators = (torch.Generator(device).manual_seed(seed) for seed in seeds)
    rows = [torch.randn((1, *shape), generator=each, device=device, dtype=dtype) for each in generators]
    return torch.cat(rows).float()


def generate(
    chosen: ResolvedLora | FusedBase,
    prompts: list[str],
    seeds: list[int],
    *,
    steps: int,
    output: Path,
    device: torch.device,
    precision: str,
    rng: torch.device,
    batch_size: int | None,
    compare: bool,
    with_grid: bool,
    reporter: Reporter,
) -> Iterator[Picture]:
    """Write a picture for every prompt and seed.

    Args:
        chosen: Base and LoRA, or a base with one in it.
        prompts: What to draw.
        seeds: Seeds of the noise; every prompt gets all of them.
        steps: N.
        output: Folder for the PNGs.
        device: Where to compute.
        precision: "auto", "fp32", "bf16" or "fp16".
        rng: Where to draw the noise.
        batch_size: Pictures at once, or None for the base's own number.
        compare: Draw the guided teacher's picture beside each.
        with_grid: Also write all of them as one picture.
        reporter: Sees the bar and what the base cannot know.
    """
    slot_edges(steps)
    teacher_settings = chosen.teacher if compare else None
    if steps != chosen.steps:
        reporter.warn(f"{chosen.origin} was distilled for {chosen.steps} steps, not {steps}: pictures will be worse")
    unknown = next((text for prompt in prompts if (text := chosen.base.warn(prompt))), "")
    weights = chosen.base.locate(reporter)
    for warning in (chosen.warning(weights), unknown):
        if warning:
            reporter.warn(warning)
    _make_folder(output)
    precision = find_precision(precision, device)
    reporter.say(f"loading {chosen.base.name}")
    loaded = _loaded(chosen, weights, device, DTYPES[precision], is_bare_too=compare)
    warn_of_unread(loaded, prompts, reporter)
    recipe = {
        "rapm": __version__,
        "steps": steps,
        "base": chosen.base.name,
        "base_identity": weights.identity,
        "lora_sha256": chosen.digest,
        "precision": precision,
        "rng": rng.type,
        "sampler": chosen.recipe.get("sampler", {}),
        "teacher": teacher_settings,
    }
    jobs = [(prompt, seed) for prompt in prompts for seed in seeds]
    images = []
    with reporter.bar("pictures", len(jobs), "picture", device) as bar, signals.deferred("these pictures"):
        done, size = 0, batch_size or chosen.base.defaults.picture_batch
        for part in (jobs[k : k + size] for k in range(0, len(jobs), size)):
            noise = noise_for([seed for _, seed in part], loaded.latent_shape, rng, DTYPES[precision]).to(device)
            cond = loaded.encode([prompt for prompt, _ in part]).to(device)
            begun = time.perf_counter()
            drawn = loaded.decode(sample_student(loaded.backbone, noise, cond, steps, chosen.sampler)[0])
            seconds = (time.perf_counter() - begun) / len(part)
            teacher, teacher_seconds = (
                _teacher_pictures(teacher_settings, loaded, noise, cond) if teacher_settings else (None, None)
            )
            for k, (prompt, seed) in enumerate(part):
                image = to_image(drawn[k])
                if teacher is not None:
                    image = grid([to_image(teacher[k]), image], columns=2)
                path = _free(output, f"{prompts.index(prompt):03d}-seed{seed}" + ("-compare" if compare else ""))
                _save(image, path, recipe | {"prompt": prompt, "seed": seed}, reporter)
                images += [image] if with_grid else []
                yield Picture(path, prompt, seed, seconds, teacher_seconds)
            bar.advance(len(part))
            done += len(part)
            signals.check(f"{done} of {len(jobs)} pictures are written")
    if with_grid and len(images) > 1:
        columns = len(seeds) if len(prompts) > 1 and len(seeds) > 1 else min(len(images), 4)
        path = _free(output, "grid")
        _save(grid(images, columns), path, {"prompts": prompts, "seeds": seeds}, reporter)
        reporter.say(f"{path}  all {len(images)} pictures")


def _loaded(
    chosen: ResolvedLora | FusedBase, weights: Weights, device: torch.device, dtype: torch.dtype, *, is_bare_too: bool
) -> LoadedBase:
    """The base with its LoRA, merged unless the bare network is wanted too or rounding would lose the update."""
    loaded = LoadedBase(weights, device, dtype)
    if isinstance(chosen, FusedBase):
        return loaded
    if is_bare_too or not merge_lora(loaded.backbone, chosen.lora, chosen.lora_path):
        apply_lora(loaded.backbone, chosen.lora, chosen.lora_path)
    return loaded


def _teacher_pictures(
    settings: dict[str, Any], loaded: LoadedBase, noise: Tensor, cond: Conditioning
) -> tuple[Tensor, float]:
    """The guided teacher's pictures, and seconds for each."""
    times = fine_grid(settings["num_slots"], settings["fine_steps"], loaded.backbone.schedule.length)
    begun = time.perf_counter()
    *_, clean = walk_teacher(loaded.backbone, noise, times, cond, loaded.unconditional, settings["guidance_scale"])
    return loaded.decode(clean), (time.perf_counter() - begun) / len(noise)


def _make_folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError.of(error, output) from error
    sweep(output)


def _save(image: Image.Image, path: Path, recipe: dict[str, Any], reporter: Reporter) -> None:
    size = 3 * image.width * image.height  # at most
    again = "free space, and draw the rest"
    with_retries(lambda: save_png(image, path, recipe), path, size, reporter, "the pictures before it are kept", again)


def _free(output: Path, stem: str) -> Path:
    """A PNG's name that is not there yet; a prompt never becomes part of one."""
    path, copy = output / f"{stem}.png", 1
    while path.exists():
        path, copy = output / f"{stem}-{copy}.png", copy + 1
    return path
