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
    """A part of a report.

    Args:
        title: Heading.
        note: Text below the heading; empty for none.
    """

    title: str
    note: str = field(default="", kw_only=True)
    kind: ClassVar[str]


@dataclass(frozen=True)
class TableSection(Section):
    """A table. The first column holds names, the others numbers.

    Args:
        columns: Titles of the columns.
        rows: Cells of each row.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    kind = "table"


@dataclass(frozen=True)
class Chart:
    """A line chart with its legend.

    Args:
        title: Heading.
        svg: The chart as SVG.
        names: Labels of the lines in the legend.
        note: Text after the heading; empty for none.
    """

    title: str
    svg: str
    names: Sequence[str]
    note: str = ""

    @classmethod
    def of(
        cls, title: str, lines: Sequence[Line], xs: Sequence[float], x_name: str, note: str = "", **options: bool
    ) -> "Chart":
        """Return a chart of lines; `xs`, `x_name` and the options are those of `line_chart`."""
        return cls(title, line_chart(lines, xs, x_name, **options), [line.name for line in lines], note)


@dataclass(frozen=True)
class ChartsSection(Section):
    """Charts side by side.

    Args:
        charts: The charts.
    """

    charts: Sequence[Chart]
    kind = "charts"


@dataclass(frozen=True)
class SheetRow:
    """A row of a sheet.

    Args:
        words: The prompt.
        images: PNG in base64 for each column.
        note: Text below the prompt; empty for none.
    """

    words: str
    images: Sequence[str]
    note: str = ""


@dataclass(frozen=True)
class SheetSection(Section):
    """Images in rows; a row has one prompt and one noise, and its first column is the prompt.

    Args:
        columns: Titles of the columns, also of the first.
        rows: The rows.
    """

    columns: Sequence[str]
    rows: Sequence[SheetRow]
    kind = "sheet"


@dataclass(frozen=True)
class ImageSection(Section):
    """A single image.

    Args:
        image: PNG in base64.
    """

    image: str
    kind = "image"


@dataclass(frozen=True)
class FactsSection(Section):
    """Names with values, and longer texts that open on a click.

    Args:
        facts: Values by name.
        details: Longer texts by title.
    """

    facts: Mapping[str, str]
    details: Mapping[str, str] = field(default_factory=dict)
    kind = "facts"


@dataclass(frozen=True)
class Report:
    """A report: title, summary and sections.

    Args:
        title: Title of the page.
        lead: Summary below the title.
        sections: Sections from top to bottom.
    """

    title: str
    lead: str
    sections: Sequence[Section]

    def html(self) -> str:
        """Return the page as HTML; all texts are escaped."""
        import jinja2

        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
        template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
        return template.render(report=self, version=__version__)


def embedded(png: bytes) -> str:
    """Return a PNG in base64, the form in which a page holds it."""
    return base64.b64encode(png).decode()


def write_report(report: Report, path: Path, reporter: Reporter) -> None:
    """Write the page, whole or not at all.

    Args:
        report: The report.
        path: File to write; its folder is made.
        reporter: Reporter of waiting for space.

    Raises:
        DiskError: The file cannot be written.
    """
    data = report.html().encode()
    ready_folder(path.parent)
    step = "give the same command again"
    with_retries(partial(replace_file, path, data), path, len(data), reporter, "all values are kept", step)
