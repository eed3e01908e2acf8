"""Secrets cut out of everything that is said; nothing that is stored asks for one."""

import os
import re
from typing import Any

_NAMES = r"token|api[_-]?key|access[_-]?key|password|passwd|secret|signature|credential"
_SECRETS = (
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), "hf_***"),
    (re.compile(r"(\w+://)[^/\s@]+@"), r"\1***@"),
    (re.compile(r"(?i)(authorization[\"']?\s*[:=]\s*[\"']?(?:\w+\s+)?)[\w.~+/=-]{8,}"), r"\1***"),
    (re.compile(r"(?i)(\b(?:bearer|basic)\s+)(?=\S*\d)[\w.~+/=-]{16,}"), r"\1***"),
    (re.compile(rf"(?i)((?:{_NAMES})[\"']?\s*=\s*[\"']?)[^\s\"'&]{{6,}}"), r"\1***"),
    # Words follow colons too: there a secret has a digit.
    (re.compile(rf"(?i)((?:{_NAMES})[\"']?\s*:\s*[\"']?)(?=\S*\d)[^\s\"'&]{{6,}}"), r"\1***"),
)
_VARIABLE = re.compile(rf"(?i)(?:^|_)(?:{_NAMES})$")
_SHORTEST = 8  # of a variable's value; what is shorter may be any word


def redact(text: str) -> str:
    """The text with stars in place of secrets: what looks like one, and what a variable of the environment holds.

    Tokens of the hub, authorization values, passwords and keys after their names and in addresses, and the values of
    variables named so, such as `HF_TOKEN`.
    """
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _VARIABLE.search(name):
            text = text.replace(value, "***")
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def redact_values(value: Any) -> Any:
    """JSON values with every text redacted; a text that has a secret's name is one."""
    if isinstance(value, dict):
        return {
            redact(str(name)): "***" if isinstance(item, str) and _VARIABLE.search(str(name)) else redact_values(item)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact_values(item) for item in value]
    return redact(value) if isinstance(value, str) else value
