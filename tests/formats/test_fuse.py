"""A LoRA fused in memory samples the same latents as a separate LoRA."""

import pytest
import torch

from rapm_cli.bases import BASES, LoadedBase
from rapm_cli.cli.console import Output
from rapm_cli.core.common.errors import InputError
from rapm_cli.core.method.samplers import sample_student
from rapm_cli.core.method.trajectories import initial_noise
from rapm_cli.formats.fuse import MAX_ROUNDING_LOSS, fuse_lora
from rapm_cli.formats.lora import apply_lora, load_lora

CPU, OUT, PATH = torch.device("cpu"), Output(quiet=True), BASES["demo"].student


def fresh(dtype=torch.float32):
    return LoadedBase(BASES["demo"].locate(OUT), CPU, dtype)


def sample(loaded):
    noise = initial_noise(0, "merged", [0, 1], loaded.latent_shape)
    return sample_student(loaded.backbone.student, noise, loaded.encode(["a red cube at dusk", "two blue cones"]), 4)[0]


@pytest.mark.slow
def test_fused_and_separate_updates_sample_the_same_latents():
    lora, fused, separate = load_lora(PATH), fresh(), fresh()
    assert fuse_lora(fused.backbone, lora, PATH)
    bare = sample(separate)
    apply_lora(separate.backbone, lora, PATH)
    mine, theirs = sample(fused), sample(separate)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-4)
    assert (bare - theirs).abs().max() > 0.5


@pytest.mark.slow
def test_an_update_that_rounding_would_lose_is_not_fused():
    lora, loaded = load_lora(PATH), fresh(torch.bfloat16)
    lora.state.update({name: value / 100 for name, value in lora.state.items()})
    before = {name: value.clone() for name, value in loaded.backbone.unet.state_dict().items()}
    assert not fuse_lora(loaded.backbone, lora, PATH)
    assert all(torch.equal(value, before[name]) for name, value in loaded.backbone.unet.state_dict().items())
    assert 0 < MAX_ROUNDING_LOSS < 1


def test_a_lora_of_another_base_is_refused(backbone):
    with pytest.raises(InputError, match="down_blocks"):
        fuse_lora(backbone, load_lora(PATH), PATH)
