"""Which base a LoRA file means that does not say it."""

import pytest
import torch
from safetensors.torch import save_file

from rapm_cli.cli.console import Output
from rapm_cli.core.common.errors import ConfigError
from rapm_cli.runs.resolve_lora import resolve_lora
from tests.messages import naming

READS_TEXT = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"


def foreign(path, width, layer=READS_TEXT):
    """A LoRA of another program for text states of that width."""
    halves = {f"{layer}.lora_down.weight": torch.ones(2, width), f"{layer}.lora_up.weight": torch.ones(8, 2)}
    save_file(halves, path, {"format": "pt"})
    return str(path)


@pytest.mark.parametrize(("width", "base"), [(2048, "sdxl"), (768, "sd15")])
def test_the_width_of_the_text_states_tells_the_base(width, base, tmp_path):
    chosen = resolve_lora(None, foreign(tmp_path / "lora.safetensors", width), Output(quiet=True))
    assert (chosen.base.name, chosen.steps) == (base, 4)
    assert chosen.teacher == {"num_slots": 4, "fine_steps": 10, "guidance_scale": 7.5}


def test_a_named_base_goes_before_the_width(tmp_path):
    assert resolve_lora("demo", foreign(tmp_path / "x.safetensors", 2048), Output(quiet=True)).base.name == "demo"


@pytest.mark.parametrize(("width", "layer"), [(1024, READS_TEXT), (768, "lora_unet_conv_in")])
def test_where_nothing_tells_the_base_has_to_be_named(width, layer, tmp_path):
    with pytest.raises(ConfigError, match=naming("lora.safetensors")):
        resolve_lora(None, foreign(tmp_path / "lora.safetensors", width, layer), Output(quiet=True))
