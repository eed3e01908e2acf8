"""A report as one HTML file that needs nothing else: no script, no other file, no network."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

from rapm_cli import __version__
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.storage.files import replace_file
from rapm_cli.evaluate.charts import Line, line_chart
from rapm_cli.runs.retry import ready_folder, with_retries

TEMPLATE = Path(__file__).with_name("report.html")


@dataclass(frozen=True)
class Section:
    """A part of a report, with a heading and a word on what it shows."""

    title: str
    note: str = field(default="", kw_only=True)
    kind: ClassVar[str]


@dataclass(frozen=True)
class TableSection(Section):
    """A table; the first column is text."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    kind = "table"


@dataclass(frozen=True)
class Chart:
    """Lines with their legend and what they show."""

    title: str
    svg: str
    names: Sequence[str]
    note: str = ""

    @classmethod
    def of(
        cls, title: str, lines: Sequence[Line], xs: Sequence[float], x_name: str, note: str = "", **options: bool
    ) -> "Chart":
        """A chart of lines; arguments and options as of `line_chart`."""
        return cls(title, line_chart(lines, xs, x_name, **options), [line.name for line in lines], note)


@dataclass(frozen=True)
class ChartsSection(Section):
    """Charts side by side."""

    charts: Sequence[Chart]
    kind = "charts"


@dataclass(frozen=True)
class SheetRow:
    """A prompt, a word on it, and a picture for each column, as base64 of a PNG."""

    words: str
    pictures: Sequence[str]
    note: str = ""


@dataclass(frozen=True)
class SheetSection(Section):
    """Pictures in rows of one prompt and noise; the first column is the prompt."""

    columns: Sequence[str]
    rows: Sequence[SheetRow]
    kind = "sheet"


@dataclass(frozen=True)
class PictureSection(Section):
    """One picture, as base64 of a PNG."""

    picture: str
    kind = "picture"


@dataclass(frozen=True)
class FactsSection(Section):
    """Names with values, and longer texts that open on a click."""

    facts: Mapping[str, str]
    details: Mapping[str, str] = field(default_factory=dict)
    kind = "facts"


@dataclass(frozen=True)
class Report:
    """What is shown, from top to bottom."""

    title: str
    lead: str
    sections: Sequence[Section]

    def html(self) -> str:
        """The whole page; what users and files said is escaped."""
        import jinja2

        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
        template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
        return template.render(report=self, version=__version__)


def embedded(png: bytes) -> str:
    """A PNG as the page holds it."""
    return base64.b64encode(png).decode()


def write_report(report: Report, path: Path, reporter: Reporter) -> None:
    """Write the page, whole or not at all.

    Raises:
        DiskError: It cannot be written.
    """
    data = report.html().encode()
    ready_folder(path.parent)
    remedy = "free space, and give the same command again"
    with_retries(partial(replace_file, path, data), path, len(data), reporter, "all figures are kept", remedy)
