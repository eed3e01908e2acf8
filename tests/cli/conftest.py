import pytest

from rapm_cli.bases.demo.base import WEIGHTS
from rapm_cli.cli.app import main


@pytest.fixture
def shipped_lora():
    return WEIGHTS / "rapm-demo.safetensors"


@pytest.fixture
def rapm(capfd):
    """Run a command as a user does: arguments in; exit code, standard output and standard error out."""

    def run(*argv: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(list(argv))
        out, err = capfd.readouterr()
        return code, out, err

    return run
