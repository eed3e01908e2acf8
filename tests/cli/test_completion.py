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


def candidates(*words: str) -> set[str]:
    """What bash offers for a half-typed command."""
    line = " ".join(f"'{word}'" for word in words)
    ask = f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _rapm; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    script = f"source {FOLDER / 'rapm.bash'}; {ask}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_bash_offers_commands_options_and_values(home):
    assert candidates("rapm", "e") == {"eval", "export"}
    assert candidates("rapm", "distill", "--disc") == {
        "--discriminators",
        "--discriminator",
        "--discriminator-learning-rate",
        "--discriminator-times",
    }
    assert candidates("rapm", "distill", "--precision", "f") == {"fp32", "fp16"}
    assert "--fuse" in candidates("rapm", "export", "--")
    assert "--rank" not in candidates("rapm", "export", "--")


def test_bash_offers_run_names(home):
    (home / "data" / "runs" / "demo-20260101-120000-1").mkdir(parents=True)
    assert "demo-20260101-120000-1" in candidates("rapm", "generate", "--lora", "demo-")
    assert "demo-20260101-120000-1" in candidates("rapm", "inspect", "demo-")


def test_values_are_those_of_the_registries():
    from rapm_cli.bases import BASES
    from rapm_cli.bases.device import DTYPES
    from rapm_cli.bases.plans import PLANS
    from rapm_cli.core.config import DISCRIMINATOR_SETS, START_FROM
    from rapm_cli.core.discriminators import DISCRIMINATORS
    from rapm_cli.core.methods import METHODS
    from rapm_cli.metrics.registry import METRICS
    from rapm_cli.workflows.evaluate import PARTS
    from rapm_cli.workflows.trackers import TRACKERS

    assert set(VALUES["base"]) == set(BASES.names())
    assert set(VALUES["method"]) == set(METHODS.names())
    assert set(VALUES["discriminator"]) == set(DISCRIMINATORS.names())
    assert set(VALUES["discriminators"]) == set(DISCRIMINATOR_SETS)
    assert set(VALUES["start-from"]) == set(START_FROM)
    assert set(VALUES["metrics"]) == set(METRICS.names())
    assert set(VALUES["report-to"]) == set(TRACKERS.names())
    assert set(VALUES["part"]) == set(PARTS)
    assert set(VALUES["precision"]) == {"auto", *DTYPES}
    assert set(VALUES["vram"]) == {"auto", *PLANS}
    assert set(VALUES["dtype"]) == {"base", *DTYPES}


def test_every_option_has_help():
    for command, (text, options) in command_tree().items():
        assert text, command
        assert all(option.help for option in options), command
