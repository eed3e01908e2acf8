"""Prompts from a file or standard input, and what is wrong with them."""

import sys
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

from rapm_cli.core.errors import InputError
from rapm_cli.core.files import regular_file

if TYPE_CHECKING:
    from rapm_cli.bases import Base, LoadedBase
    from rapm_cli.core.config import TeacherConfig
    from rapm_cli.core.watch import Watcher

MAX_CHARACTERS = 2000
MAX_PROMPTS, MAX_BYTES = 1_000_000, 64_000_000  # of one file
REMEDY = "give a text file, one prompt a line"


def read_prompts(source: str) -> list[str]:
    """One prompt a line, empty lines left out.

    Args:
        source: Path of a UTF-8 text file, or "-" for standard input.

    Raises:
        InputError: The source cannot be read, is not such a text, or holds no prompt.
    """
    name = "standard input" if source == "-" else source
    try:
        data = _read(source)
        lines = data.decode("utf-8-sig").splitlines() if len(data) <= MAX_BYTES else []
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror}", REMEDY) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 (byte {error.start})", "save it as UTF-8 text") from error
    if len(data) > MAX_BYTES or len(lines) > MAX_PROMPTS:
        raise InputError(f"{name} has more than {MAX_PROMPTS:,} lines or {MAX_BYTES / 1e6:.0f} MB", "split it")
    prompts = [check_prompt(line, f"{name} line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise InputError(f"{name} holds no prompt", "write one prompt a line")
    return prompts


def _read(source: str) -> bytes:
    """At most one byte more than is allowed."""
    if source != "-":
        with regular_file(Path(source), f"{REMEDY}, or pipe them into --prompts -").open("rb") as file:
            return file.read(MAX_BYTES + 1)
    if sys.stdin is None:
        raise InputError("standard input is closed", REMEDY)
    return sys.stdin.buffer.read(MAX_BYTES + 1)


def check_prompt(prompt: str, place: str) -> str:
    """The prompt without surrounding blanks.

    Raises:
        InputError: It is empty, too long, or has control characters.
    """
    text = prompt.strip()
    if not text:
        raise InputError(f"{place} is empty", "write what the picture shows")
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"{place} has {len(text):,} characters, the limit is {MAX_CHARACTERS:,}", "shorten it")
    if any(unicodedata.category(character) in ("Cc", "Cs") and character != "\t" for character in text):
        raise InputError(f"{place} has a control character or is not UTF-8", "remove it")
    return text


def training_prompts(base: "Base", config: "TeacherConfig", given: list[str] | None, watcher: "Watcher") -> list[str]:
    """As many prompts as the distillation wants: the user's, repeated if they are few, or the base's own."""
    if given:
        if len(given) > config.trajectories:
            watcher.warn(
                f"{len(given) - config.trajectories} of {len(given)} prompts are left out: give --trajectories"
            )
        unknown = next((text for prompt in given[: config.trajectories] if (text := base.warn(prompt))), "")
        if unknown:
            watcher.warn(unknown)
        return [given[k % len(given)] for k in range(config.trajectories)]
    return base.training_prompts(config.trajectories, config.seed)


def warn_of_unread(base: "LoadedBase", prompts: list[str], watcher: "Watcher") -> None:
    """Say once that prompts are longer than the base reads, and show what is lost of the first."""
    cut = [text for prompt in dict.fromkeys(prompts) if (text := base.unread(prompt))]
    if cut:
        watcher.warn(f"the base does not read the end of {len(cut)} of {len(prompts)} prompts: {cut[0]}")
