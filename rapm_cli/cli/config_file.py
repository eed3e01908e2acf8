"""`--config FILE`: options from a TOML file. They override defaults; the environment and flags override them."""

import difflib
import tomllib
from pathlib import Path
from typing import Any

import typer

from rapm_cli.cli.foreign_options import answer, own_name
from rapm_cli.cli.renamed import current_name
from rapm_cli.core.common.errors import ConfigError, InputError
from rapm_cli.core.storage.files import regular_file


def read_config_file(context: typer.Context, path: Path | None) -> Path | None:
    """Make a file's values the defaults of the command. Typer then checks them as it checks flags.

    Args:
        context: Context of the command.
        path: Value of --config; None where there is none.

    Returns:
        `path`.

    Raises:
        InputError: The file cannot be read or is not TOML.
        ConfigError: The file has an unknown key, or a value of a wrong type.
    """
    if path is not None:
        values = option_values(context.command, read_toml(path), str(path))
        context.default_map = {**(context.default_map or {}), **values}
    return path


def read_toml(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file.

    Raises:
        InputError: The file cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(regular_file(path, "check the path").read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", "check the path") from error
    except RecursionError as error:
        raise InputError(f"{path} is nested too deeply", "write lines such as rank = 4") from error
    except ValueError as error:  # not TOML, or not UTF-8, or a number of too many digits
        raise InputError(f"{path} is not TOML: {error}", "write lines such as rank = 4") from error


def option_values(command: Any, table: dict[str, Any], where: str) -> dict[str, Any]:
    """Return values of a command's parameters by parameter name, as flags would give them.

    Args:
        command: Typer's command.
        table: Names of options, without leading dashes, to values.
        where: File, and place in it, for messages.

    Raises:
        ConfigError: A key is unknown or given twice, or a value is of a wrong type.
    """
    known = {flag[2:]: p for p in command.params for flag in p.opts if flag.startswith("--")}
    known = {flag: p for flag, p in known.items() if flag not in ("config", "help")}
    values: dict[str, Any] = {}
    for key, value in table.items():
        flag = own_name(current_name(command.name, key, where), known)
        if flag not in known:
            raise unknown_key(where, key, list(known), "see --help for the known ones")
        name = str(known[flag].name)
        if name in values:
            raise ConfigError(f"{where} has {flag} twice", "keep one of the two")
        values[name] = _checked(where, key, value, known[flag])
    return values


def unknown_key(where: str, key: str, known: list[str], otherwise: str) -> ConfigError:
    """Return the error of an unknown key: why rapm has none of that name, or the nearest known one."""
    if found := answer(key):
        return ConfigError(f"{where} has a key {key!r}: {found[0]}", found[1])
    close = difflib.get_close_matches(key.replace("_", "-"), known, n=1)
    return ConfigError(f"{where} has an unknown key {key!r}", f"did you mean {close[0]!r}?" if close else otherwise)


def _checked(where: str, key: str, value: Any, parameter: Any) -> Any:
    """Return a value as a flag would give it: text, a number or a switch; a list becomes text with commas.

    For an option that can be repeated, a list stays a list, and a single text becomes one.
    """
    is_flag, items = getattr(parameter, "is_flag", False), value if isinstance(value, list) else [value]
    if getattr(parameter, "multiple", False) and all(isinstance(item, str) for item in items):
        return items
    if isinstance(value, list) and all(type(item) in (int, float, str) for item in value):
        return ",".join(map(str, value))
    if isinstance(value, bool) != is_flag or not isinstance(value, str | int | float | bool):
        raise ConfigError(f"{where}: {key} has a value of a wrong type", f"write it as --{key} takes it")
    return value
