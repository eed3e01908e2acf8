import pytest
import torch
from torch import nn

from rapm_cli.bases.architectures import ARCHITECTURES
from rapm_cli.bases.estimate import META, estimate_training
from rapm_cli.core.method.config import TeacherConfig, TrainConfig
from rapm_cli.core.network.backbone import Backbone
from rapm_cli.core.training.meta_profiler import Meter, flash_attention
from rapm_cli.formats.original_layout import UNET_PARAMETERS
from tests.conftest import tiny_unet


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("sdxl", 2_567_463_684), ("sd15", 859_520_964)])
def test_random_networks_have_the_size_of_the_real_ones(name, count):
    assert sum(p.numel() for p in ARCHITECTURES[name].network(META, torch.bfloat16).parameters()) == count
    assert UNET_PARAMETERS[name] == count


@pytest.mark.slow
@torch.no_grad()
def test_a_forward_pass_of_sdxl_and_its_encoder_half_cost_what_is_known():
    sdxl, dtype = ARCHITECTURES["sdxl"], torch.bfloat16
    backbone, row = sdxl.backbone(META, dtype), sdxl.conditioning(META, dtype)
    z = torch.empty(1, *sdxl.latent_shape, device=META)
    whole, half = Meter(), Meter()
    with flash_attention(whole), whole:
        backbone.teacher(z, 500, row)
    with flash_attention(half), half:
        backbone.teacher.features(z, torch.zeros(1, device=META), row)
    assert whole.flops / 1e12 == pytest.approx(6.76, abs=0.01)
    assert half.flops / 1e12 == pytest.approx(2.93, abs=0.01)


def test_the_peak_of_a_plain_network_equals_a_count_by_hand():
    network = nn.Sequential(nn.Linear(256, 256, bias=False), nn.ReLU(), nn.Linear(256, 128, bias=False)).to(META)
    network.requires_grad_(False)
    x = torch.empty(32, 256, device=META)
    meter = Meter()
    meter.hold([*network.parameters(), x])
    with meter:
        out = network(x)
    weights, a, b = 4 * 256 * (256 + 128), 4 * 32 * 256, 4 * 32 * 128
    assert meter.peak_bytes == weights + a + 2 * a  # input; the first layer's output, and the activation's beside it
    assert meter.live_bytes == weights + a + b
    assert meter.flops == 2 * 32 * 256 * (256 + 128)
    del out
    assert meter.live_bytes == weights + a


@pytest.mark.slow
def test_recomputing_lowers_the_peak_and_adds_work(schedule, make_cond):
    def estimated(parts):
        backbone = Backbone(tiny_unet().to(META), schedule)
        if parts:
            backbone.enable_checkpointing(parts)
        cond = make_cond(1).map(lambda part: part.to(META))
        teacher = TeacherConfig(base="tiny", guidance_scale=1.0)
        return estimate_training(backbone, TrainConfig(batch_size=4), teacher, cond, (4, 32, 32))

    kept, some, none = estimated(()), estimated(("up_blocks",)), estimated(("down_blocks", "mid_block", "up_blocks"))
    assert kept.peak_bytes > some.peak_bytes > none.peak_bytes
    assert kept.flops < some.flops < none.flops
    assert kept.trained == some.trained == none.trained > 0


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["24", "12"])
def test_the_predicted_peak_is_the_cards(name):
    from rapm_cli.bases import BASES
    from rapm_cli.bases.plans import PLANS
    from rapm_cli.cli.console import Output
    from rapm_cli.distill.memory_plan import predicted_peak
    from rapm_cli.distill.resolve_run import settings_without_weights
    from rapm_cli.distill.synthetic import time_iteration

    device, base = torch.device("cuda"), BASES["sd15"]
    settings = settings_without_weights(base, {"precision": "bf16"}, None, device, Output(quiet=True))
    architecture = ARCHITECTURES["sd15"]
    measured = time_iteration(architecture, settings, PLANS[name], device).peak_bytes
    assert predicted_peak(architecture, settings, PLANS[name]) == pytest.approx(measured, rel=0.15)
