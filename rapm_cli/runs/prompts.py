"""Prompts from a file or standard input, and what is wrong with them."""

import re
from typing import TYPE_CHECKING

from rapm_cli.core.common.errors import InputError
from rapm_cli.runs.prompt_files import REMEDY, find_prompts

if TYPE_CHECKING:
    from rapm_cli.bases import Base, LoadedBase
    from rapm_cli.core.common.progress import Reporter
    from rapm_cli.core.method.config import TeacherConfig

MAX_CHARACTERS = 2000
MAX_PROMPTS = 1_000_000  # of one file
UNSEEN = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\ud800-\udfff]")  # Unicode's Cc and Cs, without the tab


def read_prompts(source: str, reporter: "Reporter") -> list[str]:
    """The prompts of a file or of standard input in their order, empty ones left out.

    Args:
        source: As `find_prompts` takes it.
        reporter: Is told how many there are, and how many of them repeat.

    Raises:
        InputError: The source cannot be read, is not of its form, or holds no prompt or too many.
    """
    name, found = find_prompts(source)
    prompts: list[str] = []
    for place, text in found:
        if text.strip():
            prompts.append(check_prompt(text, place))
        if len(prompts) > MAX_PROMPTS:
            raise InputError(f"{name} has more than {MAX_PROMPTS:,} prompts", "split it")
    if not prompts:
        raise InputError(f"{name} holds no prompt", REMEDY)
    repeated = len(prompts) - len(set(prompts))
    if len(prompts) > 1:
        counted = f"{len(prompts):,} prompts from {name}"
        reporter.say(f"{repeated:,} of {counted} repeat" if repeated else counted)
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
    if UNSEEN.search(text):
        raise InputError(f"{place} has a control character or is not UTF-8", "remove it")
    return text


def training_prompts(base: "Base", config: "TeacherConfig", given: list[str] | None, reporter: "Reporter") -> list[str]:
    """As many prompts as the distillation wants: the user's, repeated if they are few, or the base's own."""
    if given:
        if len(given) > config.trajectories:
            reporter.warn(
                f"{len(given) - config.trajectories} of {len(given)} prompts are left out: give --trajectories"
            )
        unknown = next((text for prompt in given[: config.trajectories] if (text := base.warn(prompt))), "")
        if unknown:
            reporter.warn(unknown)
        return [given[k % len(given)] for k in range(config.trajectories)]
    return base.training_prompts(config.trajectories, config.seed)


def warn_of_unread(base: "LoadedBase", prompts: list[str], reporter: "Reporter") -> None:
    """Say once that prompts are longer than the base reads, and show what is lost of the first."""
    cut = [text for prompt in dict.fromkeys(prompts) if (text := base.unread(prompt))]
    if cut:
        reporter.warn(f"the base does not read the end of {len(cut)} of {len(prompts)} prompts: {cut[0]}")
