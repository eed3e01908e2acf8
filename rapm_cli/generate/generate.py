"""Sample images from prompts with the student; each PNG stores the recipe that reproduces it."""

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
from rapm_cli.core.method.samplers import Sampler, sample_student
from rapm_cli.core.method.sizes import Size, size_name
from rapm_cli.core.method.trajectories import walk_teacher
from rapm_cli.core.network.backbone import Conditioning
from rapm_cli.core.network.schedule import fine_grid, slot_edges
from rapm_cli.core.storage.files import sweep
from rapm_cli.formats.fuse import fuse_lora
from rapm_cli.formats.lora import apply_lora
from rapm_cli.runs import signals
from rapm_cli.runs.fused_base import FusedBase
from rapm_cli.runs.images import grid, save_png, to_image
from rapm_cli.runs.prompts import warn_of_unread
from rapm_cli.runs.resolve_lora import ResolvedLora
from rapm_cli.runs.retry import with_retries


@dataclass(frozen=True)
class GeneratedImage:
    """An image that was written.

    Args:
        path: PNG file.
        prompt: Prompt of the image.
        seed: Seed of the image's noise.
        seconds: Student's time for sampling and decoding the batch, divided by the batch size.
        teacher_seconds: Teacher's time, likewise; None without the teacher's image.
    """

    path: Path
    prompt: str
    seed: int
    seconds: float
    teacher_seconds: float | None = None


def pipeline_noise(
    seeds: list[int],
    shape: tuple[int, int, int],
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Return the noise that a diffusers pipeline starts from.

    Args:
        seeds: One seed for each image.
        shape: Shape (C, h, w) of a latent.
        device: Device of the generator; the same seed gives other noise on another kind of device.
        dtype: Dtype of the pipeline, in which the noise is made.

    Returns:
        (B, C, h, w) float32; row i equals diffusers' noise from `torch.Generator(device).manual_seed(seeds[i])`.
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
    size: str | None = None,
) -> Iterator[GeneratedImage]:
    """Write one image for every prompt and seed, and yield each.

    Args:
        chosen: Base and LoRA, or a base with the LoRA fused in.
        prompts: Prompts to sample.
        seeds: Seeds of the noise; every prompt gets all of them.
        steps: Number of sampling steps, N.
        output: Folder for the PNGs.
        device: Device to compute on.
        precision: "auto", "fp32", "bf16" or "fp16".
        rng: Device that makes the noise.
        batch_size: Images at once; None for the base's default.
        compare: Put the guided teacher's image on the left of each image.
        with_grid: Also write one PNG of all images.
        reporter: Shows a bar, and warns of what the model was not made for.
        size: Size of the images, such as "832x1216"; None for the base's own.
    """
    slot_edges(steps)
    pixels = chosen.base.size(size, reporter)
    teacher_settings = chosen.teacher if compare else None
    if steps != chosen.steps:
        reporter.warn(f"{chosen.origin} was distilled for {chosen.steps} steps, not {steps}: images will be worse")
    weights = chosen.base.locate(reporter)
    unknown_words = next((text for prompt in prompts if (text := chosen.base.warn(prompt))), "")
    for warning in filter(None, (chosen.warning, unknown_words)):
        reporter.warn(warning)
    _make_folder(output)
    precision = find_precision(precision, device)
    reporter.say(f"loading {chosen.base.name}")
    loaded = _load_student(chosen, weights, device, DTYPES[precision], is_bare_too=compare)
    warn_of_unread(loaded, prompts, reporter)
    recipe = _recipe(chosen, weights, steps, precision, rng) | {"teacher": teacher_settings}
    recipe |= {"size": size_name(pixels)} if pixels else {}
    shape = loaded.latent_shape_of(pixels)
    jobs = [(prompt, seed) for prompt in prompts for seed in seeds]
    images, captions = [], []
    with reporter.bar("images", len(jobs), "image", device) as bar, signals.deferred("these images"):
        done, at_once = 0, batch_size or chosen.base.defaults.image_batch
        for batch in (jobs[k : k + at_once] for k in range(0, len(jobs), at_once)):
            noise = pipeline_noise([seed for _, seed in batch], shape, rng, DTYPES[precision]).to(device)
            shown = [prompt for prompt, _ in batch]
            cond = loaded.encode(shown, size=pixels).to(device)
            made, seconds, teacher_seconds = _sample(
                loaded, noise, cond, steps, chosen.sampler, teacher_settings, shown
            )
            for (prompt, seed), image in zip(batch, made, strict=True):
                path = _free_path(output, f"{prompts.index(prompt):03d}-seed{seed}" + ("-compare" if compare else ""))
                _save(image, path, recipe | {"prompt": prompt, "seed": seed}, reporter, pixels or loaded.size)
                if with_grid:
                    images.append(image)
                    captions.append(f"{prompt}, seed {seed}")
                yield GeneratedImage(path, prompt, seed, seconds, teacher_seconds)
            bar.advance(len(batch))
            done += len(batch)
            signals.check(f"{done} of {len(jobs)} images are written")
    if with_grid and len(images) > 1:
        columns = len(seeds) if len(prompts) > 1 and len(seeds) > 1 else min(len(images), 4)
        path = _free_path(output, "grid")
        _save(grid(images, columns, captions), path, {"prompts": prompts, "seeds": seeds}, reporter)
        reporter.say(f"{path}  all {len(images)} images")


def _recipe(
    chosen: ResolvedLora | FusedBase, weights: Weights, steps: int, precision: str, rng: torch.device
) -> dict[str, Any]:
    """Return the part of the recipe that all images share."""
    others = [lora.record for lora in chosen.base.loras]
    weight = chosen.weight if isinstance(chosen, ResolvedLora) else 1.0
    return {
        "rapm": __version__,
        "steps": steps,
        "base": chosen.base.name,
        "base_identity": weights.identity,
        "lora_sha256": chosen.digest,
        "precision": precision,
        "rng": rng.type,
        "sampler": chosen.recipe.get("sampler", {}),
        **({"base_loras": others} if others else {}),
        **({"lora_weight": weight} if weight != 1 else {}),
    }


def _load_student(
    chosen: ResolvedLora | FusedBase, weights: Weights, device: torch.device, dtype: torch.dtype, *, is_bare_too: bool
) -> LoadedBase:
    """Load the base with its LoRA: fused, unless the bare network is needed too or rounding would lose the update."""
    loaded = LoadedBase(weights, device, dtype)
    if isinstance(chosen, FusedBase):
        return loaded
    if is_bare_too or not fuse_lora(loaded.backbone, chosen.weighted_lora, chosen.lora_path):
        apply_lora(loaded.backbone, chosen.weighted_lora, chosen.lora_path)
    return loaded


def _sample(
    loaded: LoadedBase,
    noise: Tensor,
    cond: Conditioning,
    steps: int,
    sampler: Sampler,
    teacher_settings: dict[str, Any] | None,
    prompts: list[str],
) -> tuple[list[Image.Image], float, float | None]:
    """Return the images of a batch, and the seconds for each image of the student and of the teacher.

    Args:
        loaded: Base with its LoRA.
        noise: (B, C, h, w).
        cond: Conditioning of the B prompts.
        steps: Number of steps of the student.
        sampler: Sampler of the student.
        teacher_settings: Slots, fine steps and guidance of the teacher, whose image goes on the left; None for no
            teacher.
        prompts: The B prompts, which stand above the images beside a teacher's.
    """
    begun = time.perf_counter()
    samples = loaded.decode(sample_student(loaded.backbone.student, noise, cond, steps, sampler)[0])
    seconds = (time.perf_counter() - begun) / len(noise)
    images = [to_image(sample) for sample in samples]
    if teacher_settings is None:
        return images, seconds, None
    teacher, teacher_seconds = _sample_teacher(teacher_settings, loaded, noise, cond)
    fine_steps = teacher_settings["num_slots"] * teacher_settings["fine_steps"]
    pairs = [
        grid([to_image(left), image], 2, [f"teacher, {fine_steps} steps: {prompt}", f"student, {steps} steps"])
        for left, image, prompt in zip(teacher, images, prompts, strict=True)
    ]
    return pairs, seconds, teacher_seconds


def _sample_teacher(
    settings: dict[str, Any], loaded: LoadedBase, noise: Tensor, cond: Conditioning
) -> tuple[Tensor, float]:
    """Return the guided teacher's images, and the seconds for each."""
    times = fine_grid(settings["num_slots"], settings["fine_steps"], loaded.backbone.schedule.length)
    begun = time.perf_counter()
    guidance_scale, teacher = settings["guidance_scale"], loaded.backbone.teacher
    *_, clean = walk_teacher(teacher, noise, times, cond, loaded.unconditional, guidance_scale)
    return loaded.decode(clean), (time.perf_counter() - begun) / len(noise)


def _make_folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError.of(error, output) from error
    sweep(output)


def _save(image: Image.Image, path: Path, recipe: dict[str, Any], reporter: Reporter, size: Size | None = None) -> None:
    kept, step = "the images before it are kept", "generate the remaining images"
    with_retries(lambda: save_png(image, path, recipe, size), path, 0, reporter, kept, step)


def _free_path(output: Path, stem: str) -> Path:
    """Return a PNG path that does not exist yet. The stem never contains text of a prompt."""
    path, copy = output / f"{stem}.png", 1
    while path.exists():
        path, copy = output / f"{stem}-{copy}.png", copy + 1
    return path
