"""Samples to make: prompts, noise, form of the images, and the labels of prompts that have some."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from rapm_cli.bases import Base, LabelledPrompts
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.method.sizes import Size
from rapm_cli.extractors import EXTRACTORS, Extractor, Opening
from rapm_cli.extractors.preparation import AS_IT_IS, Preparation

USUAL_NOISE = "evaluation"  # purpose of noise, which seeds it
LABELLED_BATCH = 32  # labelled prompts that are sampled, read and kept together
SPLIT_NAMES = {True: "held-out scenes", False: "scenes that training may see"}  # by whether they are held out


@dataclass(frozen=True)
class Labels:
    """Labels of a plan's prompts, and the extractor that reads images for them.

    Args:
        known: The prompts with their labels.
        held_out: Whether training never sees their scenes.
        reader: Extractor with answers.
    """

    known: LabelledPrompts
    held_out: bool
    reader: Extractor

    def read(self, chunk: range, images: Tensor) -> dict[str, Tensor]:
        """Return features and right answers of (B, 3, H, W) images of a chunk's prompts."""
        features, answers = self.reader.read(images)
        return {"features": features, "right": answers == self.known.labels[chunk.start : chunk.stop]}

    def reference(self, chunk: range) -> Tensor:
        """Return (B, D) features of the true images of a chunk's prompts; they are drawn once."""
        if chunk not in self._references:
            self._references[chunk] = self.reader.read(self.known.true_images(chunk))[0]
        return self._references[chunk]

    @cached_property
    def _references(self) -> dict[range, Tensor]:
        return {}


@dataclass(frozen=True)
class SamplePlan:
    """Prompts, noise and form of samples, the same for every model.

    Args:
        prompts: Prompts by number.
        seed: Seed of the noise, which depends on it and on the prompt's number alone.
        batch: Number of prompts that are sampled and kept together; the last bits of an image depend on it.
        images: Number of first prompts whose images are kept; whole batches.
        positions: Number of first prompts whose latents at the slot edges are kept; whole batches.
        preparation: Preparation of every image that is kept.
        rounding: Rounding of values to bytes, a name from `ROUNDINGS`.
        labels: Labels of the prompts; the answers for them are kept for every prompt. None without labels.
        name: Name of the split that the prompts are; empty without labels.
        purpose: Purpose of the noise, which seeds it.
        size: Size of the images before their preparation; None for the base's own.
    """

    prompts: Sequence[str]
    seed: int
    batch: int
    images: int = 0
    positions: int = 0
    preparation: Preparation = AS_IT_IS
    rounding: str = "nearest"
    labels: Labels | None = None
    name: str = ""
    purpose: str = USUAL_NOISE
    size: Size | None = None

    @property
    def chunks(self) -> list[range]:
        """Prompt numbers of each batch."""
        return [range(k, min(k + self.batch, len(self.prompts))) for k in range(0, len(self.prompts), self.batch)]

    def whole_batches(self, count: int) -> int:
        """Return `count` prompts rounded up to whole batches."""
        return min(-(-count // self.batch) * self.batch, len(self.prompts))

    def with_other_noise(self, count: int) -> "SamplePlan":
        """Return a plan for the first `count` prompts with other noise; it keeps their images."""
        kept, purpose = self.whole_batches(count), f"{self.purpose}, other noise"
        prompts, name = self.prompts[:kept], "other noise"
        return replace(self, prompts=prompts, images=kept, positions=0, labels=None, name=name, purpose=purpose)


def labelled_plan(
    base: Base, count: int, seed: int, held_out: bool, reporter: Reporter, *, batch: int = LABELLED_BATCH
) -> SamplePlan:
    """Return a plan for the first `count` labelled prompts of a base; it keeps no images.

    Args:
        base: Base with labelled prompts.
        count: Number of prompts.
        seed: Seed of prompts and noise.
        held_out: Whether training never sees their scenes.
        reporter: Reporter of downloads.
        batch: Number of prompts that are sampled together.
    """
    assert base.labelled_prompts is not None
    known = base.labelled_prompts(count, seed, held_out)
    reader = EXTRACTORS[known.reader](Opening(torch.device("cpu"), reporter))
    purpose = f"exam {int(held_out)}"  # seeds of random numbers keep their old words
    return SamplePlan(
        known.prompts, seed, batch, labels=Labels(known, held_out, reader), name=SPLIT_NAMES[held_out], purpose=purpose
    )
