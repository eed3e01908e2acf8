"""Values of settings in words, for messages; no setting is declared here."""

from typing import TYPE_CHECKING, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from rapm_cli.core.common.errors import ConfigError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

# Pydantic's names of limits, and the starts of its names of type errors, in words.
LIMITS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
TYPES = {
    **{"int": "a whole number", "float": "a number", "finite": "a finite number", "bool": "true or false"},
    **{"string": "text", "list": "a list", "dict": "a table", "model": "a table", "tuple": "a list"},
}


def out_of_range(option: str, value: object, wants: str) -> ConfigError:
    """Return the error of a value outside its option's range."""
    return ConfigError(f"--{option} {value} is out of range", f"give {wants}")


def wanted(error: "ErrorDetails") -> str:
    """Return the values that pydantic would have accepted, in words that follow "give"."""
    context = error.get("ctx", {})
    for key, words in LIMITS.items():
        if key in context:
            return f"{words} {context[key]}"
    if error["type"] == "literal_error":
        return str(context["expected"])
    if error["type"] == "too_short":
        return "a list with at least one entry"
    return TYPES.get(error["type"].partition("_")[0], "another value")


def range_of(field: FieldInfo) -> str:
    """Return the values that a setting takes, in words; empty where its type says all."""
    if get_origin(field.annotation) is Literal:
        *others, last = get_args(field.annotation)
        return f"{', '.join(others)} or {last}"
    limits = {key: getattr(one, key) for one in field.metadata for key in LIMITS if hasattr(one, key)}
    if "ge" in limits and "le" in limits:
        return f"{limits['ge']} to {limits['le']}"
    return " and ".join(f"{LIMITS[key]} {limit}" for key, limit in limits.items())


def shown(value: object) -> object:
    """Return a value as a user types it: a list with commas."""
    if not isinstance(value, tuple | list):
        return value
    return ",".join(f"{item:g}" if isinstance(item, int | float) else str(item) for item in value)


def in_words(value: object) -> str:
    """Return the value of a setting as a user gives it; an empty list is unset."""
    return ("off", "on")[value] if isinstance(value, bool) else str(shown(value)) or "unset"
