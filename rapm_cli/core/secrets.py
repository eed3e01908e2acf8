"""Secrets cut out of everything that is said or stored."""

import re

_SECRETS = (
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), "hf_***"),
    (
        re.compile(
            r"(?i)\b((?:authorization|bearer|token|api[_-]?key|password|secret)[\"']?\s*[=: ]\s*[\"']?(?:bearer\s+)?)"
            r"[A-Za-z0-9._~+/-]{16,}"
        ),
        r"\1***",
    ),
    (re.compile(r"(\w+://)[^/\s:@]+:[^/\s@]+@"), r"\1***@"),
)


def redact(text: str) -> str:
    """The text with tokens of the hub, authorization values and passwords in addresses replaced by stars."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text
