"""Output of a job while it works."""

import io
import json
import os
import re
import signal

import pytest
import torch

from rapm_cli.bases.memory import GIB, MemoryReading
from rapm_cli.cli import console
from rapm_cli.cli.console import Output
from rapm_cli.runs import signals

CPU = torch.device("cpu")


def on_a_terminal(monkeypatch, columns: int = 120) -> io.StringIO:
    """Make standard error a terminal of so many columns."""
    written = io.StringIO()
    real = console._Console

    def of(*, stderr=False, width=None, **options):
        terminal = {"file": written, "width": columns, "force_terminal": True, "color_system": None}
        return real(**terminal, **options) if stderr else real(**options)

    monkeypatch.setattr(console, "_Console", of)
    return written


def test_a_bar_on_a_terminal_shows_count_rate_memory_and_its_note_below(monkeypatch):
    written = on_a_terminal(monkeypatch)
    with Output().bar("training", 3, "iteration", CPU) as bar:
        for _ in range(3):
            bar.advance(note="slots: relative 0.1 [red]")
    shown = written.getvalue()
    assert "training" in shown
    assert "3/3" in shown
    assert "iteration/s" in shown
    assert re.search(r"RAM \S+ GiB, peak \S+, free \S+ of \d+", shown)
    assert "\n  slots: relative 0.1 [red]" in shown.replace("\r", "")


def test_bytes_are_shown_in_units_that_people_read(monkeypatch, capsys):
    def download(total):
        with Output().bar("downloading", total, "byte", CPU, done=total // 4) as bar:
            bar.advance(total - total // 4, note="unet")

    for total in (6_900_000_000, 0):
        download(total)
    big, empty = capsys.readouterr().err.splitlines()
    assert big.startswith("downloading 6.9/6.9 GB, ")
    assert "B/s, " in big
    assert big.endswith(" s, unet")  # and no memory
    assert empty.startswith("downloading 0/0 bytes, ")
    written = on_a_terminal(monkeypatch)
    download(6_900_000_000)
    assert "6.9/6.9 GB" in written.getvalue()
    assert "B/s" in written.getvalue()
    assert "RAM" not in written.getvalue()


@pytest.mark.parametrize(
    ("title", "total", "unit"),
    [("trajectories", 1000, "trajectory"), ("training", 20_000, "iteration"), ("teacher, 40 steps", 100, "picture")],
)
@pytest.mark.parametrize("columns", [80, console.ROOMY])
def test_the_longest_bars_fit_into_the_line(monkeypatch, title, total, unit, columns):
    large = MemoryReading("GPU", *[int(99.9 * GIB)] * 4, others=int(9.9 * GIB))
    monkeypatch.setattr("rapm_cli.bases.memory.read_memory", lambda device: large)
    written = on_a_terminal(monkeypatch, columns)
    with Output().bar(title, total, unit, CPU) as bar:
        task = bar._progress.tasks[0]
        monkeypatch.setattr(type(task), "speed", 0.12)  # hours are left
        bar.advance(total // 2)
        bar._progress.refresh()
    words = large.words(is_short=columns == 80)
    lines = [
        line for line in re.split(r"[\r\n]", re.sub(r"\x1b\[\S*?[A-Za-z]", "", written.getvalue())) if title in line
    ]
    assert lines
    assert all(line.rstrip().endswith(words) and len(line.rstrip()) <= columns for line in lines)
    assert any(f"{total // 2}/{total} 0.12 {unit}/s" in line for line in lines)


def test_a_first_signal_is_told_below_a_live_bar_and_not_across_it(monkeypatch, capfd):
    written = on_a_terminal(monkeypatch)
    with signals.handled():
        with Output().bar("training", 2, "iteration", CPU) as bar, signals.deferred("this iteration"):
            os.kill(os.getpid(), signal.SIGINT)
            bar._progress.refresh()
            assert "this iteration" in written.getvalue()
            written.truncate(0)
        assert "this iteration" not in written.getvalue()  # what is left on the screen
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("is_terminal", [True, False])
def test_data_goes_above_a_live_bar_on_a_terminal_and_else_to_standard_output(monkeypatch, capsys, is_terminal):
    written = on_a_terminal(monkeypatch)
    output = Output()
    monkeypatch.setattr(output._out, "_force_terminal", is_terminal)
    with output.bar("pictures", 1, "picture", CPU):
        output.data("picture.png")
    output.data("grid.png")
    assert ("picture.png\n" in written.getvalue()) == is_terminal
    assert capsys.readouterr().out == ("grid.png\n" if is_terminal else "picture.png\ngrid.png\n")


def test_without_a_terminal_a_job_ends_with_one_plain_line(capsys):
    with Output().bar("trajectories", 4, "trajectory", CPU) as bar:
        bar.advance(2)
        bar.advance(2)
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    for part in ("trajectories 4/4", "trajectory/s", "RAM "):
        assert part in err


def test_slow_jobs_say_so_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr("rapm_cli.cli.console.PLAIN_SECONDS", 0.0)
    with Output().bar("training", 2, "iteration", CPU) as bar:
        bar.advance(note="one")
        bar.advance(note="two")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["training 1/2", "training 2/2"]
    assert "s left" in lines[0]
    assert lines[0].endswith("one")


@pytest.mark.parametrize("silence", [{"quiet": True}, {"as_json": True}])
def test_silence_is_silent_but_for_warnings(capsys, silence):
    out = Output(**silence)
    with out.bar("training", 2, "iteration", CPU) as bar:
        bar.advance(2)
    out.say("talk")
    assert capsys.readouterr().err == ""
    out.warn("beware")
    assert capsys.readouterr().err == "warning: beware\n"


@pytest.mark.parametrize(("rank", "speaker"), [("0", ""), ("1", "process 1: ")])
def test_a_warning_of_another_process_than_the_first_names_it(monkeypatch, capsys, rank, speaker):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    Output(quiet=True).warn("beware")
    assert capsys.readouterr().err == f"warning: {speaker}beware\n"


@pytest.mark.parametrize("width", [120, 80])
def test_a_table_shows_every_value_within_the_line(monkeypatch, capsys, width):
    monkeypatch.setattr("rapm_cli.cli.console.WIDE", width)
    row = ["teacher, 40 steps", "80", "98.4% [94.7,99.9]", "0.608 [0.515,0.695]"]
    Output().table("title", ["", "NFE", "attributes right", "FD-demo"], [row, row])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= width
    assert all(word in shown for word in " ".join(row).split())


def test_programs_get_each_row_and_each_fact_as_one_plain_line(capsys):
    words = "some words that are many, and \x1b[31m no colours"
    Output().table("title", ["", "size", "holds"], [["0001", "1 B", words], ["0002", "2 B", ""]], (0, 2))
    Output().fact("disk", words)
    title, head, first, second, fact = capsys.readouterr().out.splitlines()
    assert (title, head.split(), second.split()) == ("title", ["size", "holds"], ["0002", "2", "B"])
    assert first.endswith("some words that are many, and [31m no colours")
    assert fact == "disk         some words that are many, and [31m no colours"


def test_a_long_command_stays_one_line_on_a_terminal(monkeypatch):
    written = on_a_terminal(monkeypatch, 40)
    Output().stopped("2 of 4 iterations are saved", "rapm distill --resume 'a run with a long name'")
    assert len(written.getvalue().splitlines()) == 1


def test_every_environment_variable_is_named_like_its_option():
    from typer.main import get_command

    from rapm_cli.cli.app import app

    for name, command in get_command(app).commands.items():
        for option in command.params:
            flag = next((flag for flag in option.opts if flag.startswith("--")), None)
            if flag and flag != "--help":
                words = flag[2:].replace("-", "_").upper()
                own = f"RAPM_{name.upper()}_{words}"
                assert own in (option.envvar, f"RAPM_{name.upper()}_{option.name.upper()}"), flag
                assert option.envvar in (None, own, f"RAPM_{words}"), flag


def test_json_can_be_set_for_one_command(rapm, shipped_lora, monkeypatch):
    monkeypatch.setenv("RAPM_INSPECT_JSON", "1")
    assert json.loads(rapm("inspect", str(shipped_lora))[1])["kind"] == "LoRA"


def test_lines_of_a_foreign_text_stay_apart(capsys):
    Output().fact("parameters", "a cube\nNegative prompt: bad\r\n\x1b[31mSteps: 4")
    assert capsys.readouterr().out.split(None, 1)[1] == "a cube Negative prompt: bad [31mSteps: 4\n"
