"""What a pipeline's model_index.json asks for."""

from collections.abc import Collection
from pathlib import Path

from rapm_cli.bases.hub.selection import INDEX, PARTS, LackingError
from rapm_cli.bases.weights import read_json
from rapm_cli.core.common.errors import InputError

# Any other can be a module of the repository; the last has diffusers' own safety checker.
LIBRARIES = ("diffusers", "transformers", "stable_diffusion")


def check_index(repo: str, path: Path, names: Collection[str]) -> None:
    """Refuse a pipeline that needs Python of its own.

    Args:
        repo: Name of the repository.
        path: Its model_index.json.
        names: The files that were chosen.

    Raises:
        InputError: The pipeline, or a part of it, is code of the repository; or the file is damaged.
        LackingError: A part that the index names has no file among the names.
    """
    index = read_json(path)
    asked = {part: value[0] for part, value in index.items() if isinstance(value, list) and value and value[0]}
    if foreign := [part for part, library in asked.items() if library not in LIBRARIES]:
        part = foreign[0].strip("_")
        raise InputError(
            f"{INDEX} of {repo} asks to run the repository's own Python for its {part}, and rapm never does",
            "use another repository",
        )
    for part in PARTS:
        if part in asked and not any(name.startswith(f"{part}/") for name in names):
            raise LackingError(part)
