"""Old names of options: rapm accepts them in this version, and prints a line with the new name."""

import os
from typing import Any

from typer.core import TyperCommand

from rapm_cli.cli.console import Output
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


class Command(TyperCommand):
    """A command that accepts old names of its options.

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
        """Parse the arguments, with each old name replaced by the new one."""
        moved = {}
        for old, new in RENAMED.get(str(self.name), {}).items():
            for position, word in enumerate(args[: args.index("--")] if "--" in args else args):
                flag, equals, value = word.partition("=")
                if flag == f"--{old}":
                    args[position] = f"--{new}{equals}{value}"
                    _warn(flag, f"--{new}", is_silent=ctx.resilient_parsing)
            variable, wanted = (f"{ctx.auto_envvar_prefix}_{name.replace('-', '_').upper()}" for name in (old, new))
            if variable in os.environ and wanted not in os.environ:
                moved[wanted] = os.environ[variable]
                _warn(variable, wanted, is_silent=ctx.resilient_parsing)
        os.environ.update(moved)
        try:
            return super().parse_args(ctx, args)
        finally:
            for variable in moved:
                del os.environ[variable]


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
