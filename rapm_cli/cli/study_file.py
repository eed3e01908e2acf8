"""A study's file: found, read and checked, with every row's options as `rapm distill` takes them."""

import hashlib
import itertools
from pathlib import Path
from typing import Any

import typer

from rapm_cli.cli import options
from rapm_cli.cli.config_file import option_values, read_toml, unknown_key
from rapm_cli.cli.console import Output
from rapm_cli.cli.distill import distill
from rapm_cli.core.common.errors import ConfigError, InputError
from rapm_cli.study.study import Bare, Study, StudyRow, Variant

SHIPPED = Path(__file__).parent.parent / "study" / "studies"
KINDS: dict[str, tuple[type, str]] = {  # of the file's own keys
    "title": (str, "text"),
    "base": (str, "text"),
    "samples": (int, "a number such as 1000"),
    "part": (str, '"held-out" or "seen"'),
    "exam-seed": (int, "a number such as 0"),
    "seeds": (list, "a list such as [0, 1, 2]"),
    "options": (dict, "a table: [options]"),
    "rows": (list, "tables: [[rows]]"),
}
ROW_KINDS: dict[str, tuple[type, str]] = {
    "name": (str, "text"),
    "options": (dict, "a table such as { rank = 4 }"),
    "best-of": (dict, "a table of lists such as { learning-rate = [1e-3, 2e-3] }"),
    "teacher": (dict, "a table such as { steps = 4, guidance = 2.0 }"),
}
BARE = {"steps": (int,), "guidance": (int, float), "sampler": (str,)}
PARTS = {"held-out": True, "seen": False}
OUTSIDE = "that is for the whole study: write it at the file's beginning"
EACH = "the study sees to that: leave it out"
COMMAND = "that is an option of rapm eval itself: leave it out"
REFUSED = {  # options of `rapm distill` that say nothing of what is distilled
    "base": OUTSIDE,
    "seed": f"{OUTSIDE}, as seeds = [0, 1]",
    "samples": OUTSIDE,
    **dict.fromkeys(("prompts", "output", "resume", "new", "strict", "report-to", "preview-every", "dry-run"), EACH),
    **dict.fromkeys(("device", "offline", "json", "quiet", "config"), COMMAND),
}
FOR_ALL = ("precision", "deterministic")  # of the process, so that a row cannot have them otherwise than the others


def find_study(name: str) -> Path:
    """The file of the name of a study that ships, or of a path.

    Raises:
        InputError: There is none.
    """
    path = Path(name)
    shipped = sorted(file.stem for file in SHIPPED.glob("*.toml"))
    if name in shipped:
        return SHIPPED / f"{name}.toml"
    if path.exists() or path.suffix == ".toml":
        return path
    known = f", or the name of one that ships: {', '.join(shipped)}" if shipped else ""
    raise InputError(f"there is no study {name!r}", f"give a .toml file{known}")


def read_study(path: Path, out: Output) -> Study:
    """The study of a file.

    Raises:
        InputError: The file cannot be read or is not TOML.
        ConfigError: It says something that is not understood.
    """
    from rapm_cli.bases import find_base

    table = _checked(path, str(path), read_toml(path), KINDS)
    seeds, rows, part = table.get("seeds", []), table.get("rows", []), table.get("part", "held-out")
    if not rows or any(type(row) is not dict for row in rows):
        raise ConfigError(
            f"{path}: rows is empty or holds something else than tables", 'write [[rows]] and name = "..."'
        )
    if part not in PARTS:
        raise ConfigError(f"{path}: part {part!r} is unknown", f"give {KINDS['part'][1]}")
    if table.get("exam-seed", 0) < 0:
        raise ConfigError(f"{path}: exam-seed {table['exam-seed']} is out of range", "give a number from 0")
    common = table.get("options", {})
    given = _settings(f"{path}, [options]", common)
    read = tuple(_row(path, count, row, common) for count, row in enumerate(rows, 1))
    names = ["teacher", "base", *(row.name for row in read)]
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"{path}: there are two rows {doubled!r}", "give each a name of its own")
    if not seeds or any(type(seed) is not int or seed < 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        problem = "is no list of different numbers from 0" if "seeds" in table else "is missing"
        raise ConfigError(f"{path}: seeds {problem}", "write it as seeds = [0, 1, 2]")
    try:
        return Study(
            title=table.get("title", path.stem),
            source=_source(path),
            base=find_base(table.get("base", "demo"), out),
            samples=table.get("samples", 1000),
            held_out=PARTS[part],
            exam_seed=table.get("exam-seed", 0),
            seeds=tuple(seeds),
            given=given,
            rows=read,
        )
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", error.remedy) from error


def _source(path: Path) -> dict[str, str]:
    """Hashes of a file's place and content, which tell it from others of the same name."""
    place = path.name if path.parent == SHIPPED else str(path.resolve())
    both = {"place": place.encode(), "content": path.read_bytes()}
    return {name: hashlib.sha256(data).hexdigest()[:16] for name, data in both.items()}


def _row(path: Path, count: int, row: dict[str, Any], common: dict[str, Any]) -> StudyRow:
    where = f"{path}, row {count}"
    _checked(path, where, row, ROW_KINDS)
    if not row.get("name"):
        raise ConfigError(f"{where} has no name", 'write name = "..."')
    where = f"{path}, row {row['name']!r}"
    if "teacher" in row:
        if len(row) > 2:
            raise ConfigError(f"{where} has a teacher, and distils nothing", "leave out options and best-of")
        return StudyRow(row["name"], bare=_bare(where, row["teacher"]))
    own, best_of = row.get("options", {}), row.get("best-of", {})
    for key, values in best_of.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{where}: best-of {key} is no list", f"write {ROW_KINDS['best-of'][1]}")
        if key in own:
            raise ConfigError(f"{where} has {key} in options and in best-of", "keep one of the two")
    for key in FOR_ALL:
        if key in own or key in best_of:
            raise ConfigError(f"{where} has {key}", "all rows need the same: write it below [options]")
    variants = []
    for values in itertools.product(*best_of.values()):
        tried = dict(zip(best_of, values, strict=True))
        shown = tried if best_of else own
        variants.append(Variant(shown, _settings(where, common | own | tried)))
    return StudyRow(row["name"], tuple(variants))


def _bare(where: str, table: dict[str, Any]) -> Bare:
    for key, value in table.items():
        if key not in BARE:
            raise unknown_key(f"{where}: teacher", key, list(BARE), f"write {ROW_KINDS['teacher'][1]}")
        if type(value) not in BARE[key]:
            raise ConfigError(f"{where}: teacher {key} has a value of a wrong type", f"write {ROW_KINDS['teacher'][1]}")
    if "steps" not in table:
        raise ConfigError(f"{where}: teacher lacks steps", f"write {ROW_KINDS['teacher'][1]}")
    try:
        return Bare(**table)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.message}", error.remedy) from error


def _checked(path: Path, where: str, table: dict[str, Any], kinds: dict[str, tuple[type, str]]) -> dict[str, Any]:
    for key, value in table.items():
        if key not in kinds:
            raise unknown_key(where, key, list(kinds), f"known are {', '.join(kinds)}")
        if type(value) is not kinds[key][0]:
            raise ConfigError(f"{where}: {key} has a value of a wrong type", f"give {kinds[key][1]}")
    return table


def _settings(where: str, table: dict[str, Any]) -> dict[str, Any]:
    """Options as flags of `rapm distill` would give them, as settings."""
    for key in table:
        if reason := REFUSED.get(key.replace("_", "-")):
            raise ConfigError(f"{where} has {key!r}", reason)
    app = typer.Typer(add_completion=False)
    app.command()(distill)
    command: Any = typer.main.get_command(app)
    context, values = typer.Context(command), option_values(command, table, where)
    for parameter in command.params:
        value = values.get(parameter.name)
        if value is not None:
            try:
                values[parameter.name] = parameter.process_value(context, value if value is True else str(value))
            except typer.BadParameter as error:
                name = parameter.name.replace("_", "-")
                raise ConfigError(f"{where}: {name}: {error.message}", f"write it as --{name} takes it") from error
    try:
        return options.as_settings(values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.message}", error.remedy) from error
