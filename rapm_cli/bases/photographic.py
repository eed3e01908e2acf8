"""Prompts for bases that know the visible world, put together from what goes together.

A scene is a row of lists in `photographic_words`; one word group of each list, in order, is a sentence that makes
sense. A kind of scene has the light, the views and the media that suit it. The register is drawn apart: a plain
caption, or one dressed up as people write for Stable Diffusion.
"""

from collections.abc import Sequence

import torch

from rapm_cli.bases.photographic_words import FINISHES, KINDS, MEDIA, MOODS
from rapm_cli.core.randomness import generator_for

BLOCK = 1024  # prompts of one generator; no two of them are equal
DRAWS = 16  # random numbers of one prompt, more than any prompt needs


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


def _groups(text: str) -> list[str]:
    """The word groups between the bars, each with a blank before it; an empty one leaves the place empty."""
    return [f" {group.strip()}" if group.strip() else "" for group in text.split("|")]


_MEDIA, _FINISHES, _MOODS = _groups(MEDIA), _groups(FINISHES), _groups(MOODS)
_SCENES = [
    ([_groups(part) for part in scene], _groups(kind.lights), _groups(kind.views))
    for kind in KINDS
    for scene in kind.scenes
]


def _prompt(draws: Sequence[int]) -> str:
    """The prompt that a row of random numbers stands for."""
    register, scene, light, view, finish, mood, *rest = draws
    parts, lights, views = _SCENES[scene % len(_SCENES)]
    words = "".join([part[k % len(part)] for part, k in zip(parts, rest, strict=False)])[1:]
    match register % 10:
        case 0 | 1:
            return f"{words[0].upper()}{words[1:]}."
        case 2:
            return words
        case 3 | 4:
            return f"{words},{lights[light % len(lights)]}"
        case 5:
            return f"{views[view % len(views)][1:]} of {words},{lights[light % len(lights)]}"
        case 6:
            return f"{views[view % len(views)][1:]} of {words}"
        case 7:
            shown = f"{views[view % len(views)][1:]} of {words},{lights[light % len(lights)]}"
            return f"{shown},{_FINISHES[finish % len(_FINISHES)]},{_MOODS[mood % len(_MOODS)]}"
        case 8:
            return f"{words},{lights[light % len(lights)]},{_FINISHES[finish % len(_FINISHES)]}"
        case _:
            return f"{_MEDIA[finish % len(_MEDIA)][1:]} of {words},{_MOODS[mood % len(_MOODS)]}"
