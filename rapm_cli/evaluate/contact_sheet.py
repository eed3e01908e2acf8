"""Contact sheets: a row of images for each model, with the same prompts and noise in every row."""

import torch
from torch import Tensor

from rapm_cli.bases import Base, LoadedBase
from rapm_cli.core.method.trajectories import initial_noise
from rapm_cli.core.network.backbone import Conditioning
from rapm_cli.evaluate.models import EvalModel
from rapm_cli.runs.images import contact_sheet, png_bytes

COLUMNS = 8


def fixed_scenes(
    base: Base, loaded: LoadedBase, seed: int, prompts: list[str], count: int
) -> tuple[Tensor, Conditioning]:
    """Return noise and conditioning of the first `count` images on every sheet of a run, on the CPU.

    A base with labelled prompts shows prompts that training never sees.
    """
    shown = base.labelled_prompts(count, seed, True).prompts if base.labelled_prompts else prompts[:count]
    noise = initial_noise(seed, "sheet", list(range(len(shown))), loaded.latent_shape)
    return noise, loaded.encode(shown)


def sheet_rows(
    models: list[EvalModel], base: Base, loaded: LoadedBase, seed: int, prompts: list[str]
) -> dict[str, Tensor]:
    """Return the rows of a contact sheet by title, one for each model."""
    scenes = fixed_scenes(base, loaded, seed, prompts, COLUMNS)
    size = base.defaults.image_batch
    return {
        f"{model.title}, {model.evaluations} evaluations": sheet_row(model, loaded, scenes, size) for model in models
    }


def make_sheet(rows: dict[str, Tensor]) -> bytes:
    """Return a contact sheet of these rows as PNG."""
    return png_bytes(contact_sheet(rows))


def sheet_row(model: EvalModel, loaded: LoadedBase, scenes: tuple[Tensor, Conditioning], size: int) -> Tensor:
    """Return one model's images.

    Args:
        model: The model.
        loaded: Base that it samples with.
        scenes: Noise and conditioning from `fixed_scenes`.
        size: Number of images that are sampled together.

    Returns:
        (B, 3, H, W) in [0, 1], on the CPU.
    """
    noise, cond = scenes[0].to(loaded.device), scenes[1].to(loaded.device)
    latents = [model.sample(noise[k : k + size], cond[k : k + size])[0] for k in range(0, len(noise), size)]
    return torch.cat([loaded.decode(part) for part in latents])
