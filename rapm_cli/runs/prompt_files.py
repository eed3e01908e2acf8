"""Prompts as files hold them: lines of text, JSON lines, a column of a table, or the captions of COCO.

Nothing here judges a prompt; each comes with its place, for whoever does.
"""

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from rapm_cli.core.common.errors import InputError
from rapm_cli.core.storage.files import regular_file

Found: TypeAlias = Iterator[tuple[str, str]]  # place and prompt, which may be blank


@dataclass(frozen=True)
class Caption:
    """One of COCO's: the id of its annotation, its place in the file, and the text on one line."""

    number: int
    place: str
    text: str


KEYS = ("prompt", "caption", "text")  # of an object, or at the head of a column; the first that is there counts
MAX_BYTES = 64_000_000  # of one file
MAX_JSON_BYTES = 200_000_000  # captions_train2017.json of COCO, most of which is no caption, has 92 MB
REMEDY = "give a text file with one prompt a line, JSON lines, a CSV, or COCO captions"
CALLED = "prompt, caption or text"


def find_prompts(source: str) -> tuple[str, Found]:
    """What the source is called, with the column of a table, and the prompts in it, read as they are asked for.

    Args:
        source: Path of a file, `FILE.csv:COLUMN`, or "-" for standard input. A `.jsonl`, `.ndjson`, `.csv`, `.tsv` or
            `.json` is what its name says; anything else is JSON lines where it looks like them, and text where not.

    Raises:
        InputError: The source cannot be read, or, once asked for, is not of its form.
    """
    if source == "-":
        return "standard input", _lines("standard input", _decode(_read_stdin(), "standard input", MAX_BYTES))
    path, column = _split_column(source)
    limit = MAX_JSON_BYTES if path.suffix.lower() == ".json" else MAX_BYTES
    text = _decode(_read(path, limit), str(path), limit)
    if path.suffix.lower() in TABLES:
        column, found = _table(str(path), text, column)
        return f"column {column} of {path}", found
    return str(path), FORMS.get(path.suffix.lower(), _lines)(str(path), text)


def _split_column(source: str) -> tuple[Path, str | None]:
    """The path and the column of `FILE.csv:COLUMN`, unless a file has that very name."""
    name, _, column = source.rpartition(":")
    is_table = column and Path(name).suffix.lower() in TABLES
    try:
        return (Path(name), column) if is_table and not Path(source).exists() else (Path(source), None)
    except (OSError, ValueError):  # a name that no file can have is refused where it is opened
        return Path(source), None


def _read(path: Path, limit: int) -> bytes:
    """At most one byte more than is allowed."""
    try:
        with regular_file(path, f"{REMEDY}, or pipe prompts into --prompts -").open("rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", REMEDY) from error


def _read_stdin() -> bytes:
    if sys.stdin is None:
        raise InputError("standard input is closed", REMEDY)
    try:
        return sys.stdin.buffer.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"standard input cannot be read: {error.strerror}", REMEDY) from error


def _decode(data: bytes, name: str, limit: int) -> str:
    if len(data) > limit:
        raise InputError(f"{name} has more than {limit / 1e6:,.0f} MB", "split it")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{name} line {line} is not UTF-8 (byte {error.start})", "save it as UTF-8 text") from error


def _lines(name: str, text: str) -> Found:
    if _is_json_lines(text):
        yield from _json_lines(name, text)
    else:
        for number, line in enumerate(io.StringIO(text, newline=None), 1):
            yield f"{name} line {number}", line


def _is_json_lines(text: str) -> bool:
    """True where the first line that is not empty is an object, or every one is a string."""
    for line in filter(str.strip, io.StringIO(text)):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            return False
        if not isinstance(value, str):
            return isinstance(value, dict)
    return bool(text.strip())


def _json_lines(name: str, text: str) -> Found:
    for number, line in enumerate(io.StringIO(text), 1):
        if line.strip():
            place = f"{name} line {number}"
            yield place, _prompt_of(_parse(line, place), place)


def _json(name: str, text: str) -> Found:
    """COCO captions, a list of prompts, or JSON lines under another name."""
    try:
        record = _parse(text, name)
    except InputError as error:
        if getattr(error.__cause__, "msg", "") != "Extra data":
            raise
        yield from _json_lines(name, text)
        return
    if isinstance(record, list):
        for number, value in enumerate(record, 1):
            place = f"{name} entry {number}"
            yield place, _prompt_of(value, place)
    elif isinstance(record, dict) and isinstance(record.get("annotations"), list):
        yield from _captions(name, record["annotations"])
    elif isinstance(record, dict) and not record.keys().isdisjoint(KEYS):
        yield name, _prompt_of(record, name)
    else:
        raise InputError(f"{name} is neither COCO captions nor a list of prompts", REMEDY)


def _captions(name: str, annotations: list[Any]) -> Found:
    """One caption an image, the one of smallest annotation id, in the order of image ids."""
    for _, caption in sorted(captions_of_images(name, annotations).items()):
        yield caption.place, caption.text


def captions_of_images(name: str, annotations: list[Any]) -> dict[int, Caption]:
    """By image id, its caption of smallest annotation id; blank ones do not count.

    Raises:
        InputError: An annotation is none.
    """
    chosen: dict[int, Caption] = {}
    for number, annotation in enumerate(annotations, 1):
        place = f"{name} annotation {number}"
        image, mine = (
            (annotation.get("image_id"), annotation.get("id")) if isinstance(annotation, dict) else (None, None)
        )
        if type(image) is not int or type(mine) is not int:
            raise InputError(f"{place} has no whole numbers image_id and id", "give captions_val2014.json or its like")
        text = _on_one_line(_string(annotation.get("caption"), place, "caption"))
        if text.strip() and (image not in chosen or mine < chosen[image].number):
            chosen[image] = Caption(mine, place, text)
    return chosen


def read_json(path: Path) -> Any:
    """What a JSON file of captions holds.

    Raises:
        InputError: It cannot be read, or is no JSON.
    """
    return _parse(_decode(_read(path, MAX_JSON_BYTES), str(path), MAX_JSON_BYTES), str(path))


def _table(name: str, text: str, column: str | None) -> tuple[str, Found]:
    """Which column the prompts are in, and they."""
    head = text.lstrip("\r\n").partition("\n")[0]
    is_tabbed = name.lower().endswith(".tsv") or ("\t" in head and "," not in head)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if is_tabbed else ",", strict=True)
    try:
        header = [cell.strip() for cell in next(filter(any, rows), [])]
    except csv.Error as error:
        raise _no_row(name, 1, error) from error
    index = _index(name, header, column)
    return header[index], _cells(name, rows, len(header), index)


def _cells(name: str, rows: Any, width: int, index: int) -> Found:
    """The cells of one column, below the header."""
    line = rows.line_num + 1
    try:
        for row in rows:
            place = f"{name} line {line}"
            line = rows.line_num + 1
            if any(cell.strip() for cell in row):
                if len(row) != width:
                    raise InputError(
                        f"{place} has {len(row)} cells, the header {width}", "put cells with commas in quotes"
                    )
                yield place, _on_one_line(row[index])
    except csv.Error as error:
        raise _no_row(name, line, error) from error


def _no_row(name: str, line: int, error: csv.Error) -> InputError:
    return InputError(f"{name} line {line} is no row of a table: {error}", "mend its quotes")


def _index(name: str, header: list[str], column: str | None) -> int:
    """Which column the prompts are in."""
    if not header:
        raise InputError(f"{name} holds no prompt", f"write {CALLED} at the head of a column")
    found = header
    if column is None:
        found = [cell.lower() for cell in header]
        column = next((key for key in KEYS if key in found), None)
    if column is None and len(header) == 1:
        if re.fullmatch(r"[\w-]+", header[0]):
            return 0
        raise InputError(  # else a prompt would be lost, or semicolons become part of one
            f"{name} begins with {_shown(header[0])}, which is no name of a column",
            f"write {KEYS[0]} above the prompts, and separate columns with commas or tabs",
        )
    some = ", ".join(map(_shown, header[:8]))
    if column is None or column not in found:
        what = CALLED if column is None else repr(column)
        raise InputError(f"{name} has no column {what} among {some}", f"name one: {name}:COLUMN")
    if found.count(column) > 1:
        raise InputError(f"{name} has {found.count(column)} columns {column!r} among {some}", "rename one of them")
    return found.index(column)


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if "\n" in text.strip() else ""
        raise InputError(f"{place} is not JSON: {error.msg} at {line}column {error.colno}", "mend it") from error
    except (ValueError, RecursionError) as error:  # digits without end, brackets without end
        raise InputError(f"{place} is not JSON that can be read", "mend it") from error


def _prompt_of(value: Any, place: str) -> str:
    """A string, or what an object has under one of `KEYS`."""
    if isinstance(value, dict):
        key = next((key for key in KEYS if key in value), None)
        if key is None:
            raise InputError(f"{place} has no key {CALLED}", REMEDY)
        return _on_one_line(_string(value[key], place, key))
    return _on_one_line(_string(value, place, "prompt"))


def _string(value: Any, place: str, what: str) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        raise InputError(f"{place} has no {what}", "write one, or remove it")
    raise InputError(f"{place} has a {what} that is no string", "put it in quotes")


def _on_one_line(text: str) -> str:
    """Line breaks, which these forms allow within a prompt, become blanks."""
    return re.sub(r"\s*[\r\n]\s*", " ", text)


def _shown(cell: str) -> str:
    return repr(cell if len(cell) <= 40 else f"{cell[:37]}...")


TABLES = (".csv", ".tsv")
FORMS: dict[str, Callable[[str, str], Found]] = {".json": _json, ".jsonl": _json_lines, ".ndjson": _json_lines}
