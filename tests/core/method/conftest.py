"""A small training: four trajectories, and trainers on the small network."""

import dataclasses

import pytest
import torch

from rapm_cli.core.method.config import TrainConfig
from rapm_cli.core.method.trainer import Trainer
from rapm_cli.core.method.trajectories import rollout

SMALL = TrainConfig(rank=2, alpha=2.0, iterations=3, batch_size=2, learning_rate=1e-3, discriminator_learning_rate=1e-3)


@pytest.fixture
def trajectories(backbone, make_cond, latents):
    zeros = make_cond(1).map(torch.zeros_like)
    return rollout(
        backbone.teacher, latents(4), make_cond(4), zeros, num_slots=4, fine_steps=3, delta=1, guidance_scale=2.0
    )


@pytest.fixture
def trainer_of(backbone):
    def make(**changes):
        return Trainer(backbone, dataclasses.replace(SMALL, **changes), num_slots=4, fine_steps=3, delta=1)

    return make
