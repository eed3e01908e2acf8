"""The constants that the peers publish, held against ours.

Source: the published code of PCM (b127277), of DMD2 (8d8fa55), and of diffusers' LCM-LoRA script (58eb52c).
"""

from functools import cache

import pytest
import torch

from rapm_cli.core.method import METHODS, lcm
from rapm_cli.core.method.config import TrainConfig
from rapm_cli.core.method.discriminators import PointwiseHead
from rapm_cli.core.method.losses import hinge_discriminator_mean, hinge_student_mean, pseudo_huber_mean, softplus_mean
from rapm_cli.core.method.trainer import Trainer
from rapm_cli.core.method.trajectories import Trajectories
from rapm_cli.core.network.backbone import Backbone, Conditioning
from rapm_cli.core.network.schedule import NoiseSchedule, fine_grid, slot_edges
from tests.conftest import tiny_unet

ZERO, LOGITS = torch.zeros(1), torch.tensor([-2.0, 0.5, 3.0])


@cache
def trainer(method):
    """A trainer with the default settings."""
    cond = conditioning(1)
    backbone, config = Backbone(tiny_unet(), NoiseSchedule.scaled_linear()), TrainConfig(method=method)
    return Trainer(backbone, config, num_slots=4, fine_steps=10, delta=1, guidance_scale=2.0, uncond=cond)


def conditioning(count):
    return Conditioning(torch.zeros(count, 5, 12), torch.zeros(count, 10), torch.zeros(count, 6))


def adamw(method, name):
    """Settings of an optimizer of a method."""
    return trainer(method).optimizers[name]._adam.param_groups[0]


def times(method, low_and_high):
    """The range of the times that a method draws: (lowest, highest) of 4,000."""
    drawn = trainer(method).method.context.integers(*low_and_high, 4000, "test")
    return int(drawn.min()), int(drawn.max())


def sampled_at(method):
    return METHODS[method].sampler({}).times(4, 1000)


def dmd2_constants():
    from rapm_cli.core.method.dmd2 import MATCHING_TIMES

    return MATCHING_TIMES


PUBLISHED = {
    # PCM, section 1
    "pcm huber c": (0.001, lambda: (pseudo_huber_mean(ZERO, ZERO + 0.001) / (2**0.5 - 1)).item()),
    "pcm adversarial weight": (0.1, lambda: TrainConfig(method="pcm").adversarial_weight),
    "pcm student hinge": (1.5 + 0.25, lambda: 1.5 * hinge_student_mean([LOGITS]).item()),
    "pcm discriminator hinge": (3.5 / 3 + 5.5 / 3, lambda: hinge_discriminator_mean([LOGITS], [LOGITS]).item()),
    "pcm discriminator rate": (1e-5, lambda: adamw("pcm", "discriminators")["lr"]),
    "pcm discriminator betas": ((0.0, 0.999), lambda: adamw("pcm", "discriminators")["betas"]),
    "pcm discriminator weight decay": (1e-3, lambda: adamw("pcm", "discriminators")["weight_decay"]),
    "pcm discriminator eps": (1e-8, lambda: adamw("pcm", "discriminators")["eps"]),
    "pcm student betas": ((0.9, 0.999), lambda: adamw("pcm", "student")["betas"]),
    "pcm student weight decay": (0.0, lambda: adamw("pcm", "student")["weight_decay"]),
    "pcm gradient clip": (1.0, lambda: TrainConfig(method="pcm").max_grad_norm),
    "pcm edges": ([-1, 249, 499, 749, 999], lambda: slot_edges(4)),
    "pcm fine steps": ([25 * k - 1 for k in range(40, 0, -1)], lambda: fine_grid(4, 10)[:-1]),
    "pcm discriminator parameters on sdxl": (
        7_602_244,
        lambda: sum(p.numel() for width in (320, 640, 1280, 1280) for p in PointwiseHead(width).parameters()),
    ),
    "pcm discriminator times": ("slot", lambda: TrainConfig(method="pcm").discriminator_noise),
    # DMD2, section 2
    "dmd2 student updates": (5, lambda: TrainConfig(method="dmd2").fake_updates),
    "dmd2 matching times": ((20, 980), lambda: times("dmd2", dmd2_constants())),
    "dmd2 student rate of a lora": (5e-5, lambda: adamw("dmd2", "student")["lr"]),
    "dmd2 fake score weight decay": (0.01, lambda: adamw("dmd2", "fake-score")["weight_decay"]),
    "dmd2 fake score betas": ((0.9, 0.999), lambda: adamw("dmd2", "fake-score")["betas"]),
    "dmd2 discriminator weight decay": (0.01, lambda: adamw("dmd2", "discriminator")["weight_decay"]),
    "dmd2 discriminator betas": ((0.9, 0.999), lambda: adamw("dmd2", "discriminator")["betas"]),
    "dmd2 softplus": ((1 + LOGITS.exp()).log().mean().item(), lambda: softplus_mean(LOGITS).item()),
    "dmd2 sampling times": ([999, 749, 499, 249], lambda: sampled_at("dmd2")),
    # LCM, section 3
    "lcm timesteps": (50, lambda: TrainConfig(method="lcm").lcm_timesteps),
    "lcm sigma data squared": (0.25, lambda: lcm.SIGMA_DATA**2),
    "lcm time scale": (10.0, lambda: lcm.TIME_SCALE),
    "lcm sampling times": ([999, 759, 499, 259], lambda: sampled_at("lcm")),
    "lcm student weight decay": (0.0, lambda: adamw("lcm", "student")["weight_decay"]),
}


SETTING = "it is a setting, and all methods share RAPM's, so that a study compares methods"
# Differs: what is published, ours, and why.
DIFFERENT = {
    "pcm student rate": (2e-6, 5e-5, lambda: adamw("pcm", "student")["lr"], SETTING),
    "dmd2 fake score rate of a lora": (5e-5, 1e-5, lambda: adamw("dmd2", "fake-score")["lr"], SETTING),
    "dmd2 discriminator rate of a lora": (5e-5, 1e-5, lambda: adamw("dmd2", "discriminator")["lr"], SETTING),
    "dmd2 gradient clip": (10.0, 1.0, lambda: TrainConfig(method="dmd2").max_grad_norm, SETTING),
    "lcm student rate": (1e-4, 5e-5, lambda: adamw("lcm", "student")["lr"], SETTING),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_constant_is_ours(name):
    published, ours = PUBLISHED[name]
    found = ours()
    assert found == (pytest.approx(published, rel=1e-3) if isinstance(published, float) else published)


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_constant_that_differs_is_the_one_that_the_table_says(name):
    published, stated, ours, _ = DIFFERENT[name]
    assert ours() == stated != published


def test_the_losses_of_dmd2_weigh_its_gan_as_published():
    """Of the student 1 : 0.005, of the fake score 1 : 0.01."""
    method, noise = trainer("dmd2").method, torch.randn(1, 9, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    batch = Trajectories(noise[:, :5], noise[:, 5:], conditioning(1))
    slot = method.student_loss(batch, 3, batch.z_teacher[:, 4], 0)  # the first slot is the student's turn
    critics = method.critic_loss(slot, batch.cond, 3, 0)
    gan = (slot.loss - slot.metrics.distance["matching"]) / slot.metrics.adversarial["real"]
    assert gan.item() == pytest.approx(5e-3, rel=1e-2)
    gan = (critics.loss - critics.metrics.distance["score"]) / critics.metrics.discriminator["real"]
    assert gan.item() == pytest.approx(1e-2, rel=1e-2)
