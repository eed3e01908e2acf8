"""Prompts from a file or standard input, and what is wrong with them."""

import sys
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

from rapm_cli.core.errors import InputError

if TYPE_CHECKING:
    from rapm_cli.bases import LoadedBase
    from rapm_cli.workflows.watch import Watcher

MAX_CHARACTERS = 2000
MAX_PROMPTS = 1_000_000


def read_prompts(source: str) -> list[str]:
    """One prompt a line, empty lines left out.

    Args:
        source: Path of a UTF-8 text file, or "-" for standard input.

    Raises:
        InputError: The source cannot be read, is not such a text, or holds no prompt.
    """
    name = "standard input" if source == "-" else source
    try:
        if source == "-" and sys.stdin is None:
            raise InputError("standard input is closed", "give a text file, one prompt a line")
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        lines = data.decode("utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror}", "give a text file, one prompt a line") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 (byte {error.start})", "save it as UTF-8 text") from error
    prompts = [check_prompt(line, f"{name} line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise InputError(f"{name} holds no prompt", "write one prompt a line")
    if len(prompts) > MAX_PROMPTS:
        raise InputError(f"{name} holds {len(prompts):,} prompts, more than {MAX_PROMPTS:,}", "split it")
    return prompts


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


def warn_of_unread(base: "LoadedBase", prompts: list[str], watcher: "Watcher") -> None:
    """Say once that prompts are longer than the base reads, and show what is lost of the first."""
    cut = [text for prompt in dict.fromkeys(prompts) if (text := base.unread(prompt))]
    if cut:
        watcher.warn(f"the base does not read the end of {len(cut)} of {len(prompts)} prompts: {cut[0]}")
