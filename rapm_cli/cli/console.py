"""Print results to standard output; messages, warnings and progress to standard error. Nothing else prints."""

import contextlib
import errno
import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import filesize
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from rapm_cli.cli.secrets import redact, redact_values
from rapm_cli.core.common.errors import ConfigError, DiskError, is_disk_full
from rapm_cli.runs import launcher, signals

if TYPE_CHECKING:
    import torch

WIDE = 1000  # columns of a line for programs
NAME = 12  # columns of a fact's name
BYTE = "byte"  # the unit that is shown in kB, MB and GB
BAR = 10  # columns of a live bar, so that "1000/1000", "0.10 trajectory/s" and hours fit into 80 beside it
USUAL = 80  # columns of a line with room for memory in few words
ROOMY = 115  # columns of a line with room for everything about memory
PLAIN_SECONDS = 10.0  # between lines of progress if standard error is not a terminal


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise an error; Rich would end the process without a message."""
        raise BrokenPipeError(errno.EPIPE, "nobody reads")


class Output:
    """Terminal output of a command. No text is read as markup.

    Args:
        as_json: Print the result as one JSON value, and no messages.
        quiet: Print no messages and no bars.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json, self.is_silent = as_json, quiet or as_json
        width = None if sys.stdout.isatty() else WIDE  # programs get whole lines
        self._out = _Console(highlight=False, markup=False, emoji=False, soft_wrap=True, width=width)
        self._err = _Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._is_live = False  # a bar is on the screen

    def data(self, line: str) -> None:
        """Print one line of the result."""
        if not self.as_json:
            with _ignoring_closed_output():
                self._result_console().print(_plain(line))

    def fact(self, name: str, text: str) -> None:
        """Print one line of the result with a name in front; texts start in the same column."""
        self.data(f"{name:<{NAME}} {text}")

    def _result_console(self) -> "_Console":
        """Return the console for the result. Above a live bar on a terminal it is the bar's own."""
        return self._err if self._is_live and self._out.is_terminal else self._out

    def result(self, record: object) -> None:
        """Print the whole result as JSON under --json; nothing otherwise."""
        if self.as_json:
            with _ignoring_closed_output():
                print(json.dumps(redact_values(record), indent=2))  # noqa: T201

    def table(
        self, title: str, columns: list[str], rows: list[list[str]], text_columns: tuple[int, ...] = (0,)
    ) -> None:
        """Print a table under its title; on a narrow terminal rich breaks the cells into lines.

        Args:
            title: Line above the table.
            columns: Headings.
            rows: Cells, as many in each row as there are columns.
            text_columns: Indices of columns of text, which stand on the left; numbers stand on the right.
        """
        if self.as_json:
            return
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for k, name in enumerate(columns):
            table.add_column(Text(name), justify="left" if k in text_columns else "right", overflow="fold")
        for row in rows:
            table.add_row(*(Text(_plain(cell)) for cell in row))
        with _ignoring_closed_output():
            self._out.print(_plain(title))
            self._out.print(table, soft_wrap=False)

    @property
    def _shows_images(self) -> bool:
        return self._out.is_terminal and self._out.color_system is not None and not self._out.no_color

    def expect_images(self) -> None:
        """Print a message if images cannot be shown."""
        if not self._shows_images:
            self.say("--preview needs a colour terminal; standard output is not one")

    def image(self, path: Path) -> None:
        """Show an image, if standard output is a colour terminal."""
        if self._shows_images and not self.as_json:
            from rapm_cli.cli.preview import preview

            with _ignoring_closed_output():
                self._result_console().print(preview(path, self._out.width), soft_wrap=False)

    def say(self, line: str) -> None:
        """Print a message."""
        if not self.is_silent:
            self._print(line, style="dim" if self._err.is_terminal else "")

    def warn(self, line: str) -> None:
        """Print a warning, which --quiet and --json do not silence."""
        self._print(f"warning: {launcher.speaker()}{line}", style="yellow")

    def error(self, message: str, remedy: str) -> None:
        """Print an error: what happened and what to do, in one line."""
        self._print(f"error: {message}" + (f"; {remedy}" if remedy else ""), style="red")

    def stopped(self, message: str, remedy: str) -> None:
        """Print what a signal interrupted, and how to continue."""
        self._print(f"stopped: {message}" + (f"; {remedy}" if remedy else ""))

    def _print(self, line: str, style: str = "") -> None:
        with contextlib.suppress(OSError):  # a closed terminal must not stop the work
            self._err.print(_plain(line), style=style)

    def ask(self, question: str) -> bool:
        """Ask yes or no; return True for yes.

        Raises:
            ConfigError: Standard input is not a terminal, or the result is JSON.
        """
        if self.as_json or not is_terminal():
            reason = "--json does not ask" if self.as_json else "standard input is not a terminal"
            raise ConfigError(f"confirmation is needed and {reason}", "give --yes")
        self._print(f"{question} [y/N]")
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    @contextmanager
    def bar(self, title: str, total: int, unit: str, device: "torch.device", done: int = 0) -> Iterator["_Bar"]:
        """Show a live bar on a terminal; elsewhere print a line every few seconds. Arguments as in `Reporter.bar`."""
        if self.is_silent:
            yield _Bar()
        elif self._err.is_terminal:
            progress = _live(self._err, unit, device)
            task = progress.add_task(title, total=total, completed=done, begun=done, note="")
            with contextlib.suppress(OSError):
                progress.start()
            self._is_live = True
            try:
                with signals.shown_by_caller():
                    yield _LiveBar(progress, task)
            finally:
                self._is_live = False
                with contextlib.suppress(OSError):  # a closed terminal
                    progress.stop()
        else:
            plain = _PlainBar(self, title, total, unit, device, done)
            yield plain
            plain.finish()


@contextmanager
def _ignoring_closed_output() -> Iterator[None]:
    """Ignore errors of an output that was closed. A full disk is an error, because it loses the result."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise lost_result() from error
        if error.errno not in (errno.EIO, errno.EPIPE):  # a closed terminal or reader
            raise


def lost_result() -> DiskError:
    """Return the error of a standard output that a full disk cut off."""
    return DiskError("the result cannot be written to standard output: the disk is full", "free space")


class _Bar:
    """A bar that prints nothing."""

    def advance(self, count: int = 1, note: str = "") -> None:
        pass


class _LiveBar(_Bar):
    def __init__(self, progress: Progress, task: Any) -> None:
        self._progress, self._task = progress, task

    def advance(self, count: int = 1, note: str = "") -> None:
        self._progress.update(self._task, advance=count, note=note)


class _PlainBar(_Bar):
    def __init__(self, output: Output, title: str, total: int, unit: str, device: "torch.device", done: int) -> None:
        self._output, self._title, self._total, self._unit, self._device = output, title, total, unit, device
        self._last = -1
        self._before, self._done, self._note = done, done, ""
        self._begun, self._shown = time.monotonic(), time.monotonic()

    def advance(self, count: int = 1, note: str = "") -> None:
        self._done, self._note = self._done + count, note
        if time.monotonic() - self._shown >= PLAIN_SECONDS:
            self._show()

    def finish(self) -> None:
        if self._last != self._done:
            self._show()

    def _show(self) -> None:
        from rapm_cli.bases.memory import read_memory

        self._shown, self._last = time.monotonic(), self._done
        seconds = self._shown - self._begun
        rate = max(0, self._done - self._before) / seconds if seconds > 0 else 0.0
        left = (self._total - self._done) / rate if rate else 0.0
        parts = [
            f"{self._title} {_amount(self._done, self._total, self._unit)}",
            _rate(rate, self._unit) if rate else "",
            _time(seconds, left, is_done=self._done >= self._total),
            "" if self._unit == BYTE else read_memory(self._device).words(),
            self._note,
        ]
        self._output.say(", ".join(part for part in parts if part))


def _time(seconds: float, left: float, *, is_done: bool) -> str:
    """Return the time spent on finished work, else the time left as far as it is known."""
    if is_done:
        return f"{seconds:.0f} s"
    return f"{left:.0f} s left" if left else ""


class _RateColumn(ProgressColumn):
    """Units per second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        done = task.completed - task.fields["begun"]
        speed = task.finished_speed or task.speed or (done / task.elapsed if task.elapsed else 0)
        return Text(_rate(speed, self._unit) if speed else f"- {'B' if self._unit == BYTE else self._unit}/s")


class _MemoryColumn(ProgressColumn):
    """Memory of the device, read when the line is drawn. On a narrow terminal it is short or left out."""

    max_refresh = 1.0

    def __init__(self, device: "torch.device", console: Console) -> None:
        super().__init__()
        self._device, self._console = device, console

    def render(self, task: Task) -> Text:
        from rapm_cli.bases.memory import read_memory

        width = self._console.width
        return Text(read_memory(self._device).words(is_short=width < ROOMY) if width >= USUAL else "", style="cyan")


class _Live(Progress):
    """Bars, each with its note below; the last line says what a signal has asked for."""

    def get_renderables(self) -> Iterable[RenderableType]:
        for task in self.tasks:
            yield self.make_tasks_table([task])
            if task.fields["note"]:
                note = Text(f"  {task.fields['note']}", style="dim", no_wrap=True)
                note.truncate(self.console.width - len("^C") - 1, overflow="ellipsis")  # or a terminal's echo breaks it
                yield note
        if signals.notice():
            yield Text(signals.notice())


def _live(console: Console, unit: str, device: "torch.device") -> Progress:
    columns: list[ProgressColumn] = [
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=BAR),
        DownloadColumn() if unit == BYTE else MofNCompleteColumn(),
        _RateColumn(unit),
        TimeRemainingColumn(compact=True),
    ]
    if unit != BYTE:  # a download does not fill the device's memory
        columns.append(_MemoryColumn(device, console))
    return _Live(*columns, console=console, refresh_per_second=4)


def _amount(done: int, total: int, unit: str) -> str:
    """Return "done/total"; bytes in the unit that suits the total."""
    if unit != BYTE:
        return f"{done}/{total}"
    size, suffix = filesize.pick_unit_and_suffix(total, ["bytes", "kB", "MB", "GB", "TB"], 1000)
    return f"{done / size:.{1 if size > 1 else 0}f}/{total / size:.{1 if size > 1 else 0}f} {suffix}"


def _rate(speed: float, unit: str) -> str:
    return f"{filesize.decimal(int(speed))}/s" if unit == BYTE else f"{speed:.2f} {unit}/s"


def _plain(text: str) -> str:
    """Return a text without secrets and control characters: a prompt or header must not control the terminal."""
    text = " ".join(text.splitlines())  # lines of a foreign text stay apart
    return redact("".join(character for character in text if character == "\t" or character.isprintable()))


def is_terminal() -> bool:
    """Return True if standard input is a terminal."""
    return sys.stdin is not None and sys.stdin.isatty()
