"""`rapm eval --study`: run a table of distillations, print it and write it."""

import contextlib
import json
import shlex
from pathlib import Path

from rapm_cli.cli.console import Output
from rapm_cli.cli.study_file import find_study, read_study
from rapm_cli.core.common.errors import ConfigError

ALLOWED = ("study", "output", "device", "offline", "config", "json", "quiet")  # options that go with --study


def check_alone(named: list[str]) -> None:
    """Refuse options that a study's file sets itself.

    Args:
        named: Names of the options that the user set.

    Raises:
        ConfigError: One of them does not go with --study.
    """
    for name in named:
        if name not in ALLOWED:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag} does not go with --study", "write settings into the study's file")


def study(out: Output, name: str, output: Path | None, device: str) -> None:
    """Run a study, and print and write its table.

    Args:
        out: Prints the table.
        name: Path of a study file, or name of a shipped study.
        output: Folder for table and contact sheet; None for one in the folder of studies.
        device: Value of `--device`.
    """
    path = find_study(name)
    from rapm_cli.bases.device import find_device
    from rapm_cli.bases.places import studies_dir, study_runs_dir
    from rapm_cli.runs.retry import ready_folder
    from rapm_cli.study import report
    from rapm_cli.study.study import run_study

    table = read_study(path, out)
    folder = studies_dir() / path.stem if output is None else output
    if folder.resolve() == study_runs_dir().resolve():
        raise ConfigError(f"{folder} holds the runs of all studies", "give --output another folder")
    _require_own(folder, table.source)
    command = f"rapm eval --study {shlex.quote(name)}"
    again = command if output is None else f"{command} --output {shlex.quote(str(output))}"
    if output is not None:
        ready_folder(output)
    try:
        outcome = run_study(table, find_device(device), again, out)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", error.remedy) from error
    out.say("scoring, with intervals")
    record = report.to_record(outcome)
    files = report.write(outcome, record, folder, command, out)
    out.table(f"{record['title']}: {report.summary(record)}", *report.table(record))
    for row in record["rows"]:
        if row.get("failure"):
            out.data(f"{row['name']}: {row['failure']}")
    out.say(f"{report.duration(record['work_seconds'])} of work; {record['machine']}")
    for title, file in zip(("record", "table", "sheet", "report"), files.values(), strict=True):
        out.fact(title, str(file))
    out.result(record | {"files": {name: str(file) for name, file in files.items()}})


def _require_own(folder: Path, source: dict[str, str]) -> None:
    """Refuse to overwrite the table of another study: one from another file with other content."""
    from rapm_cli.study.report import JSON

    with contextlib.suppress(OSError, ValueError, AttributeError):
        found = json.loads((folder / JSON).read_text(encoding="utf-8")).get("source", source)
        if not found.items() & source.items():
            raise ConfigError(f"{folder} has the table of another study", "give --output another folder, or remove it")
