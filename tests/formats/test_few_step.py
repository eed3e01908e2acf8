"""Published few-step LoRAs, by the names under which they are published."""

from pathlib import Path

import pytest

from rapm_cli.core.method.samplers import SAMPLERS
from rapm_cli.formats.few_step import KINDS, recognise

HUB = Path("hub/models--latent-consistency--lcm-lora-sdxl/snapshots/a1/pytorch_lora_weights.safetensors")


@pytest.mark.parametrize(
    ("name", "method", "sampler", "steps"),
    [
        ("sdxl_lightning_8step_lora", "Lightning", "euler", 8),
        ("sdxl_lightning_2step_lora", "Lightning", "euler", 2),
        ("Hyper-SDXL-4steps-lora", "Hyper-SD", "ddim", 4),
        ("Hyper-SD15-8steps-lora", "Hyper-SD", "ddim", 8),
        ("dmd2_sdxl_4step_lora_fp16", "DMD2", "dmd2", 4),
        ("pcm_sdxl_normalcfg_2step_converted", "PCM", "ddim", 2),
        ("sdxl_LCM_lora_rank1", "LCM", "lcm", 4),
        ("lcm-lora-sdxl", "LCM", "lcm", 4),
        ("TCD-SDXL-LoRA", "TCD", "tcd", 4),
    ],
)
def test_a_published_name_tells_method_sampler_and_steps(name, method, sampler, steps):
    kind = recognise(Path(f"{name}.safetensors"), {})
    assert (kind.method, kind.sampler, kind.steps) == (method, sampler, steps)


def test_the_repository_and_the_header_tell_too():
    assert recognise(HUB, {}).method == "LCM"
    assert recognise(Path("mine.safetensors"), {"ss_output_name": "my_lightning_4step"}).method == "Lightning"


@pytest.mark.parametrize("name", ["style", "hyperrealism", "enlightening", "lcmore", "step_by_step"])
def test_other_names_tell_nothing(name):
    assert recognise(Path(f"{name}.safetensors"), {}) is None


def test_every_kind_has_a_sampler():
    assert {sampler for *_, sampler in KINDS} <= set(SAMPLERS.names())
