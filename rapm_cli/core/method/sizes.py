"""Sizes of images, as options and files name them: "832x1216" is 832 pixels wide and 1216 high. This needs no torch."""

import re
from collections.abc import Sequence

from rapm_cli.core.common.errors import ConfigError

Size = tuple[int, int]  # width and height in pixels
NAME = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
MAX_SIDE = 8192  # pixels
WORDS = {  # for lists of sizes; the first of a list is the one that evaluations and sheets show
    # Of about a megapixel each, as users of SDXL name them; not checked against a publication.
    "sdxl": (
        "1024x1024", "1152x896", "896x1152", "1216x832", "832x1216", "1344x768", "768x1344", "1536x640", "640x1536",
    )
}  # fmt: skip


def parse_sizes(text: str) -> tuple[str, ...]:
    """Return the sizes of a list such as "1024x1024,832x1216", or of a word such as "sdxl"; equal ones count once.

    Raises:
        ConfigError: One of them is no size.
    """
    words = [word.strip().lower() for word in text.split(",") if word.strip()]
    names = dict.fromkeys(name for word in words for name in WORDS.get(word, (word,)))
    for name in names:
        parse_size(name)
    return tuple(names)


def parse_size(name: str) -> Size:
    """Return width and height of a size such as "832x1216".

    Raises:
        ConfigError: It is no size.
    """
    match = NAME.fullmatch(name.strip().lower())
    size = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 0 < max(size) <= MAX_SIDE:
        raise ConfigError(
            f"--size {name!r} is no size up to {MAX_SIDE} pixels", "write WIDTHxHEIGHT in pixels, such as 832x1216"
        )
    return size


def size_name(size: Size) -> str:
    """Return a size as options name it."""
    return f"{size[0]}x{size[1]}"


def check_size(name: str, step: int, base: str) -> Size:
    """Return a size that a base can sample.

    Args:
        name: Size, as options name it.
        step: Number of pixels by which the base's autoencoder and UNet divide width and height.
        base: Name of the base.

    Raises:
        ConfigError: It is no size, or not a multiple of `step`.
    """
    size = parse_size(name)
    if any(side % step for side in size):
        lower, upper = (tuple(max(step, (side + more) // step * step) for side in size) for more in (0, step - 1))
        near = dict.fromkeys(f"{width}x{height}" for width, height in (lower, upper))
        raise ConfigError(
            f"--size {name} is not a multiple of {step} pixels, by which {base} divides its images",
            f"give {' or '.join(near)}",
        )
    return size


def largest(sizes: Sequence[str]) -> Size | None:
    """Return the size with the most pixels; None of an empty list."""
    return max(map(parse_size, sizes), key=lambda size: size[0] * size[1], default=None)
