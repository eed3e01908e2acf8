"""Small networks with random weights in the layout of the published ones."""

import json

import torch

from rapm_cli.cli.console import Output
from rapm_cli.extractors import Opening
from tests.bases.small_models import END, START, write_tokenizer
from tests.metrics.peers import peer

CPU = torch.device("cpu")
SIDE = 32


def opening(**named):
    return Opening(CPU, Output(quiet=True), **named)


def write_inception(path):
    """Of Inception's own size, which is fixed; its weights are as large as keeps a signal alive through 94 layers."""

    class Random(peer("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3):
        def load_state_dict(self, state):
            assert state == {}

    torch.save({}, path)
    torch.manual_seed(0)
    state = Random("random", ["2048"], feature_extractor_weights_path=path).state_dict()
    for name, value in state.items():
        if name.endswith("conv.weight"):
            torch.nn.init.kaiming_normal_(value)
    torch.save(state, path)
    return path


def write_clip(folder, form="safetensors"):
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    write_tokenizer(folder, END)
    words = json.loads((folder / "vocab.json").read_text())
    config = CLIPConfig(
        text_config={**small, "vocab_size": len(words), "eos_token_id": words[END], "bos_token_id": words[START]},
        vision_config={**small, "image_size": SIDE, "patch_size": 8},
        projection_dim=12,
    )
    model = CLIPModel(config)
    model.save_pretrained(folder)
    if form == "pickle":
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(
        folder
    )
    return folder


def write_dino(folder):
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    Dinov2Model(
        Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=56)
    ).save_pretrained(folder)
    BitImageProcessorPil().save_pretrained(folder)
    return folder
