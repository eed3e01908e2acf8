"""Training prompts for photographic bases, combined from word lists.

A row of lists in `scenery` is a scene: one word group from each list makes a sensible sentence. The scene's kind names
suitable light and views. The register is chosen independently: a plain caption, or the style of Stable Diffusion
prompts.
"""

from collections.abc import Sequence

import torch

from rapm_cli.bases.scenery import FINISHES, KINDS, MEDIA, MOODS
from rapm_cli.core.common.randomness import generator_for

BLOCK = 1024  # distinct prompts of one random generator; creating a generator costs as much as ten prompts
DRAWS = 12  # random numbers for one prompt; a scene uses up to five

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
    """Generate training prompts; a longer list begins with the shorter ones.

    Args:
        count: Number of prompts. Prompts within a block of 1,024 are distinct.
        seed: Seed of the choice.
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
    """Split word groups at the bars; a group may be empty."""
    return [group.strip() for group in words.split("|")]


def _spaced(words: str) -> list[str]:
    """Split word groups and put a space before each that is not empty."""
    return [f" {group}" if group else "" for group in groups(words)]


_FINISHES, _MOODS, _MEDIA = groups(FINISHES), groups(MOODS), groups(MEDIA)
_SCENES = [
    ([_spaced(part) for part in scene], groups(kind.lights), groups(kind.views))
    for kind in KINDS
    for scene in kind.scenes
]


def _prompt(draws: Sequence[int]) -> str:
    """Build the prompt of one row of random numbers."""
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
