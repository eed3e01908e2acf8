"""LoRAs as peft itself saves them: the scale stands in a file beside the weights."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from rapm_cli.core.common.errors import InputError
from rapm_cli.formats.describe import describe_lora
from rapm_cli.formats.fuse import lora_update
from rapm_cli.formats.header import read_header
from rapm_cli.formats.lora import load_lora
from tests.messages import naming


def network():
    attention = nn.ModuleDict({"to_q": nn.Linear(6, 5), "to_k": nn.Linear(6, 5)})
    return nn.ModuleDict({"mid_block": nn.ModuleDict({"attn1": attention})})


def save(folder, **settings):
    """Save a LoRA with peft, and return the update of each layer as peft computes it."""
    made = get_peft_model(network(), LoraConfig(r=2, target_modules=["to_q", "to_k"], **settings))
    layers = {name: layer for name, layer in made.named_modules() if isinstance(layer, LoraLayer)}
    for layer in layers.values():
        nn.init.normal_(layer.lora_B["default"].weight)
    made.save_pretrained(folder)
    return {
        name.removeprefix("base_model.model."): layer.get_delta_weight("default").detach()
        for name, layer in layers.items()
    }


@pytest.mark.parametrize(
    "settings",
    [
        {"lora_alpha": 8},
        {"lora_alpha": 8, "use_rslora": True},
        {"lora_alpha": 8, "rank_pattern": {"to_k": 3}, "alpha_pattern": {"to_k": 1}},
    ],
)
def test_the_update_is_pefts(tmp_path, settings):
    wanted = save(tmp_path, **settings)
    lora = load_lora(tmp_path / "adapter_model.safetensors")
    assert lora.modules == sorted(wanted)
    for module, delta in wanted.items():
        down, up = (lora.state[f"{module}.lora_{half}.weight"] for half in "AB")
        torch.testing.assert_close(lora_update(down, up, lora.alpha / lora.rank), delta)


def test_inspect_says_the_alpha(tmp_path):
    save(tmp_path, lora_alpha=8)
    path = tmp_path / "adapter_model.safetensors"
    facts = describe_lora(path, read_header(path))
    assert (facts["rank"], facts["alpha"], facts["scale"]) == (2, 8.0, 4.0)


def test_what_cannot_be_read_is_refused_by_name(tmp_path):
    save(tmp_path / "dora", lora_alpha=8, use_dora=True)
    with pytest.raises(InputError, match=naming("DoRA")):
        load_lora(tmp_path / "dora" / "adapter_model.safetensors")
    save(tmp_path / "bad", lora_alpha=8)
    (tmp_path / "bad" / "adapter_config.json").write_bytes(b"\xff{")
    with pytest.raises(InputError, match=naming("adapter_config.json")):
        load_lora(tmp_path / "bad" / "adapter_model.safetensors")
