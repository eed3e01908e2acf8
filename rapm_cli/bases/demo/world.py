"""The scenes of the demo world, and the share of them that no training sees.

A scene is one solid, or two solids in a relation, in front of a background. "A left of B" and "B right of A" are the
same scene: code that must not depend on the wording uses `Scene.canonical()`.
"""

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from rapm_cli.core.common.randomness import Draws

SHAPES = ("sphere", "cube", "cone", "ring")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "white")
SIZES = ("small", "large")
BACKGROUNDS = ("dawn", "noon", "dusk", "snow")
RELATIONS = ("left of", "right of", "above", "below")
LAYOUTS = ("alone", "side by side", "stacked")

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
SINGLE_SHARE = 0.15  # share of random scenes with one solid
HELD_OUT_PARTS = 5  # one canonical scene in five is held out


class Solid(NamedTuple):
    """One solid of a scene: names from `SHAPES`, `COLOURS` and `SIZES`."""

    shape: str
    colour: str
    size: str


class Scene(NamedTuple):
    """The content of an image: `first` alone, or `first` in `relation` to `second`, in front of `background`."""

    first: Solid
    second: Solid | None
    relation: str | None
    background: str

    def canonical(self) -> "Scene":
        """Return the same scene with the left or upper solid first."""
        if self.relation in ("right of", "below"):
            assert self.second is not None
            return Scene(self.second, self.first, OPPOSITE[self.relation], self.background)
        return self

    @property
    def layout(self) -> str:
        """Arrangement of the solids, one of `LAYOUTS`."""
        if self.relation is None:
            return "alone"
        return "side by side" if self.relation in ("left of", "right of") else "stacked"

    @property
    def is_held_out(self) -> bool:
        """True for the fifth of all scenes, chosen by a hash, that no training sees."""
        return _is_held_out(self.canonical())


@cache
def _is_held_out(scene: Scene) -> bool:
    digest = hashlib.sha256(repr(scene).encode()).digest()
    return int.from_bytes(digest[:4], "little") % HELD_OUT_PARTS == 0


# Attributes of an image with their classes, in the order of a label's columns; a second solid can be "absent".
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "first shape": SHAPES,
    "first colour": COLOURS,
    "first size": SIZES,
    "second shape": (*SHAPES, "absent"),
    "second colour": (*COLOURS, "absent"),
    "second size": (*SIZES, "absent"),
    "layout": LAYOUTS,
    "background": BACKGROUNDS,
}
SECOND = slice(3, 6)  # columns that a one-solid scene leaves absent


def labels(scenes: Sequence[Scene]) -> Tensor:
    """Return the class of every attribute of B scenes.

    Returns:
        (B, 8) int64, columns as in `ATTRIBUTES`.
    """
    rows = []
    for scene in scenes:
        place = scene.canonical()
        words: list[str] = []
        for solid in (place.first, place.second):
            words += [solid.shape, solid.colour, solid.size] if solid else ["absent"] * 3
        words += [place.layout, place.background]
        rows.append([classes.index(word) for classes, word in zip(ATTRIBUTES.values(), words, strict=True)])
    return torch.tensor(rows)


def random_scene(draws: Draws) -> Scene:
    """Return one random scene of the whole world, which can be a held-out one."""

    def solid() -> Solid:
        return Solid(draws.pick(SHAPES), draws.pick(COLOURS), draws.pick(SIZES))

    first, background = solid(), draws.pick(BACKGROUNDS)
    if draws.is_hit(SINGLE_SHARE):
        return Scene(first, None, None, background)
    second = solid()
    while second == first:
        second = solid()
    return Scene(first, second, draws.pick(RELATIONS), background)


def random_scenes(count: int, generator: torch.Generator, *, held_out: bool) -> list[Scene]:
    """Return random scenes of one part of the world.

    Args:
        count: Number of scenes.
        generator: CPU generator; the same state gives the same scenes.
        held_out: True for scenes that no training sees, False for the others.
    """
    scenes: list[Scene] = []
    with Draws(generator) as draws:
        while len(scenes) < count:
            scene = random_scene(draws)
            if scene.is_held_out == held_out:
                scenes.append(scene)
    return scenes
