import pytest

from rapm_cli.bases.demo.base import WEIGHTS


@pytest.fixture
def shipped_lora():
    return WEIGHTS / "rapm-demo.safetensors"
