"""Options under the names that they had before version 0.2: accepted in this version, with a line that says the new."""

import os
from typing import Any

from typer.core import TyperCommand

from rapm_cli.cli.console import Output
from rapm_cli.runs import launcher

RENAMED = {  # for each command, old names of options and their new ones, without dashes
    "distill": {
        "final-rate": "min-lr-ratio",
        "discriminator-times": "discriminator-noise",
        "lcm-times": "lcm-timesteps",
        "no-graphs": "no-cuda-graphs",
        "checkpointing": "gradient-checkpointing",
        "save-every": "checkpoint-every",
    },
    "eval": {"beside": "teacher-samples", "part": "split", "against": "compare-lora"},
}


class Command(TyperCommand):
    """A command that takes old names of its options, and whose help shows only variables that several commands share.

    Any other option's variable is RAPM_COMMAND_OPTION, as the end of the help page says.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        for parameter in self.params:
            parameter.show_envvar = bool(parameter.envvar)  # type: ignore[attr-defined]

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
    """Return the name, without dashes, that an option of a file has now; an old name is warned about.

    Args:
        command: Name of the command, such as "distill".
        key: Name of an option in the file.
        where: Place in the file, for the warning.
    """
    flag = key.replace("_", "-")
    new = RENAMED.get(command, {}).get(flag, flag)
    if new != flag:
        _warn(f"{where}: {key}", new, is_silent=False)
    return new


def _warn(old: str, new: str, *, is_silent: bool) -> None:
    if not is_silent and not launcher.is_follower():
        Output().warn(f"{old} is now {new}; the old name goes with the next version")
