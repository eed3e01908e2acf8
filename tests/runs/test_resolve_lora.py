"""Which base a LoRA file means, and whether a base is the one that it was distilled from."""

import shutil

import pytest
import torch
from safetensors.torch import save_file

from rapm_cli.bases import BASES, find_base
from rapm_cli.bases.published import PUBLISHED
from rapm_cli.cli.console import Output
from rapm_cli.core.common.errors import ConfigError, InputError
from rapm_cli.formats.lora import LoraFile, save_lora
from rapm_cli.runs.resolve_lora import resolve_lora
from tests.bases.hub_server import Seen
from tests.bases.small_models import edit
from tests.messages import names, naming

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


def lora_of(path, source):
    """A LoRA that was distilled from a small base."""
    base, layer = find_base(str(source), Output(quiet=True)), "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    width = base.architecture(Output(quiet=True)).unet["cross_attention_dim"]
    halves = {f"{layer}.lora_A.weight": torch.ones(1, width), f"{layer}.lora_B.weight": torch.ones(16, 1)}
    recipe = {"base": base.name, "base_identity": base.identity(Output(quiet=True)), "sampler": {"steps": 4}}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_lora(path, LoraFile(halves, 1, 1.0, recipe))
    return str(path)


def test_equal_weights_under_another_name_are_the_same_base(originals, tmp_path, home):
    copy = str(shutil.copytree(originals["sdxl"], tmp_path / "another-name"))
    lora, seen = lora_of(home / "data" / "runs" / "one" / "lora.safetensors", originals["sdxl"]), Seen()
    assert str(resolve_lora(copy, lora, seen).lora_path) == lora
    assert str(resolve_lora(copy, None, seen).lora_path) == lora  # the newest run's
    assert seen.said == []


def test_other_weights_are_warned_of_and_a_lora_that_cannot_fit_is_refused(originals, copy_of, tmp_path):
    finetune, lora = copy_of("sdxl"), lora_of(tmp_path / "x.safetensors", originals["sdxl"])
    edit(finetune, "scheduler/scheduler_config.json", beta_end=0.013)
    for name in ("small-sdxl", "finetune"):
        finetune, seen = finetune.rename(tmp_path / name), Seen()
        assert resolve_lora(str(finetune), lora, seen).base.name == name
        assert len(seen.said) == 1
        assert names(seen.said[0], lora, name)
    for other in ("demo", str(originals["sd15"]), "sdxl"):  # nothing is asked of the hub
        with pytest.raises(InputError, match=naming(lora, "small-sdxl", 32)):
            resolve_lora(other, lora, Seen())


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_base_by_its_name_on_the_hub_is_that_base(name, tmp_path):
    known = PUBLISHED[name]
    assert find_base(f"{known.repo}@{known.revision}", Output(quiet=True)) is BASES[name]
    layer = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    width = BASES[name].architecture(Output(quiet=True)).unet["cross_attention_dim"]
    halves = {f"{layer}.lora_A.weight": torch.ones(1, width), f"{layer}.lora_B.weight": torch.ones(16, 1)}
    recipe = {"base": known.repo, "base_identity": f"{known.repo}@{known.revision}", "sampler": {"steps": 4}}
    save_lora(tmp_path / "x.safetensors", LoraFile(halves, 1, 1.0, recipe))
    for base in (None, name, f"{known.repo}@{known.revision}"):
        seen = Seen()
        assert resolve_lora(base, str(tmp_path / "x.safetensors"), seen).base is BASES[name]
        assert seen.said == []
