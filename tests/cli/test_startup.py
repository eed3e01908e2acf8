import json
import subprocess
import sys

import pytest

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


def test_inspecting_a_lora_loads_no_model_library(shipped_lora):
    heavy, text = modules_after(["inspect", str(shipped_lora)])
    assert heavy == set()
    assert "rank, alpha" in text


def test_python_m_is_the_command():
    done = subprocess.run([sys.executable, "-m", "rapm_cli", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("rapm 0.")
