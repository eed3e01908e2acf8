"""Every Markdown file: its links lead somewhere, its commands parse, and its lists of files are whole."""

import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from rapm_cli.cli.app import app
from rapm_cli.core.common.errors import RapmError

ROOT = Path(__file__).parents[2]
FILES = sorted(path for pattern in ("*.md", "rapm_cli/**/*.md", "tests/**/*.md") for path in ROOT.glob(pattern))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
MODULE = ("-m", "rapm_cli")
OTHERS = {"--help", "--shutdown-timeout"}  # of every command, and of other programs
END = frozenset({"|", "||", "&&", ";", "&", ">", "<", "2>"})


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def prose(text: str) -> str:
    return FENCE.sub("", text)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a file."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.+)$", prose(text), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
    return {f"{slug}-{k}" if k else slug for slug, count in found.items() for k in range(count + 1)}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_link_leads_to_a_file_and_an_anchor(path):
    text = path.read_text()
    dead = []
    for target in LINK.findall(re.sub(r"`[^`\n]*`", "", prose(text))):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        there = (path.parent / place).resolve() if place else path
        if not there.exists() or (anchor and anchor not in anchors(there.read_text())):
            dead.append(target)
    assert dead == []


def in_fences(text: str) -> list[list[str]]:
    """The words of every whole `rapm` command in the code blocks of a shell."""
    found = []
    for language, block in FENCE.findall(text):
        if language not in ("", "sh", "bash"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
            lexer.whitespace_split = True
            try:
                words = list(lexer)
            except ValueError:  # a figure, not a command
                continue
            found += list(commands(words))
    return found


def in_prose(text: str) -> list[list[str]]:
    """The words of every `rapm ...` between backticks, which may be a part of a command."""
    spans = re.findall(r"`([^`\n]+)`", prose(text))
    return [shlex.split(span)[1:] for span in spans if re.match(r"rapm [a-z-]", span)]


def commands(words: list[str]) -> Any:
    start = None
    for place, word in enumerate([*words, ";"]):
        if word in END:
            if start is not None:
                yield words[start:place]
            start = None
        elif start is None and (word.rpartition("/")[2] == "rapm" or tuple(words[place - 1 : place + 1]) == MODULE):
            start = place + 1


@cache
def tree() -> Any:
    return typer.main.get_command(app)


def flags(parameters: list[Any]) -> set[str]:
    """The flags of options that help shows."""
    shown = [parameter for parameter in parameters if not getattr(parameter, "hidden", False)]
    return {flag for parameter in shown for flag in (*parameter.opts, *parameter.secondary_opts)}


def complaints(words: list[str], *, is_whole: bool) -> list[str]:
    """What is wrong with a command, by the options that the program has."""
    if not words or words[0].startswith("-"):
        return [word for word in words if word not in flags(tree().params)]  # none of them takes a value
    if words[0] not in tree().commands:
        return [f"no command {words[0]}"]
    command = tree().commands[words[0]]
    context = command.context_class(command, info_name=words[0])
    named = [word.partition("=")[0] for word in words[1:] if re.match(r"--?[a-z]", word)]
    wrong = [flag for flag in named if flag not in flags(command.get_params(context))]
    if wrong or not is_whole:
        return wrong
    try:
        values, _, order = command.make_parser(context).parse_args(args=list(words[1:]))
        for parameter in order:
            if parameter.callback is None:  # one reads a file, another forbids the network to this process
                parameter.process_value(context, values[parameter.name])
    except RapmError as error:
        return [error.message]
    except Exception as error:  # noqa: BLE001  Typer's own errors have no public base
        return [getattr(error, "message", repr(error))]
    return []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_command_parses(path):
    text = path.read_text()
    whole, parts = in_fences(text), in_prose(text)
    wrong = {" ".join(words): found for words in whole if (found := complaints(words, is_whole=True))}
    wrong |= {" ".join(words): found for words in parts if (found := complaints(words, is_whole=False))}
    assert wrong == {}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_option_that_is_named_alone_belongs_to_a_command(path):
    named = set(re.findall(r"`(--[a-z][a-z-]*)", prose(path.read_text())))
    known = {flag for command in (tree(), *tree().commands.values()) for flag in flags(command.params)}
    assert named - known - OTHERS == set()


@pytest.mark.parametrize("path", [path for path in FILES if "\n## Files\n" in path.read_text()], ids=name_of)
def test_a_folders_list_of_files_is_whole(path):
    rows = re.findall(r"^\| (`.+?) \|", path.read_text().split("\n## Files\n")[1], re.M)
    listed = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    there = {each.name for each in path.parent.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert {name for name in listed if name.endswith(".py") and "/" not in name} == there
    assert all((path.parent / name).exists() for name in listed)


def test_cores_list_of_files_is_whole():
    core = ROOT / "rapm_cli" / "core"
    listed = set(re.findall(r"^\| \[.+?\]\((.+?)\)", (core / "README.md").read_text(), re.M))
    rooms = [room for room in core.iterdir() if room.is_dir() and room.name not in ("method", "__pycache__")]
    there = {each.relative_to(core).as_posix() for room in rooms for each in room.glob("*.py")}
    assert listed == {name for name in there if not name.endswith("__init__.py")}


def test_the_check_finds_commands_and_what_is_wrong_with_them():
    text = (
        "```sh\nA=1 .venv/bin/rapm eval --study x && ls | rapm generate --sed 7  # why\n"
        "torchrun -m rapm_cli distill --rank \\\n  one\n```\n`rapm inspect --vales` and `rapm draw`"
    )
    assert in_fences(text) == [["eval", "--study", "x"], ["generate", "--sed", "7"], ["distill", "--rank", "one"]]
    assert [bool(complaints(words, is_whole=True)) for words in in_fences(text)] == [False, True, True]
    assert [complaints(words, is_whole=False) for words in in_prose(text)] == [["--vales"], ["no command draw"]]
    assert anchors("# A `b`: c\n## A b c\n```\n# no\n```") == {"a-b-c", "a-b-c-1"}
