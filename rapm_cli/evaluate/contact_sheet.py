"""Contact sheets: a row of images for each model, with the same prompts and noise in every row."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rapm_cli.bases import Base, LoadedBase
from rapm_cli.core.method.trajectories import initial_noise
from rapm_cli.core.network.backbone import Conditioning
from rapm_cli.evaluate.models import EvalModel
from rapm_cli.runs.images import contact_sheet, png_bytes

COLUMNS = 8
CANDIDATES = 64  # first prompts among which those of a sheet are chosen


@dataclass(frozen=True)
class Scenes:
    """What the columns of a sheet show.

    Args:
        prompts: B prompts.
        noise: (B, C, h, w) noise, on the CPU.
        cond: Conditioning of the prompts, on the CPU.
    """

    prompts: list[str]
    noise: Tensor
    cond: Conditioning

    @classmethod
    def of(cls, prompts: list[str], loaded: LoadedBase, seed: int) -> "Scenes":
        """Return the scenes of some prompts; a prompt's noise depends on the seed and on its number alone."""
        noise = initial_noise(seed, "sheet", list(range(len(prompts))), loaded.latent_shape)
        return cls(prompts, noise, loaded.encode(prompts))


def fixed_scenes(base: Base, loaded: LoadedBase, seed: int, prompts: Sequence[str], count: int) -> Scenes:
    """Return the scenes of the first `count` images on every sheet of a run.

    A base with labelled prompts shows prompts that training never sees.
    """
    known = base.labelled_prompts(CANDIDATES, seed, True).prompts if base.labelled_prompts else prompts[:CANDIDATES]
    return Scenes.of(varied(known, count), loaded, seed)


def varied(prompts: Sequence[str], count: int) -> list[str]:
    """Return at most `count` prompts: the first, then always the one whose words were shown least so far.

    So a sheet has several subjects and backgrounds. A larger count begins with the prompts of a smaller one.
    """
    left, chosen, shown = list(dict.fromkeys(prompts)), list[str](), Counter[str]()
    while left and len(chosen) < count:
        chosen.append(left.pop(min(range(len(left)), key=lambda k: _repetition(left[k], shown))))
        shown.update(_words(chosen[-1]))
    return chosen


def _repetition(prompt: str, shown: Counter[str]) -> float:
    """Return how often a word of the prompt was shown, on average."""
    words = _words(prompt)
    return sum(shown[word] for word in words) / max(1, len(words))


def _words(prompt: str) -> set[str]:
    return {word.strip(".,;:") for word in prompt.lower().split()}


def sheet_rows(models: list[EvalModel], loaded: LoadedBase, scenes: Scenes, size: int) -> dict[str, Tensor]:
    """Return the rows of a contact sheet by title, one for each model; arguments as in `sheet_row`."""
    return {
        f"{model.title}, {model.evaluations} evaluations": sheet_row(model, loaded, scenes, size) for model in models
    }


def make_sheet(rows: dict[str, Tensor], prompts: Sequence[str]) -> bytes:
    """Return a contact sheet of these rows as PNG, with the prompts above the columns."""
    return png_bytes(contact_sheet(rows, prompts))


def sheet_row(model: EvalModel, loaded: LoadedBase, scenes: Scenes, size: int) -> Tensor:
    """Return one model's images.

    Args:
        model: The model.
        loaded: Base that it samples with.
        scenes: The scenes.
        size: Number of images that are sampled together.

    Returns:
        (B, 3, H, W) in [0, 1], on the CPU.
    """
    noise, cond = scenes.noise.to(loaded.device), scenes.cond.to(loaded.device)
    latents = [model.sample(noise[k : k + size], cond[k : k + size])[0] for k in range(0, len(noise), size)]
    return torch.cat([loaded.decode(part) for part in latents])
