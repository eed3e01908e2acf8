"""Files that are no plain LoRA of a UNet are refused by name."""

import json

import pytest
import torch
from safetensors.torch import save_file

from rapm_cli.core.common.errors import InputError
from rapm_cli.formats.lora import load_lora
from tests.formats.lora_forms import ALPHA, kohya, make_update, write

LAYER = "unet.mid_block.resnets.0.conv1"
HALVES = {f"{LAYER}.lora_A.weight": torch.ones(2, 16, 3, 3), f"{LAYER}.lora_B.weight": torch.ones(16, 2, 1, 1)}
SHORT_NAME = LAYER.removeprefix("unet.")
SETTINGS = {"r": 2, "lora_alpha": 2.0}


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"lora_unet_mid_block_resnets_0_conv1.dora_scale": torch.ones(16, 1)}, "a DoRA"),
        ({f"{LAYER}.lora_magnitude_vector.weight": torch.ones(16)}, "a DoRA"),
        ({"lora_unet_mid_block_resnets_0_conv1.hada_w1_a": torch.ones(16, 2)}, "a LoHa"),
        ({"lora_unet_mid_block_resnets_0_conv1.lokr_w1": torch.ones(4, 4)}, "a LoKr"),
        ({"lora_unet_mid_block_resnets_0_conv1.lora_mid.weight": torch.ones(2, 2, 3, 3)}, "lora_mid.weight"),
        ({"lora_unet_mid_block_resnets_0_conv1.diff": torch.ones(16, 16)}, "conv1.diff"),
        ({f"{LAYER}.lora_B.bias": torch.ones(16)}, "lora_B.bias"),
        ({"diffusion_model.input_blocks.1.0.in_layers.2.lora_A.weight": torch.ones(2, 2)}, "diffusion_model."),
        ({f"{LAYER}.lora_x.weight": torch.ones(2, 2)}, ".lora_x.weight"),
        ({"unet.conv_in.lora_A.weight": torch.ones(2, 4, 3, 3)}, "conv_in"),
        ({"unet.conv_in.alpha": torch.tensor(1.0)}, "conv_in"),
        ({"lora_unet_conv_in.lora_down.weight": torch.ones(2, 4, 3, 3)}, "lora_unet_conv_in"),
        ({"lora_unet_input_blocks_x.lora_down.weight": torch.ones(2, 4)}, "lora_unet_input_blocks_x"),
        ({f"{LAYER}.lora_A.other.weight": torch.zeros(2, 16, 3, 3)}, "mid_block.resnets.0.conv1"),
        ({f"{LAYER}.lora_B.weight": torch.ones(16, 3, 1, 1)}, "(16, 3, 1, 1)"),
        ({f"{LAYER}.lora_B.weight": torch.ones(16, 2)}, "(16, 2)"),
        ({f"{LAYER}.lora_A.weight": torch.ones(2, 16, 3, 3, dtype=torch.int32)}, "torch.int32"),
        ({f"{LAYER}.lora_A.weight": torch.ones(0, 16, 3, 3)}, "(0, 16, 3, 3)"),
        ({f"{LAYER}.lora_A.weight": torch.full((2, 16, 3, 3), float("inf"))}, f"{LAYER}.lora_A.weight"),
        ({f"{LAYER}.alpha": torch.tensor(float("nan"))}, f"{LAYER}.alpha"),
        ({f"{LAYER}.alpha": torch.tensor(3e38), f"{LAYER}.lora_B.weight": torch.full((16, 2, 1, 1), 9.0)}, "conv1"),
        ({f"{LAYER}.alpha": torch.ones(2)}, "(2,)"),
        ({"unet.x.lora_A.weight": torch.ones(1 << 23, 1), "unet.x.lora_B.weight": torch.ones(1, 1 << 23)}, "8388608"),
        ({"unet." + 300 * "x": torch.ones(2, 2)}, "'unet.xxx"),
    ],
)  # fmt: skip
def test_files_that_are_not_plain_loras_are_refused_by_name(more, named, tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file(HALVES | more, path)
    with pytest.raises(InputError) as caught:
        load_lora(path)
    assert str(path) in caught.value.message
    assert named in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("adapter", "named"),
    [
        (SETTINGS | {"use_dora": True}, "use_dora"),
        (SETTINGS | {"lora_bias": True}, "lora_bias"),
        (SETTINGS | {"bias": "all"}, "bias"),
        (SETTINGS | {"modules_to_save": ["conv_in"]}, "modules_to_save"),
        (SETTINGS | {"init_lora_weights": "pissa"}, "init_lora_weights"),
        (SETTINGS | {"r": 3}, "rank 3 for mid_block.resnets.0.conv1"),
        (SETTINGS | {"r": None}, "rank_pattern"),
        ({"r": 2}, "lora_alpha"),
        (SETTINGS | {"alpha_pattern": [1]}, "lora_alpha"),
        (SETTINGS | {"alpha_pattern": {".*": 1}}, "'.*'"),
        (SETTINGS | {"lora_alpha": float("inf")}, "lora_alpha"),
        ([1], "lora_adapter_metadata"),
    ],
)
def test_a_scale_that_cannot_be_determined_is_refused(adapter, named, tmp_path):
    path = tmp_path / "lora.safetensors"
    settings = {f"unet.{name}": value for name, value in adapter.items()} if isinstance(adapter, dict) else adapter
    save_file(HALVES, path, {"lora_adapter_metadata": json.dumps(settings)})
    with pytest.raises(InputError) as caught:
        load_lora(path)
    assert named in caught.value.message


def test_a_scale_that_is_given_twice_is_refused(tmp_path):
    path = write(tmp_path / "lora.safetensors", make_update("sdxl"), kohya, ALPHA, SETTINGS)
    with pytest.raises(InputError, match=path.name):
        load_lora(path)
