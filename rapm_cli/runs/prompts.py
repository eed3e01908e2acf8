"""Read prompts from text, JSON lines, a column of a CSV or TSV file, or COCO captions, and check them.

The file's suffix decides its form; anything without a known suffix, and standard input, is text with one prompt a line.
"""

import csv
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from rapm_cli.core.common.errors import InputError
from rapm_cli.core.storage.files import regular_file

if TYPE_CHECKING:
    from rapm_cli.bases import LoadedBase
    from rapm_cli.core.common.progress import Reporter

Found: TypeAlias = Iterator[tuple[str, str]]  # place of a prompt, for messages, and the prompt, which may be blank

KEYS = ("prompt", "caption", "text")  # of a JSON object, or column names; the first that exists is used
KEY_WORDS = "prompt, caption or text"
TABLES = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
MAX_CHARACTERS = 2000  # of a prompt
LAST_SEED = 2**64 - 1  # of an image: the last one that PyTorch's generators take
MAX_PROMPTS = 1_000_000  # of a file
MAX_BYTES = 64_000_000  # of a file
MAX_JSON_BYTES = 200_000_000  # of a .json file: COCO's captions_train2017.json has 92 MB, most of it no captions
CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\ud800-\udfff]")  # Unicode's Cc and Cs, without the tab
COMMENT = "#"  # begins a line of a text file that is no prompt
SYNTAX = {  # what other programs read in a prompt
    "a weight": re.compile(r"\([^():]*[^():\s\d]\s*:\s*-?\d*\.?\d+\)"),
    "a LoRA": re.compile(r"<(?:lora|lyco|hypernet):[^<>]+>", re.IGNORECASE),
    "an option": re.compile(r"(?<!\S)--[a-z]+(?= |$)"),
}
QUOTED = re.compile(r'"(?:[^"]|"")*"')  # a cell in a spreadsheet's quotes
UNREAD = re.compile(  # keys and columns that change an image in other programs
    r"seed|size|width|height|steps|num_inference_steps|cfg|cfg_scale|guidance|guidance_scale|negative|negative_prompt"
    r"|sampler|scheduler|loras?|num_images"
)
REMEDY = "give a text file with one prompt a line, a .jsonl, .csv or .tsv file, or COCO captions as .json"


@dataclass(frozen=True)
class Caption:
    """A COCO caption.

    Args:
        number: Id of its annotation.
        place: Its place in the file, for messages.
        text: The caption on one line.
    """

    number: int
    place: str
    text: str


def read_prompts(source: str, reporter: "Reporter") -> list[str]:
    """Read all prompts of a file or of standard input, in order, without the empty ones.

    Args:
        source: Path of a file, `FILE.csv:COLUMN`, `FILE.tsv:COLUMN`, or "-" for standard input.
        reporter: Receives the number of prompts, and how many of them repeat.

    Raises:
        InputError: The source cannot be read, does not have its form, or holds no prompt or too many.
    """
    left: Counter[str] = Counter()
    name, found = _find_prompts(source, left)
    prompts: list[str] = []
    for place, text in found:
        if text.strip():
            prompts.append(check_prompt(text, place))
        if len(prompts) > MAX_PROMPTS:
            raise InputError(f"{name} has more than {MAX_PROMPTS:,} prompts", "split it")
    if not prompts:
        raise InputError(f"{name} holds no prompt", REMEDY)
    repeated = len(prompts) - len(set(prompts))
    if len(prompts) > 1:
        counted = f"{len(prompts):,} prompts from {name}"
        reporter.say(f"{repeated:,} of {counted} repeat" if repeated else counted)
    if comments := left.pop(COMMENT, 0):
        reporter.say(f"lines of {name} that begin with {COMMENT} are left out: {comments:,}")
    if left:
        reporter.warn(f"{name}: rapm does not read {', '.join(left)}, only prompts; options such as --seed are for all")
    warn_of_syntax(prompts, reporter)
    return prompts


def check_prompt(prompt: str, place: str) -> str:
    """Return the prompt without surrounding blanks.

    Args:
        prompt: Any text.
        place: Where the prompt comes from, for messages.

    Raises:
        InputError: The prompt is empty, too long, or has control characters.
    """
    text = prompt.strip()
    if not text:
        raise InputError(f"{place} is empty", "describe the image")
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"{place} has {len(text):,} characters, the limit is {MAX_CHARACTERS:,}", "shorten it")
    if CONTROL.search(text):
        raise InputError(f"{place} has a control character or is not UTF-8", "remove it")
    return text


def warn_of_syntax(prompts: list[str], reporter: "Reporter") -> None:
    """Warn once about each kind of syntax of other programs, which the text encoders read as words."""
    for kind, pattern in SYNTAX.items():
        found = [match[0] for prompt in prompts if (match := pattern.search(prompt))]
        if found:
            more = f", in {len(found):,} prompts" if len(found) > 1 else ""
            reporter.warn(f"{_shown(found[0])} is read as words, not as {kind}{more}")


def warn_of_unread(base: "LoadedBase", prompts: list[str], reporter: "Reporter") -> None:
    """Warn once about prompts that are too long for the base's text encoders, and show the part that is cut off."""
    cut = [text for prompt in dict.fromkeys(prompts) if (text := base.unread(prompt))]
    if cut:
        reporter.warn(f"the base does not read the end of {len(cut)} of {len(prompts)} prompts: {cut[0]}")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file of captions.

    Raises:
        InputError: The file cannot be read, or is not JSON.
    """
    return _parse(_decode(_read(path, MAX_JSON_BYTES), str(path), MAX_JSON_BYTES), str(path))


def captions_of_images(name: str, annotations: list[Any]) -> dict[int, Caption]:
    """Choose one COCO caption for each image: the non-blank one with the smallest annotation id.

    Args:
        name: Path of the file, for messages.
        annotations: The file's `annotations`.

    Returns:
        Image id to caption.

    Raises:
        InputError: An annotation lacks an id or a caption.
    """
    chosen: dict[int, Caption] = {}
    for number, annotation in enumerate(annotations, 1):
        place, entry = f"{name} annotation {number}", annotation if isinstance(annotation, dict) else {}
        image, own_id = entry.get("image_id"), entry.get("id")
        if type(image) is not int or type(own_id) is not int:
            raise InputError(f"{place} has no whole numbers image_id and id", "give a file like captions_val2014.json")
        text = _on_one_line(_string(entry.get("caption"), place, "caption"))
        if text.strip() and (image not in chosen or own_id < chosen[image].number):
            chosen[image] = Caption(own_id, place, text)
    return chosen


def _find_prompts(source: str, left: Counter[str]) -> tuple[str, Found]:
    """Return the source's name for messages, and an iterator over its prompts.

    Args:
        source: As in `read_prompts`.
        left: Receives, once prompts are read, the number of comments and the keys and columns that are not read.
    """
    if source == "-":
        name = "standard input"
        return name, _text(name, _decode(_read_stdin(), name, MAX_BYTES), left)
    path, column = _split_column(source)
    suffix, name = path.suffix.lower(), str(path)
    limit = MAX_JSON_BYTES if suffix == ".json" else MAX_BYTES
    text = _decode(_read(path, limit), name, limit)
    if suffix in TABLES:
        column, found = _table(name, text, TABLES[suffix], column, left)
        return f"column {column} of {name}", found
    if suffix == ".json":
        return name, _json(name, text, left)
    return name, (_json_lines if suffix in JSON_LINES else _text)(name, text, left)


def _split_column(source: str) -> tuple[Path, str | None]:
    """Split `FILE.csv:COLUMN` into path and column, unless a file has that very name."""
    name, _, column = source.rpartition(":")
    is_table = column and Path(name).suffix.lower() in TABLES
    try:
        return (Path(name), column) if is_table and not Path(source).exists() else (Path(source), None)
    except (OSError, ValueError):  # a name that no file can have; opening it raises the error with a remedy
        return Path(source), None


def _read(path: Path, limit: int) -> bytes:
    """Read at most one byte more than the limit."""
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


def _text(name: str, text: str, left: Counter[str]) -> Found:
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if number == 1 and line.startswith('{"'):  # training on JSON source would be found out hours later
            raise InputError(f"{name} is read as text, and line 1 is JSON", "give JSON lines as a .jsonl file")
        if line.lstrip().startswith(COMMENT):
            left[COMMENT] += 1
        else:
            yield f"{name} line {number}", line


def _json_lines(name: str, text: str, left: Counter[str]) -> Found:
    for number, line in enumerate(io.StringIO(text), 1):
        if line.strip():
            place = f"{name} line {number}"
            yield place, _prompt_of(_parse(line, place), place, left)


def _json(name: str, text: str, left: Counter[str]) -> Found:
    """Read a list of prompts, or COCO captions, one for each image in the order of the image ids."""
    record = _parse(text, name)
    if isinstance(record, list):
        for number, value in enumerate(record, 1):
            place = f"{name} entry {number}"
            yield place, _prompt_of(value, place, left)
    elif isinstance(record, dict) and isinstance(record.get("annotations"), list):
        for _, caption in sorted(captions_of_images(name, record["annotations"]).items()):
            yield caption.place, caption.text
    else:
        raise InputError(f"{name} is neither COCO captions nor a list of prompts", REMEDY)


def _table(name: str, text: str, delimiter: str, column: str | None, left: Counter[str]) -> tuple[str, Found]:
    """Return the name of the column that holds the prompts, and its cells."""
    is_plain = delimiter == "\t" and _has_a_row_each_line(text)
    quote = None if is_plain else '"'
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, quotechar=quote)
    try:
        header = [_unquoted(cell, is_plain).strip() for cell in next(filter(any, rows), [])]
    except csv.Error as error:
        raise _bad_row(name, rows, error) from error
    index = _column_index(name, header, column)
    left.update(cell for k, cell in enumerate(header) if k != index and UNREAD.fullmatch(cell.lower()))
    cells = _cells(name, rows, len(header), index)
    return header[index], ((place, _unquoted(cell, is_plain)) for place, cell in cells)


def _has_a_row_each_line(text: str) -> bool:
    """Return True for TSV whose lines have one number of tabs, so that no quote holds a tab or a line break.

    A quote within such a file is a character. Quotes around a whole cell are a spreadsheet's.
    """
    return len({line.count("\t") for line in io.StringIO(text, newline=None) if line.strip()}) == 1


def _unquoted(cell: str, is_plain: bool) -> str:
    """Return a cell of a table without a spreadsheet's quotes; the reader of other tables has removed them."""
    return cell[1:-1].replace('""', '"') if is_plain and QUOTED.fullmatch(cell) else cell


def _cells(name: str, rows: Any, width: int, index: int) -> Found:
    try:
        for row in rows:
            place = f"{name} line {rows.line_num}"
            if any(cell.strip() for cell in row):
                if len(row) != width:
                    raise InputError(
                        f"{place} has {len(row)} cells, the header {width}", "put cells with commas in quotes"
                    )
                yield place, _on_one_line(row[index])
    except csv.Error as error:
        raise _bad_row(name, rows, error) from error


def _bad_row(name: str, rows: Any, error: csv.Error) -> InputError:
    return InputError(f"{name} line {rows.line_num} is not a row of a table: {error}", "correct its quotes")


def _column_index(name: str, header: list[str], column: str | None) -> int:
    """Find the named column, else the first of `KEYS` in any case, else the only one."""
    if not header:
        raise InputError(f"{name} holds no prompt", f"name a column {KEY_WORDS}")
    names = header
    if column is None:
        names = [cell.lower() for cell in header]
        column = next((key for key in KEYS if key in names), None)
    if column is None and len(header) == 1:
        if re.fullmatch(r"[\w-]+", header[0]):
            return 0
        raise InputError(  # else a prompt would be lost as the header, or semicolons become part of a prompt
            f"{name} begins with {_shown(header[0])}, which is not the name of a column",
            f"write {KEYS[0]} above the prompts, and separate columns with commas, in a .tsv file with tabs",
        )
    some = ", ".join(map(_shown, header[:8]))
    if column is None or column not in names:
        wanted = KEY_WORDS if column is None else repr(column)
        raise InputError(f"{name} has no column {wanted} among {some}", f"name one: {name}:COLUMN")
    if names.count(column) > 1:
        raise InputError(f"{name} has {names.count(column)} columns {column!r} among {some}", "rename one of them")
    return names.index(column)


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if "\n" in text.strip() else ""
        where = f"{line}column {error.colno}"
        found = f"{place} is not JSON: {error.msg} at {where}"
        raise InputError(found, "correct it, or give JSON lines as a .jsonl file") from error
    except (ValueError, RecursionError) as error:  # too many digits, or too deep a nesting
        raise InputError(f"{place} is not JSON that can be read", "correct it") from error


def _prompt_of(value: Any, place: str, left: Counter[str]) -> str:
    """Return a string, or the value of an object's first key among `KEYS`, and note the keys that are not read."""
    if isinstance(value, dict):
        key = next((key for key in KEYS if key in value), None)
        if key is None:
            raise InputError(f"{place} has no key {KEY_WORDS}", REMEDY)
        left.update(name for name in value if UNREAD.fullmatch(name.lower()))
        return _on_one_line(_string(value[key], place, key))
    return _on_one_line(_string(value, place, "prompt"))


def _string(value: Any, place: str, what: str) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        raise InputError(f"{place} has no {what}", "write one, or remove it")
    raise InputError(f"{place} has a {what} that is not a string", "put it in quotes")


def _on_one_line(text: str) -> str:
    """Replace line breaks, which JSON and CSV allow within a prompt, by blanks."""
    return re.sub(r"\s*[\r\n]\s*", " ", text)


def _shown(cell: str) -> str:
    return repr(cell if len(cell) <= 40 else f"{cell[:37]}...")
