"""A small training: four trajectories, and trainers on the small network."""

import copy
import dataclasses

import pytest
import torch

from rapm_cli.core.method.config import TrainConfig
from rapm_cli.core.method.trainer import Trainer
from rapm_cli.core.method.trajectories import rollout
from rapm_cli.core.network.backbone import Backbone
from tests.conftest import tiny_unet

SMALL = TrainConfig(rank=2, alpha=2.0, iterations=3, batch_size=2, learning_rate=1e-3, discriminator_learning_rate=1e-3)


@pytest.fixture(scope="session")
def rolled_out(schedule, make_cond, latents):
    zeros, backbone = make_cond(1).map(torch.zeros_like), Backbone(tiny_unet(), schedule)
    return rollout(
        backbone.teacher, latents(4), make_cond(4), zeros, num_slots=4, fine_steps=3, delta=1, guidance_scale=2.0
    )


@pytest.fixture
def trajectories(rolled_out):
    """The small network's, which a test may spoil."""
    return copy.deepcopy(rolled_out)


@pytest.fixture
def trainer_of(backbone):
    def make(**changes):
        return Trainer(backbone, dataclasses.replace(SMALL, **changes), num_slots=4, fine_steps=3, delta=1)

    return make
