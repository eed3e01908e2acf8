import contextlib
import os
import pty
import shutil
import subprocess
from pathlib import Path

import pytest

from rapm_cli.cli.completion import SCRIPTS, VALUES, command_tree

FOLDER = Path(__file__).parents[2] / "completions"


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_what_the_command_tree_gives(name):
    assert (FOLDER / name).read_text() == SCRIPTS[name](), "run: python -m rapm_cli.cli.completion completions"


@pytest.mark.parametrize(("shell", "name"), [("bash", "rapm.bash"), ("zsh", "_rapm"), ("fish", "rapm.fish")])
def test_scripts_parse(shell, name):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([shell, "-n", str(FOLDER / name)], check=True)


def in_bash(line: str, home: Path) -> set[str]:
    *words, last = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in (*words, last))
    ask = f"COMP_WORDS=({quoted}); COMP_CWORD={len(words)}; _rapm; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    script = f"source {FOLDER / 'rapm.bash'}; {ask}"
    return set(subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.split())


def in_fish(line: str, home: Path) -> set[str]:
    script = f"source {FOLDER / 'rapm.fish'}; complete -C'{line}'"
    done = subprocess.run(["fish", "--no-config", "-c", script], capture_output=True, text=True, check=True)
    return {offer.split("\t")[0] for offer in done.stdout.splitlines()}


ZSH = """
PS1=ready; fpath=({folder} $fpath); autoload -Uz compinit; compinit -u -D
compadd() {{
    local -a found
    [[ ${{@[1,(i)(-|--)]}} == *-[OAD]* ]] || {{ builtin compadd -O found "$@"; print -rl -- $found >> {offered} }}
    builtin compadd "$@"
}}
"""


def in_zsh(line: str, home: Path) -> set[str]:
    """Only a zsh on a terminal completes: this one writes down what it is given to offer."""
    home.mkdir(exist_ok=True)
    offered = home / "offered"
    offered.write_text("")
    (home / ".zshrc").write_text(ZSH.format(folder=FOLDER, offered=offered))
    ours, its = pty.openpty()
    surroundings = {**os.environ, "ZDOTDIR": str(home), "TERM": "xterm"}
    shell = subprocess.Popen(["zsh", "-i"], stdin=its, stdout=its, stderr=its, env=surroundings, start_new_session=True)
    os.close(its)
    seen = b""
    while b"ready" not in seen:
        seen += os.read(ours, 4096)
    os.write(ours, line.encode() + b"\t\x15exit\r")  # TAB; then the line is emptied
    with contextlib.suppress(OSError):  # what Linux says at the end of a terminal's other side
        while os.read(ours, 4096):
            pass
    os.close(ours)
    assert shell.wait(10) == 0
    return set(offered.read_text().split())


@pytest.fixture(params=[in_bash, in_zsh, in_fish])
def candidates(request, home):
    """What a shell offers for a half-typed command."""
    shell = request.param.__name__.removeprefix("in_")
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    return lambda line: request.param(line, home)


def test_shells_offer_commands_options_and_values(candidates):
    assert candidates("rapm e") == {"eval", "export"}
    assert candidates("rapm distill --disc") == {
        "--discriminators",
        "--discriminator",
        "--discriminator-learning-rate",
        "--discriminator-times",
    }
    assert candidates("rapm distill --precision f") == {"fp32", "fp16"}
    assert "--fuse" in candidates("rapm export --")
    assert "--rank" not in candidates("rapm export --")


def test_shells_offer_run_names(candidates, home):
    (home / "data" / "runs" / "demo-20260101-120000-1").mkdir(parents=True)
    assert "demo-20260101-120000-1" in candidates("rapm generate --lora demo-")
    assert "demo-20260101-120000-1" in candidates("rapm inspect demo-")


def test_values_are_those_of_the_registries():
    from rapm_cli.bases import BASES
    from rapm_cli.bases.device import DTYPES
    from rapm_cli.bases.plans import PLANS
    from rapm_cli.core.method import METHODS
    from rapm_cli.core.method.config import DISCRIMINATOR_SETS, START_FROM
    from rapm_cli.core.method.discriminators import DISCRIMINATORS
    from rapm_cli.distill.trackers import TRACKERS
    from rapm_cli.evaluate.request import PROTOCOLS, SPLITS
    from rapm_cli.metrics import METRICS

    assert set(VALUES["base"]) == set(BASES.names())
    assert set(VALUES["method"]) == set(METHODS.names())
    assert set(VALUES["discriminator"]) == set(DISCRIMINATORS.names())
    assert set(VALUES["discriminators"]) == set(DISCRIMINATOR_SETS)
    assert set(VALUES["start-from"]) == set(START_FROM)
    assert set(VALUES["metrics"]) == set(METRICS.names())
    assert set(VALUES["protocol"]) == set(PROTOCOLS.names())
    assert set(VALUES["report-to"]) == set(TRACKERS.names())
    assert set(VALUES["part"]) == set(SPLITS)
    assert set(VALUES["precision"]) == {"auto", *DTYPES}
    assert set(VALUES["vram"]) == {"auto", *PLANS}
    assert set(VALUES["dtype"]) == {"base", *DTYPES}


def test_every_option_has_help():
    for command, (text, options) in command_tree().items():
        assert text, command
        assert all(option.help for option in options), command
