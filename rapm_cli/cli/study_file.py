"""Study files: find a TOML file by name or path, check it with pydantic models, and read it into a `Study`."""

import contextlib
import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rapm_cli.bases import find_base
from rapm_cli.cli import completion
from rapm_cli.cli.config_file import read_toml, unknown_key
from rapm_cli.cli.console import Output
from rapm_cli.cli.options import as_settings, parameter_name
from rapm_cli.cli.renamed import current_name
from rapm_cli.core.common.errors import ConfigError, InputError
from rapm_cli.core.method import config
from rapm_cli.core.method.setting_words import wanted
from rapm_cli.study.study import Study, StudyRow, Undistilled, Variant

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")
OF_ALL_ROWS = ("precision", "deterministic")  # options that hold for the whole process
# Options of `rapm distill` that a study may set. It sets seed, samples and folders itself.
ALLOWED = {parameter_name(name, field).replace("_", "-") for name, field, _ in config.options()} - {"seed"}
ALLOWED |= {*OF_ALL_ROWS, "checkpoint-every"}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=lambda name: name.replace("_", "-"))


class _Teacher(_Strict):
    steps: int
    guidance: float = 1.0
    sampler: str = "ddim"


class _Row(_Strict):
    name: Annotated[str, Field(min_length=1)]
    options: dict[str, Any] = {}
    best_of: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    teacher: _Teacher | None = None


class _File(_Strict):
    title: str = ""
    base: str = "demo"
    samples: int = 1000
    split: Literal["held-out", "seen"] = "held-out"
    eval_seed: Annotated[int, Field(ge=0)] = 0
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    options: dict[str, Any] = {}
    rows: Annotated[list[_Row], Field(min_length=1)]


def find_study(name: str) -> Path:
    """Return the file of a shipped study's name, or of a path.

    Raises:
        InputError: There is no such study.
    """
    shipped, path = completion.studies(""), Path(name)
    if name in shipped:
        return completion.STUDIES / f"{name}.toml"
    if path.exists() or path.suffix == ".toml":
        return path
    raise InputError(f"there is no study {name!r}", f"give a .toml file, or a shipped study: {', '.join(shipped)}")


def read_study(path: Path, out: Output) -> Study:
    """Return the study in a file.

    Raises:
        InputError: The file cannot be read or is not TOML.
        ConfigError: A key is unknown or missing, or a value is wrong; the error names file, row and key.
    """
    table = read_toml(path)
    with _naming(str(path)):
        file = _checked(_File, _renamed("study", table, str(path)))
        with _naming("[options]"):
            common = _renamed("distill", file.options, f"{path}: [options]")
            given = _settings(common)
        rows = tuple(_row(row, common, path) for row in file.rows)
        names = ["teacher", "base", *(row.name for row in rows)]
        twice: tuple[tuple[str, list[Any]], ...] = (("row", names), ("seed", file.seeds))
        for what, values in twice:
            if doubled := next((value for value in values if values.count(value) > 1), None):
                raise ConfigError(f"{what} {doubled!r} comes twice", f"give each {what} once")
        return Study(
            title=file.title or path.stem,
            source=_source(path),
            base=find_base(file.base, out),
            samples=file.samples,
            held_out=file.split == "held-out",
            exam_seed=file.eval_seed,
            seeds=tuple(file.seeds),
            given=given,
            rows=rows,
        )


def _row(row: _Row, common: dict[str, Any], path: Path) -> StudyRow:
    with _naming(f"row {row.name!r}"):
        if row.teacher and (row.options or row.best_of):
            raise ConfigError("a row with a teacher distils nothing", "leave out options and best-of")
        if row.teacher:
            return StudyRow(row.name, undistilled=Undistilled(**row.teacher.model_dump()))
        options, best_of = (
            _renamed("distill", table, f"{path}: row {row.name!r}") for table in (row.options, row.best_of)
        )
        for key in (*options, *best_of):
            if key in OF_ALL_ROWS:
                raise ConfigError(f"{key} is the same for all rows", "write it below [options]")
            if key in options and key in best_of:
                raise ConfigError(f"{key} is in options and in best-of", "keep one of the two")
        combinations = (dict(zip(best_of, values, strict=True)) for values in itertools.product(*best_of.values()))
        variants = tuple(Variant(some or options, _settings(common | options | some)) for some in combinations)
        return StudyRow(row.name, variants)


def _renamed(command: str, table: dict[str, T], where: str) -> dict[str, T]:
    """Return a table with the keys of today, with a warning for each old one.

    Raises:
        ConfigError: A key is there twice, under its old and its new name or with dashes and underscores.
    """
    keys: dict[str, str] = {}
    for key in table:
        if keys.setdefault(new := current_name(command, key, where), key) != key:
            raise ConfigError(f"{keys[new]} and {key} are the same key", "keep one of the two")
    return {new: table[key] for new, key in keys.items()}


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    """Return options of `rapm distill` under the names of their settings, whose ranges the study checks."""
    for name in options:
        if name not in ALLOWED:
            raise unknown_key("the study", name, sorted(ALLOWED), "leave it out: rows take only options of the LoRA")
    values = {name.replace("-", "_"): value for name, value in options.items()}
    return as_settings({name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _checked(model: type[M], table: dict[str, Any]) -> M:
    """Return the table as a model; pydantic's first complaint becomes one line that names row, key and value."""
    try:
        return model.model_validate(table)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
            known = [field.alias or name for name, field in model.model_fields.items()]
            raise unknown_key("the file", str(first["loc"][0]), known, f"known are {', '.join(known)}") from error
        place = " ".join(f"{part + 1}" if isinstance(part, int) else part for part in first["loc"])
        reasons = {"missing": "is missing", "extra_forbidden": "is not a known key"}
        reason = reasons.get(first["type"], f"{first['input']!r} is not valid; give {wanted(first)}")
        raise ConfigError(f"{place}: {reason}", "see rapm_cli/study/README.md") from error


@contextlib.contextmanager
def _naming(where: str) -> Iterator[None]:
    """Put a place in front of the errors that the block raises."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.message}", error.remedy) from error


def _source(path: Path) -> dict[str, str]:
    """Return hashes of a file's path and content, which tell it from other files of the same name."""
    place = path.name if path.parent == completion.STUDIES else str(path.resolve())
    both = {"place": place.encode(), "content": path.read_bytes()}
    return {name: hashlib.sha256(data).hexdigest()[:16] for name, data in both.items()}
