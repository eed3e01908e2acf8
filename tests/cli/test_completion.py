import contextlib
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from rapm_cli.cli import completion

FOLDER = Path(__file__).parents[2] / "completions"
SCRIPTS = {"bash": "rapm.bash", "zsh": "_rapm", "fish": "rapm.fish"}


@pytest.mark.parametrize("shell", SCRIPTS)
def test_scripts_are_what_rapm_gives(shell):
    from typer.completion import get_completion_script

    made = get_completion_script(prog_name="rapm", complete_var="_RAPM_COMPLETE", shell=shell)
    assert (FOLDER / SCRIPTS[shell]).read_text() == made + "\n"


@pytest.mark.parametrize("shell", SCRIPTS)
def test_completion_is_installed_where_the_shell_looks(shell, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    command = f"{sys.executable} -m rapm_cli --install-completion; true"  # with `; true` the shell stays the parent
    surroundings = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run([shell, "-c", command], env=surroundings, capture_output=True, text=True, check=True)
    assert f"{shell} completion installed in {tmp_path}" in " ".join(done.stdout.split())
    assert any("_RAPM_COMPLETE" in path.read_text() for path in tmp_path.rglob("*rapm*") if path.is_file())


@pytest.fixture
def surroundings(home, tmp_path):
    """The environment of a shell that finds this `rapm`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    command = folder / "rapm"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m rapm_cli "$@"\n')
    command.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "ZDOTDIR": str(tmp_path), "TERM": "xterm"}


def in_bash(line: str, surroundings: dict[str, str]) -> set[str]:
    *words, _ = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in line.split(" "))
    ask = f"COMP_WORDS=({quoted}); COMP_CWORD={len(words)}; _rapm_completion rapm; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    command = ["bash", "-c", f"source {FOLDER / 'rapm.bash'}; {ask}"]
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def in_fish(line: str, surroundings: dict[str, str]) -> set[str]:
    command = ["fish", "--no-config", "-c", f"source {FOLDER / 'rapm.fish'}; complete -C'{line}'"]
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=True)
    return {offer.split("\t")[0] for offer in done.stdout.splitlines()}


ZSH = """
PS1=ready; fpath=({folder} $fpath); autoload -Uz compinit; compinit -u -D
compadd() {{
    local -a found
    [[ ${{@[1,(i)(-|--)]}} == *-[OAD]* ]] || {{ builtin compadd -O found "$@"; print -rl -- $found >> {offered} }}
    builtin compadd "$@"
}}
"""


def in_zsh(line: str, surroundings: dict[str, str]) -> set[str]:
    """Only a zsh on a terminal completes: this one writes down what it is given to offer."""
    home = Path(surroundings["ZDOTDIR"])
    offered = home / "offered"
    offered.write_text("")
    (home / ".zshrc").write_text(ZSH.format(folder=FOLDER, offered=offered))
    ours, its = pty.openpty()
    shell = subprocess.Popen(["zsh", "-i"], stdin=its, stdout=its, stderr=its, env=surroundings, start_new_session=True)
    os.close(its)
    seen = b""
    while b"ready" not in seen:
        seen += os.read(ours, 4096)
    os.write(ours, line.encode() + b"\t\t\x15exit\r")  # the first TAB loads the script; then the line is emptied
    with contextlib.suppress(OSError):  # what Linux says at the end of a terminal's other side
        while os.read(ours, 4096):
            pass
    os.close(ours)
    assert shell.wait(10) == 0
    return set(offered.read_text().split())


@pytest.fixture(params=[in_bash, in_zsh, in_fish])
def candidates(request, surroundings):
    """What a shell offers for a half-typed command."""
    shell = request.param.__name__.removeprefix("in_")
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    return lambda line: request.param(line, surroundings)


def test_shells_offer_commands_options_and_values(candidates):
    assert candidates("rapm e") == {"eval", "export"}
    assert candidates("rapm distill --disc") == {
        "--discriminators",
        "--discriminator",
        "--discriminator-learning-rate",
        "--discriminator-noise",
    }
    assert candidates("rapm distill --precision f") == {"fp32", "fp16"}
    assert candidates("rapm eval --metrics fid,k") == {"fid,kd-demo", "fid,kid"}


def test_shells_offer_run_names(candidates, home):
    (home / "data" / "runs" / "demo-20260101-120000-1").mkdir(parents=True)
    assert candidates("rapm generate --lora demo-") == {"demo-20260101-120000-1"}
    assert candidates("rapm inspect demo-") == {"demo-20260101-120000-1"}


def test_the_words_are_those_of_the_registries():
    from rapm_cli.bases import BASES
    from rapm_cli.distill.trackers import TRACKERS
    from rapm_cli.metrics import METRICS, NAMES

    assert set(completion.BASES) == set(BASES.names())
    assert set(NAMES) == set(METRICS.names())
    assert set(completion.TRACKERS) == set(TRACKERS.names())
    assert set(completion.studies("")) == {path.stem for path in completion.STUDIES.glob("*.toml")} != set()


def test_choices_are_those_of_the_registries():
    from rapm_cli.bases.base import Defaults
    from rapm_cli.bases.device import DTYPES
    from rapm_cli.bases.plans import PLANS
    from rapm_cli.core.method import METHODS
    from rapm_cli.core.method.config import DiscriminatorName, MethodName, Precision, Vram, options
    from rapm_cli.core.method.discriminators import DISCRIMINATORS

    assert set(get_args(MethodName)) == set(METHODS.names())
    assert set(get_args(DiscriminatorName)) == set(DISCRIMINATORS.names())
    assert set(get_args(Precision)) == set(DTYPES)
    assert get_args(Vram) == ("auto", *PLANS)
    assert {name for name, _, option in options() if option.is_bases} - {"alpha"} <= set(Defaults.__annotations__)


def parameters():
    """Each command's name with each of its options."""
    from typer.main import get_command

    from rapm_cli.cli.app import app

    for name, command in get_command(app).commands.items():
        for parameter in command.params:
            yield name, parameter


def test_every_option_has_help():
    assert [(name, parameter.name) for name, parameter in parameters() if not parameter.help] == []


def test_help_texts_are_not_read_as_markup():
    assert [(name, parameter.name) for name, parameter in parameters() if "[" in parameter.help] == []


def test_choices_of_eval_are_those_of_its_registries():
    from rapm_cli.cli.evaluate import evaluate
    from rapm_cli.evaluate.request import PROTOCOLS, SPLITS

    hints = get_type_hints(evaluate)
    assert set(get_args(hints["split"])) == set(SPLITS)
    assert set(get_args(get_args(hints["protocol"])[0])) == set(PROTOCOLS.names())
