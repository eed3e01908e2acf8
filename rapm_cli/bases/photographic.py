"""Prompts for bases that know the visible world, put together from what goes together.

A row of lists in `scenery` is a scene: one word group of each list makes a sentence that makes sense. Its kind has the
light and the views that suit it. The register is drawn apart: a plain caption, as people describe a photograph, or one
dressed up, as they write for Stable Diffusion.
"""

from collections.abc import Sequence

import torch

from rapm_cli.bases.scenery import FINISHES, KINDS, MEDIA, MOODS
from rapm_cli.core.common.randomness import generator_for

BLOCK = 1024  # prompts of one generator, no two of them equal: a generator costs as much as ten prompts
DRAWS = 12  # random numbers of one prompt; a scene takes up to five of them

REGISTERS = (
    "{caption}.",
    "{caption}.",
    "{scene}",
    "{scene}, {light}",
    "{scene}, {light}",
    "{view} of {scene}",
    "{view} of {scene}, {light}",
    "{scene}, {light}, {finish}",
    "{view} of {scene}, {light}, {finish}, {mood}",
    "{medium} of {scene}, {mood}",
)


def photographic_prompts(count: int, seed: int) -> list[str]:
    """Prompts for a distillation; longer lists begin with the shorter ones.

    Args:
        count: How many; the first 1,024 differ from each other, as does each later block of as many.
        seed: Which ones.
    """
    prompts: list[str] = []
    for number in range(-(-count // BLOCK)):
        prompts += _block(seed, number)
    return prompts[:count]


def _block(seed: int, number: int) -> list[str]:
    generator = generator_for(seed, "photographic prompts", number)
    made: dict[str, None] = {}
    while len(made) < BLOCK:
        made |= dict.fromkeys(map(_prompt, torch.randint(2**31, (BLOCK, DRAWS), generator=generator).tolist()))
    return list(made)[:BLOCK]


def groups(words: str) -> list[str]:
    """The word groups between the bars; one of them may be empty."""
    return [group.strip() for group in words.split("|")]


def _spaced(words: str) -> list[str]:
    """The word groups, each after a blank of its own, so that an empty one leaves none."""
    return [f" {group}" if group else "" for group in groups(words)]


_FINISHES, _MOODS, _MEDIA = groups(FINISHES), groups(MOODS), groups(MEDIA)
_SCENES = [
    ([_spaced(part) for part in scene], groups(kind.lights), groups(kind.views))
    for kind in KINDS
    for scene in kind.scenes
]


def _prompt(draws: Sequence[int]) -> str:
    """The prompt that a row of random numbers stands for."""
    register, scene, light, view, finish, mood, medium, *rest = draws
    parts, lights, views = _SCENES[scene % len(_SCENES)]
    words = "".join([part[k % len(part)] for part, k in zip(parts, rest, strict=False)])[1:]
    return REGISTERS[register % len(REGISTERS)].format(
        caption=words[0].upper() + words[1:],
        scene=words,
        light=lights[light % len(lights)],
        view=views[view % len(views)],
        finish=_FINISHES[finish % len(_FINISHES)],
        mood=_MOODS[mood % len(_MOODS)],
        medium=_MEDIA[medium % len(_MEDIA)],
    )
