"""Secrets are replaced by stars in everything that rapm prints. Files that rapm writes need none."""

import os
import re
from typing import Any

_NAMES = r"token|api[_-]?key|access[_-]?key|password|passwd|secret|signature|credential"
_SECRETS = (
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), "hf_***"),
    (re.compile(r"\b(\w+://)[^/\s@]+@"), r"\1***@"),
    (re.compile(r"(?i)(authorization[\"']?\s*[:=]\s*[\"']?(?:\w+\s+)?)[\w.~+/=-]{8,}"), r"\1***"),
    (re.compile(r"(?i)(\b(?:bearer|basic)\s+)(?=\S{0,99}\d)[\w.~+/=-]{16,}"), r"\1***"),
    (re.compile(rf"(?i)((?:{_NAMES})[\"']?\s*=\s*[\"']?)[^\s\"'&]{{6,}}"), r"\1***"),
    # After a colon an ordinary word may follow, so only values with a digit count.
    (re.compile(rf"(?i)((?:{_NAMES})[\"']?\s*:\s*[\"']?)(?=\S{{0,99}}\d)[^\s\"'&]{{6,}}"), r"\1***"),
)
_VARIABLE = re.compile(rf"(?i)(?:^|_)(?:{_NAMES})$")
_SHORTEST = 8  # characters of a variable's value; a shorter one may be any word


def redact(text: str) -> str:
    """Return a text with stars in place of secrets.

    Secrets are: tokens of the Hugging Face hub; authorization headers; passwords and keys that follow their names or
    stand in addresses; and the values of environment variables with such names, for example `HF_TOKEN`.
    """
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _VARIABLE.search(name):
            text = text.replace(value, "***")
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def redact_values(value: Any) -> Any:
    """Return JSON values with every text redacted. A text under the name of a secret is a secret."""
    if isinstance(value, dict):
        return {
            redact(str(name)): "***" if isinstance(item, str) and _VARIABLE.search(str(name)) else redact_values(item)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact_values(item) for item in value]
    return redact(value) if isinstance(value, str) else value
