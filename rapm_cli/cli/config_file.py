"""`--config FILE`: options from TOML, below the environment and the flags, above the defaults."""

import difflib
import tomllib
from pathlib import Path
from typing import Any

import typer

from rapm_cli.core.errors import ConfigError, InputError
from rapm_cli.core.files import regular_file


def read_config_file(context: typer.Context, path: Path | None) -> Path | None:
    """Make a file's values the command's defaults; Typer then checks them as it checks flags.

    Raises:
        InputError: The file cannot be read or is not TOML.
        ConfigError: It has a key that the command does not know, or a value of a wrong type.
    """
    if path is None:
        return None
    try:
        table = tomllib.loads(regular_file(path, "check the path").read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", "check the path") from error
    except RecursionError as error:
        raise InputError(f"{path} is nested too deeply", "write lines such as rank = 4") from error
    except ValueError as error:  # not TOML, or not UTF-8, or a number of too many digits
        raise InputError(f"{path} is not TOML: {error}", "write lines such as rank = 4") from error
    known = {flag[2:]: p for p in context.command.params for flag in p.opts if flag.startswith("--")}
    known = {flag: p for flag, p in known.items() if flag not in ("config", "help")}
    values: dict[str, Any] = {}
    for key, value in table.items():
        flag = key.replace("_", "-")
        if flag not in known:
            close = difflib.get_close_matches(flag, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "see --help for the known ones"
            raise ConfigError(f"{path} has an unknown key {key!r}", hint)
        name = str(known[flag].name)
        if name in values:
            raise ConfigError(f"{path} says {flag} twice", "keep one of the two")
        values[name] = _checked(path, key, value, is_flag=getattr(known[flag], "is_flag", False))
    context.default_map = {**(context.default_map or {}), **values}
    return path


def _checked(path: Path, key: str, value: Any, *, is_flag: bool) -> Any:
    """The value as a flag would give it: text or a number; a list becomes text with commas."""
    if isinstance(value, list) and all(type(item) in (int, float, str) for item in value):
        return ",".join(map(str, value))
    if isinstance(value, bool) != is_flag or not isinstance(value, str | int | float | bool):
        raise ConfigError(f"{path}: {key} has a value of a wrong type", f"write it as --{key} takes it")
    return value
