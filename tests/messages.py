"""Messages are tested by what one line of them names: options, values, paths, choices. Their wording is free."""

import re


def naming(*values: object) -> str:
    """Return a pattern, for `pytest.raises(match=...)`, of a line that names all `values` in any order."""
    return "(?m)^" + "".join(f"(?=.*{_whole(str(value))})" for value in values)


def names(text: str, *values: object) -> bool:
    """True where one line of `text` names all `values`, each as a whole word."""
    return re.search(naming(*values), text) is not None


def _whole(value: str) -> str:
    before = r"(?<!\w)(?<!\d\.)" if re.match(r"\w", value) else ""
    after = r"(?!\w|\.\d)" if re.search(r"\w$", value) else ""
    after = r"(?:\.0)?" + after if re.fullmatch(r"-?\d+", value) else after  # 7 is named by 7.0 too
    return before + re.escape(value) + after
