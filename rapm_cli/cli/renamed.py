"""Commands that accept other names of their options, and see options that are given twice.

Old names of rapm are accepted in this version, with a line that names the new one; those of other programs for good.
"""

import os
from collections import Counter
from typing import Any

import typer
from typer.core import TyperCommand

from rapm_cli.cli.console import Output
from rapm_cli.cli.foreign_options import answer, own_name
from rapm_cli.core.common.errors import ConfigError
from rapm_cli.runs import launcher

RENAMED = {  # for each command, and for study files, old names of options and their new ones, without dashes
    "distill": {
        "final-rate": "min-lr-ratio",
        "discriminator-times": "discriminator-noise",
        "lcm-times": "lcm-timesteps",
        "no-graphs": "no-cuda-graphs",
        "checkpointing": "gradient-checkpointing",
        "save-every": "checkpoint-every",
    },
    "eval": {"beside": "teacher-samples", "part": "split", "against": "compare-lora"},
    "study": {"part": "split", "exam-seed": "eval-seed"},
}
THINGS = ("--base", "--lora", "--compare-lora", "--prompts", "--from", "--reference", "--config", "--output")
_UsageError: Any = typer.BadParameter.__bases__[0]  # Typer defines it in a private module


class Command(TyperCommand):
    """A command that accepts other names of its options.

    Its help page shows the environment variables that several commands share. Every option has RAPM_COMMAND_OPTION too,
    as the end of the page says.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        own = f"RAPM_{self.name}_".upper()
        for parameter in self.params:
            variable = str(parameter.envvar or own)
            parameter.show_envvar = not variable.startswith(own)  # type: ignore[attr-defined]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, with each other name of an option replaced by the command's own.

        Raises:
            ConfigError: An option is of another program, or given twice with a value.
        """
        moved = self._moved_variables(ctx)
        end = args.index("--") if "--" in args else len(args)
        words = [self._own_word(word, is_silent=ctx.resilient_parsing) for word in args[:end]] + args[end:]
        os.environ.update(moved)
        try:
            if not ctx.resilient_parsing:
                self._refuse_repeated(ctx, words)
            return super().parse_args(ctx, words)
        except _UsageError as error:
            name = error.option_name if hasattr(error, "possibilities") else ""  # only an unknown option has these
            if found := answer(name.lstrip("-")):
                raise ConfigError(f"there is no option {name}: {found[0]}", found[1]) from error
            error.ctx = error.ctx or ctx  # so that the message names the command
            raise
        finally:
            for variable in moved:
                del os.environ[variable]

    def _own_word(self, word: str, *, is_silent: bool) -> str:
        """Return an argument, with the name of an option replaced by the command's own."""
        flag, equals, value = word.partition("=")
        name = flag.lstrip("-")
        if not word.startswith("-") or not name:
            return word
        flags = {known.lstrip("-"): known for one in self.params for known in one.opts if known.startswith("-")}
        if new := RENAMED.get(str(self.name), {}).get(name):
            _warn(flag, f"--{new}", is_silent=is_silent)
            return f"--{new}{equals}{value}"
        own = own_name(name, flags)
        return word if own == name else f"{flags[own]}{equals}{value}"

    def _moved_variables(self, ctx: Any) -> dict[str, str]:
        """Return the new names of environment variables that have an old one, with their values."""
        moved = {}
        for old, new in RENAMED.get(str(self.name), {}).items():
            variable, wanted = (f"{ctx.auto_envvar_prefix}_{name.replace('-', '_').upper()}" for name in (old, new))
            if variable in os.environ and wanted not in os.environ:
                moved[wanted] = os.environ[variable]
                _warn(variable, wanted, is_silent=ctx.resilient_parsing)
        return moved

    def _refuse_repeated(self, ctx: Any, words: list[str]) -> None:
        """Refuse an option that names a thing twice; warn where the last of several other values counts."""
        _, _, found = self.make_parser(ctx).parse_args(list(words))
        single = [one for one in found if not getattr(one, "is_flag", True) and not one.multiple]
        for parameter, count in Counter(single).items():
            flag = max(parameter.opts, key=len)
            if count > 1 and flag in THINGS:
                raise ConfigError(f"{flag} is given {count} times, and takes one value", f"keep one {flag}")
            if count > 1 and not launcher.is_follower():
                Output().warn(f"{flag} is given {count} times; the last one counts")


def current_name(command: str, key: str, where: str) -> str:
    """Return the name that a key of a file has today, and warn about an old name.

    Args:
        command: Name of the command, such as "distill"; "study" for the keys of study files themselves.
        key: Key in the file.
        where: File, and place in it, for the warning.
    """
    flag = key.replace("_", "-")
    new = RENAMED.get(command, {}).get(flag, flag)
    if new != flag:
        _warn(f"{where}: {key}", new, is_silent=False)
    return new


def _warn(old: str, new: str, *, is_silent: bool) -> None:
    if not is_silent and not launcher.is_follower():
        Output().warn(f"{old} is now {new}; the old name works in this version only")
