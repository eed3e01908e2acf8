import shutil

import pytest
import torch

from rapm_cli.core.common.errors import ConfigError
from rapm_cli.core.method.config import TrainConfig
from rapm_cli.core.method.trainer import Trainer, train
from rapm_cli.core.method.trajectories import rollout
from rapm_cli.core.network.backbone import Backbone, Conditioning
from rapm_cli.core.network.student import attach_lora, lora_weights
from tests.conftest import tiny_unet
from tests.messages import naming

has_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="there is no C++ compiler")


def random_lora(backbone, rank=2, alpha=2.0, seed=3):
    attach_lora(backbone, rank, alpha)
    generator = torch.Generator().manual_seed(seed)
    for parameter in lora_weights(backbone).parameters:
        parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def test_features_are_what_the_whole_network_sees_on_the_way_down(backbone, make_cond, latents):
    random_lora(backbone)
    cond, z, t = make_cond(2), latents(2), torch.tensor([300, 700])
    seen = []
    blocks = [*backbone.unet.down_blocks, backbone.unet.mid_block]
    for block in blocks:
        block.register_forward_hook(lambda module, args, out: seen.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():  # outside of any call the network is the teacher
        backbone.unet(z, t, cond.tokens, added_cond_kwargs={"text_embeds": cond.pooled, "time_ids": cond.time_ids})
    expected = list(seen)
    seen.clear()
    with torch.no_grad():
        features = backbone.teacher.features(z, t, cond)
    assert [f.shape[1] for f in features] == backbone.tap_channels
    for mine, theirs in zip(features, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(("kind", "taps"), [("UNetMidBlock2D", 3), (None, 2)])
def test_pruned_networks_have_features_too(make_cond, latents, schedule, kind, taps):
    backbone = Backbone(tiny_unet(mid_block_type=kind), schedule)
    seen = []
    for block in filter(None, [*backbone.unet.down_blocks, backbone.unet.mid_block]):
        block.register_forward_hook(lambda module, args, out: seen.append(out[0] if isinstance(out, tuple) else out))
    cond, z = make_cond(1), latents(1)
    with torch.no_grad():
        backbone.teacher(z, 300, cond)
        features = backbone.teacher.features(z, torch.tensor([300]), cond)
    assert [f.shape[1] for f in features] == backbone.tap_channels
    assert len(features) == taps
    for mine, whole in zip(features, seen[:taps], strict=True):
        torch.testing.assert_close(mine, whole, rtol=0, atol=0)


def test_a_teacher_is_the_teacher_whenever_it_is_called(backbone, make_cond, latents):
    cond, z = make_cond(1), latents(1)
    teacher, student = backbone.teacher, backbone.student
    with torch.no_grad():
        bare = teacher(z, 500, cond)
        assert torch.equal(student(z, 500, cond), bare)  # as long as there is no LoRA
        random_lora(backbone)
        adapted = student(z, 500, cond)
        assert torch.equal(teacher(z, 500, cond), bare)
        assert torch.equal(student(z, 500, cond), adapted)
    assert not torch.allclose(bare, adapted, atol=1e-2)


def test_a_call_that_fails_leaves_the_network_the_teacher(backbone, make_cond, latents):
    random_lora(backbone)
    cond, z = make_cond(1), latents(1)
    added = {"text_embeds": cond.pooled, "time_ids": cond.time_ids}
    with torch.no_grad():
        bare = backbone.teacher(z, 500, cond)
        with pytest.raises(RuntimeError):
            backbone.student(z[:, :1], 500, cond)
        out = backbone.unet(z, 500, cond.tokens, added_cond_kwargs=added)
    torch.testing.assert_close(out[0], bare)


def test_a_fresh_lora_is_the_teacher(backbone, make_cond, latents):
    attach_lora(backbone, 4, 4.0)
    cond, z = make_cond(2), latents(2)
    with torch.no_grad():
        teacher = backbone.teacher(z, 999, cond)
        torch.testing.assert_close(backbone.student(z, 999, cond), teacher, rtol=0, atol=0)


def test_a_batch_of_two_is_two_of_one(backbone, make_cond, latents):
    random_lora(backbone)
    cond, z = make_cond(2), latents(2)
    with torch.no_grad():
        together = backbone.student(z, 749, cond)
        apart = torch.cat([backbone.student(z[k : k + 1], 749, cond[k : k + 1]) for k in range(2)])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


def gradients(backbone, make_cond, latents):
    """A loss that runs the network in both roles before it goes back through either."""
    cond, z = make_cond(2), latents(2)
    out = backbone.student(z, 600, cond)
    seen = backbone.teacher.features(out, torch.tensor([100, 200]), cond)
    loss = out.square().mean() + sum(feature.square().mean() for feature in seen)
    return torch.autograd.grad(loss, lora_weights(backbone).parameters)


@pytest.mark.slow
def test_checkpointing_changes_no_gradient(backbone, make_cond, latents):
    random_lora(backbone)
    plain = gradients(backbone, make_cond, latents)
    backbone.enable_checkpointing()
    calls = []
    backbone.unet.down_blocks[1].resnets[0].register_forward_pre_hook(lambda *_: calls.append(1))
    for kept, recomputed in zip(plain, gradients(backbone, make_cond, latents), strict=True):
        torch.testing.assert_close(kept, recomputed, rtol=1e-5, atol=1e-7)
    assert any(g.abs().max() > 1e-3 for g in plain)
    assert len(calls) == 4  # once in each of the two forward passes, and once more for each in backward


def test_the_frozen_network_gets_no_gradient_and_the_latent_does(backbone, make_cond, latents):
    random_lora(backbone)
    z = latents(1).requires_grad_()
    sum(f.sum() for f in backbone.teacher.features(z, torch.tensor([100]), make_cond(1))).backward()
    assert z.grad is not None
    assert z.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in backbone.unet.parameters())


def test_conditionings_join_and_split(make_cond):
    both = Conditioning.cat([make_cond(1, 0), make_cond(2, 1)])
    assert len(both) == 3
    torch.testing.assert_close(both[1:].tokens, make_cond(2, 1).tokens)
    torch.testing.assert_close(make_cond(1).expand(3).pooled[2], make_cond(1).pooled[0])
    without = Conditioning.cat([Conditioning(torch.zeros(1, 5, 12)), Conditioning(torch.ones(1, 5, 12))])
    assert without.pooled is None
    assert without.time_ids is None


def test_every_kind_of_layer_is_adapted(backbone):
    attach_lora(backbone, 1, 1.0)
    names = {
        name.split(".lora_A")[0].rsplit(".", 1)[-1] for name, _ in backbone.unet.named_parameters() if ".lora_A" in name
    }
    assert {"to_q", "to_k", "to_v", "proj_in", "proj_out", "conv1", "conv2", "conv_shortcut", "time_emb_proj"} <= names
    assert not any(name.startswith("conv_in.lora") for name, _ in backbone.unet.named_parameters())


@pytest.mark.slow
def test_sdxl_has_788_modules_and_as_many_parameters_as_counted(schedule):
    """METHOD.md: 788 modules and 3,074,240 parameters at rank 1; counted on the meta device."""
    from diffusers import UNet2DConditionModel

    from rapm_cli.core.network.backbone import Backbone

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=128, block_out_channels=(320, 640, 1280), cross_attention_dim=2048,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10), attention_head_dim=(5, 10, 20), use_linear_projection=True,
            addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
        )  # fmt: skip
    sdxl = Backbone(unet, schedule)
    attach_lora(sdxl, 1, 1.0)
    assert sum(".lora_A." in name for name, _ in sdxl.unet.named_parameters()) == 788
    assert lora_weights(sdxl).flat.numel() == 3_074_240


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
@pytest.mark.filterwarnings("ignore")  # torch warns of itself
@pytest.mark.parametrize(("compiled", "checkpointing"), [(False, False), pytest.param(True, True, marks=has_compiler)])
def test_a_compiled_network_trains_as_the_plain_one(schedule, trajectories, compiled, checkpointing):
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
@pytest.mark.filterwarnings("ignore")  # torch warns of itself
def test_where_torch_cannot_compile_one_line_says_so_before_any_work(schedule, monkeypatch, tmp_path):
    torch.compiler.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "/nonexistent/g++"))
    with pytest.raises(ConfigError, match=naming("--compile", "nonexistent")) as caught:
        Backbone(tiny_unet(), schedule).configure_speedups(compiled=True, channels_last=False, recorded=True)
    assert "C++" in caught.value.remedy
