"""Contact sheets: a row of images for each model, with the same prompts and noise in every row."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from rapm_cli.bases import Base, LoadedBase
from rapm_cli.core.method.config import TeacherConfig
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
        noise: (C, h, w) noise of each prompt, on the CPU; columns may have several sizes.
        cond: Conditioning of the prompts, on the CPU.
    """

    prompts: list[str]
    noise: Sequence[Tensor]
    cond: Conditioning

    @classmethod
    def of(cls, prompts: list[str], loaded: LoadedBase, seed: int, teacher: TeacherConfig | None = None) -> "Scenes":
        """Return the scenes of some prompts; a prompt's noise and size depend on the seed and its number alone.

        Args:
            prompts: The prompts.
            loaded: Base that samples them.
            seed: Seed of the noise.
            teacher: Settings whose sizes the columns take in turn; None for the base's own size.
        """
        sizes = [teacher.size_of(k) if teacher else None for k in range(len(prompts))]
        shapes = map(loaded.latent_shape_of, sizes)
        noise = [initial_noise(seed, "sheet", [k], shape)[0] for k, shape in enumerate(shapes)]
        cond = loaded.encode(prompts)
        rows = [loaded.sized(cond[k : k + 1], size) for k, size in enumerate(sizes)]
        return cls(prompts, noise, Conditioning.cat(rows) if rows else cond)

    def batches(self, at_once: int) -> Iterator[tuple[Tensor, Conditioning]]:
        """Yield noise (B, C, h, w) and conditioning of consecutive columns of one size, at most `at_once`."""
        start = 0
        for _, group in groupby(self.noise, key=lambda each: each.shape):
            noise = torch.stack(list(group))
            for k in range(0, len(noise), at_once):
                part = noise[k : k + at_once]
                yield part, self.cond[start : start + len(part)]
                start += len(part)


def fixed_scenes(
    base: Base,
    loaded: LoadedBase,
    seed: int,
    prompts: Sequence[str],
    count: int,
    teacher: TeacherConfig | None = None,
) -> Scenes:
    """Return the scenes of the first `count` images on every sheet of a run; further arguments as in `Scenes.of`.

    A base with labelled prompts shows prompts that training never sees.
    """
    known = base.labelled_prompts(CANDIDATES, seed, True).prompts if base.labelled_prompts else prompts[:CANDIDATES]
    return Scenes.of(varied(known, count), loaded, seed, teacher)


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


def sheet_rows(models: list[EvalModel], loaded: LoadedBase, scenes: Scenes, size: int) -> dict[str, Sequence[Tensor]]:
    """Return the rows of a contact sheet by title, one for each model; arguments as in `sheet_row`."""
    return {
        f"{model.title}, {model.evaluations} evaluations": sheet_row(model, loaded, scenes, size) for model in models
    }


def make_sheet(rows: Mapping[str, Sequence[Tensor]], prompts: Sequence[str]) -> bytes:
    """Return a contact sheet of these rows as PNG, with the prompts above the columns."""
    return png_bytes(contact_sheet(rows, prompts))


def sheet_row(model: EvalModel, loaded: LoadedBase, scenes: Scenes, size: int) -> Sequence[Tensor]:
    """Return one model's images.

    Args:
        model: The model.
        loaded: Base that it samples with.
        scenes: The scenes.
        size: Number of images that are sampled together.

    Returns:
        (3, H, W) in [0, 1] of each prompt, on the CPU.
    """
    device = loaded.device
    latents = [model.sample(noise.to(device), cond.to(device))[0] for noise, cond in scenes.batches(size)]
    return [image for part in latents for image in loaded.decode(part)]
