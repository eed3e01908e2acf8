import json
import os
import shlex
import subprocess
import sys

import pytest

from tests.messages import names

HEAVY = ("torch", "diffusers", "transformers", "peft", "numpy", "PIL", "accelerate")
COMMANDS = ("distill", "generate", "eval", "export", "inspect")


def modules_after(argv: list[str]) -> tuple[set[str], str]:
    """Heavy modules that a fresh interpreter holds after a command, and what the command printed."""
    code = (
        "import io, json, sys, contextlib\n"
        "from rapm_cli.cli.app import main\n"
        "out = io.StringIO()\n"
        "with contextlib.redirect_stdout(out): main(json.loads(sys.argv[1]))\n"
        f"print(json.dumps([[m for m in {HEAVY} if m in sys.modules], out.getvalue()]))"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(argv)], capture_output=True, text=True, check=True)
    heavy, text = json.loads(done.stdout.splitlines()[-1])
    return set(heavy), text


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_loads_no_model_library(command):
    heavy, text = modules_after([*command, "--help"])
    assert heavy == set()
    assert "Usage" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_cuts_nothing_off_on_a_narrow_terminal(command):
    env = os.environ | {"TERMINAL_WIDTH": "80"}
    argv = [sys.executable, "-m", "rapm_cli", command, "--help"]
    assert "…" not in subprocess.run(argv, capture_output=True, text=True, check=True, env=env).stdout


def test_a_python_without_docstrings_is_refused_by_name():
    """transformers cannot be imported by it."""
    done = subprocess.run([sys.executable, "-OO", "-m", "rapm_cli", "inspect"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert names(done.stderr, "error:", "PYTHONOPTIMIZE")


ENDING = """
import atexit
from rapm_cli.cli import app
class Kept:
    def __del__(self):
        print("visited")
def main():
    atexit.register(print, "exit handler of a library")
    return CODE
kept, app.main = Kept(), main
app.run()
"""


@pytest.mark.parametrize("code", [0, 7])
def test_the_end_of_the_process_runs_exit_handlers_and_visits_no_object(code):
    argv = [sys.executable, "-c", ENDING.replace("CODE", str(code))]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, "exit handler of a library\n", "")


def test_inspecting_a_lora_loads_no_model_library(shipped_lora):
    heavy, text = modules_after(["inspect", str(shipped_lora)])
    assert heavy == set()
    assert "rank, alpha" in text


def test_a_survey_of_the_disk_loads_no_model_library():
    heavy, text = modules_after(["inspect", "cache"])
    assert heavy == set()
    assert "trajectories: none in" in text


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize(
    ("command", "code"),
    [("inspect LORA --json >/dev/full", 5), ("inspect LORA >/dev/full", 5), ("inspect LORA >&-", 0)],
)
def test_a_result_that_a_full_disk_did_not_take_is_an_error(shipped_lora, command, code):
    text = f"{shlex.quote(sys.executable)} -m rapm_cli {command.replace('LORA', shlex.quote(str(shipped_lora)))}"
    done = subprocess.run(text, shell=True, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("error: the result cannot be written to standard output: the disk is full") == (
        code == 5
    )


@pytest.mark.parametrize("command", ["inspect LORA", "--help", "distill --help", "inspect cache", "--versions"])
def test_a_reader_that_has_gone_misses_nothing_and_changes_no_exit_code(shipped_lora, command):
    argv = [word.replace("LORA", str(shipped_lora)) for word in command.split()]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "rapm_cli", *argv], stdout=writer, stderr=-1)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_python_m_is_the_command():
    done = subprocess.run([sys.executable, "-m", "rapm_cli", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("rapm 0.")
