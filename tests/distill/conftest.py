"""What tests of distillation share."""

import dataclasses

import pytest

from rapm_cli.bases import BASES
from rapm_cli.bases.architectures import Architecture
from tests.bases.conftest import copy_of, originals  # noqa: F401  # fixtures
from tests.conftest import tiny_unet
from tests.resuming import again, whole  # noqa: F401  # fixtures

VAE = {
    "block_out_channels": [8], "down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"],
    "latent_channels": 4, "norm_num_groups": 4, "sample_size": 8,
}  # fmt: skip


@pytest.fixture
def architecture():
    """A hundredth of the demo base's."""
    return Architecture({**tiny_unet().config}, VAE, tokens=5)


@pytest.fixture
def tiny(architecture, monkeypatch):
    """The demo base in that size, with small batches."""
    fewer = dataclasses.replace(BASES["demo"].defaults, rank=1, batch_size=2, rollout_batch=2, image_batch=2)
    small = dataclasses.replace(BASES["demo"], architecture=lambda reporter: architecture, defaults=fewer)
    monkeypatch.setitem(BASES._things, "demo", small)
