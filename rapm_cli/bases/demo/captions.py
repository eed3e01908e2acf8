"""Captions of scenes in several wordings, and the words that the demo base knows."""

import re
from collections.abc import Iterable, Iterator

import torch

from rapm_cli.bases.demo.world import ATTRIBUTES, COLOURS, SHAPES, SIZES, Scene, Solid
from rapm_cli.core.common.randomness import Draws

NAMES = {"sphere": ("sphere", "ball"), "cube": ("cube", "box"), "cone": ("cone",), "ring": ("ring",)}
SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
RELATION_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
BACKGROUND_WORDS = {"dawn": "at dawn", "noon": "at noon", "dusk": "at dusk", "snow": "in the snow"}
PAIR_PHRASES = (
    "{first} {relation} {second} {background}",
    "{first} {relation} {second}, {background}",
    "{background}, {first} {relation} {second}",
    "{background}, {first} is {relation} {second}",
    "a picture of {first} {relation} {second} {background}",
    "there is {first} {relation} {second} {background}",
)
SINGLE_PHRASES = (
    "{first} {background}",
    "{first}, {background}",
    "{background}, {first}",
    "a picture of {first} {background}",
    "there is {first} {background}",
)
EXTRA_WORDS = ("a", "an", "the", "and", "photo", "image", "of")

KNOWN_WORDS = frozenset(
    re.findall(
        r"[a-z]+",
        " ".join(
            [
                *(word for words in (*NAMES.values(), *SIZE_WORDS.values()) for word in words),
                *(word for words in RELATION_WORDS.values() for word in words),
                *BACKGROUND_WORDS.values(),
                *COLOURS,
                *(re.sub(r"{\w+}", "", phrase) for phrase in (*PAIR_PHRASES, *SINGLE_PHRASES)),
                *EXTRA_WORDS,
            ]
        ),
    )
)
UNDERSTANDS = (
    f"{', '.join(SHAPES)}; {', '.join(COLOURS)}; {', '.join(SIZES)}; "
    "left of, right of, above, below; at dawn, at noon, at dusk, in the snow"
)


def unknown_words(prompt: str) -> list[str]:
    """Return the words of a prompt that the demo base does not know, in order, each once."""
    return list(dict.fromkeys(word for word in re.findall(r"[^\W\d_]+", prompt.lower()) if word not in KNOWN_WORDS))


def caption(scene: Scene) -> str:
    """Return the plain caption of a scene, with all attributes."""
    phrase = "{first} {background}" if scene.second is None else "{first} {relation} {second} {background}"
    return phrase.format(
        first=_noun(scene.first),
        second=_noun(scene.second) if scene.second else "",
        relation=scene.relation,
        background=BACKGROUND_WORDS[scene.background],
    )


def _noun(solid: Solid) -> str:
    article = "an" if not solid.size and solid.colour[0] in "aeiou" else "a"
    return " ".join(word for word in (article, solid.size, solid.colour, solid.shape) if word)


def phrases(
    scenes: Iterable[Scene], generator: torch.Generator, *, omit: float = 0.0
) -> Iterator[tuple[str, frozenset[str]]]:
    """Generate a caption in random wording for each scene.

    Args:
        scenes: Scenes to describe.
        generator: CPU generator that chooses the wordings; nothing else may use it until all captions are made.
        omit: Probability to leave out a solid's size, and to leave out the background.

    Yields:
        A caption, and the names in `ATTRIBUTES` that it leaves out.
    """
    with Draws(generator) as draws:
        for scene in scenes:
            yield _phrase(scene, draws, omit)


def _phrase(scene: Scene, draws: Draws, omit: float) -> tuple[str, frozenset[str]]:
    def is_omitted() -> bool:
        return omit > 0 and draws.is_hit(omit)

    unsaid: set[str] = set()

    def noun(solid: Solid, place: str) -> str:
        size = draws.pick(SIZE_WORDS[solid.size])
        if is_omitted():
            unsaid.add(f"{place} size")
            size = ""
        return _noun(Solid(draws.pick(NAMES[solid.shape]), solid.colour, size))

    is_swapped = scene.canonical() != scene
    first = noun(scene.first, "second" if is_swapped else "first")
    background = BACKGROUND_WORDS[scene.background]
    if is_omitted():
        unsaid.add("background")
        background = ""
    if scene.second is None:
        text = draws.pick(SINGLE_PHRASES).format(first=first, background=background)
    else:
        assert scene.relation is not None
        text = draws.pick(PAIR_PHRASES).format(
            first=first,
            second=noun(scene.second, "first" if is_swapped else "second"),
            relation=draws.pick(RELATION_WORDS[scene.relation]),
            background=background,
        )
    assert unsaid <= ATTRIBUTES.keys()
    return " ".join(text.split()).strip(" ,"), frozenset(unsaid)
