"""A compiled network against the same one as it is."""

import shutil

import pytest
import torch

from rapm_cli.core.common.errors import ConfigError
from rapm_cli.core.method.config import TrainConfig
from rapm_cli.core.method.trainer import Trainer, train
from rapm_cli.core.method.trajectories import rollout
from rapm_cli.core.network.backbone import Backbone
from tests.conftest import tiny_unet
from tests.messages import naming

pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns of itself
has_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="there is no C++ compiler")


def trained(schedule, batch, *, compiled, channels_last, checkpointing=False):
    backbone = Backbone(tiny_unet(), schedule)
    backbone.configure_speedups(compiled=compiled, channels_last=channels_last, recorded=True)
    config = TrainConfig(rank=2, iterations=2, learning_rate=1e-3, gradient_checkpointing=checkpointing)
    trainer = Trainer(backbone, config, num_slots=2, fine_steps=3, delta=1)
    losses = [slot for progress in train(trainer, batch) for slot in progress.slots]
    return trainer, losses


@pytest.fixture
def trajectories(backbone, make_cond, latents):
    zeros = make_cond(1).map(torch.zeros_like)
    return rollout(
        backbone.teacher, latents(2), make_cond(2), zeros, num_slots=2, fine_steps=3, delta=1, guidance_scale=2.0
    )


@pytest.mark.slow
@pytest.mark.parametrize(("compiled", "checkpointing"), [(False, False), pytest.param(True, True, marks=has_compiler)])
def test_a_hastened_network_trains_as_the_plain_one(schedule, trajectories, compiled, checkpointing):
    _, usual = trained(schedule, trajectories, compiled=False, channels_last=False)
    torch.compiler.reset()
    trainer, losses = trained(
        schedule, trajectories, compiled=compiled, channels_last=True, checkpointing=checkpointing
    )
    assert trainer.backbone.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    blocks = [m for m in trainer.backbone.unet.modules() if type(m).__name__ == "BasicTransformerBlock"]
    assert [block._compiled_call_impl is not None for block in blocks] == [compiled] * len(blocks)
    for mine, theirs in zip(losses, usual, strict=True):
        assert mine.distance == pytest.approx(theirs.distance, rel=1e-3)
        assert mine.discriminator == pytest.approx(theirs.discriminator, rel=1e-3)


@pytest.mark.slow
def test_where_torch_cannot_compile_one_line_says_so_before_any_work(schedule, monkeypatch, tmp_path):
    torch.compiler.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "/nonexistent/g++"))
    with pytest.raises(ConfigError, match=naming("--compile", "nonexistent")) as caught:
        Backbone(tiny_unet(), schedule).configure_speedups(compiled=True, channels_last=False, recorded=True)
    assert "C++" in caught.value.remedy
