"""`--config FILE`: options from TOML, below the environment and the flags, above the defaults."""

import difflib
import tomllib
from pathlib import Path
from typing import Any

import typer

from rapm_cli.core.errors import ConfigError, InputError


def read_config_file(context: typer.Context, path: Path | None) -> Path | None:
    """Make a file's values the command's defaults; Typer then checks them as it checks flags.

    Raises:
        InputError: The file cannot be read or is not TOML.
        ConfigError: It has a key that the command does not know, or a value of a wrong type.
    """
    if path is None:
        return None
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", "check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}", "write lines such as rank = 4") from error
    known = {str(p.name): p for p in context.command.params if p.name not in ("config", "help")}
    values: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0].replace('_', '-')!r}?" if close else "see --help for the known ones"
            raise ConfigError(f"{path} has an unknown key {key!r}", hint)
        values[name] = _checked(path, key, value, is_flag=getattr(known[name], "is_flag", False))
    context.default_map = {**(context.default_map or {}), **values}
    return path


def _checked(path: Path, key: str, value: Any, *, is_flag: bool) -> Any:
    """The value as a flag would give it: text or a number; a list becomes text with commas."""
    if isinstance(value, list) and all(isinstance(item, int | float) for item in value):
        return ",".join(map(str, value))
    if isinstance(value, bool) != is_flag or not isinstance(value, str | int | float | bool):
        raise ConfigError(f"{path}: {key} has a value of a wrong type", f"write it as --{key} takes it")
    return value
