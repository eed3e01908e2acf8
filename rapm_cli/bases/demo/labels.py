"""Prompts with labels: captions of demo scenes, what their images must show, and true images of them."""

import torch
from torch import Tensor

from rapm_cli.bases.base import LabelledPrompts
from rapm_cli.bases.demo.captions import caption
from rapm_cli.bases.demo.draw import draw
from rapm_cli.bases.demo.world import SECOND, labels, random_scenes
from rapm_cli.core.common.randomness import generator_for


def labelled_prompts(count: int, seed: int, held_out: bool) -> LabelledPrompts:
    """Return the first `count` labelled prompts of an endless list.

    Args:
        count: Number of prompts; a longer list begins with a shorter one.
        seed: Seed of the list.
        held_out: Whether its scenes are those that training never sees, or the others.
    """
    scenes = random_scenes(count, generator_for(seed, "exam", int(held_out)), held_out=held_out)
    classes = labels(scenes)
    asked = torch.ones_like(classes, dtype=torch.bool)
    asked[[scene.second is None for scene in scenes], SECOND] = False

    def true_images(numbers: range) -> Tensor:
        drawn = [draw([scenes[k]], generator_for(seed, "exam drawing", int(held_out), k)) for k in numbers]
        return torch.cat(drawn)

    return LabelledPrompts([caption(scene) for scene in scenes], classes, asked, true_images, reader="demo")
