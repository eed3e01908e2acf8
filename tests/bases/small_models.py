"""Small random Stable Diffusion XL and 1.5, laid out on a disk as the published ones are."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from rapm_cli.bases.demo.base import WEIGHTS

SIDE = 64  # of SDXL's images; SD 1.5 halves its latents once more and has twice the side
BPE = json.loads((WEIGHTS / "base" / "tokenizer" / "tokenizer.json").read_text())["model"]
START, END = "<|startoftext|>", "<|endoftext|>"
XL_WIDTHS = (12, 20)  # of the encoders: unequal, so that no loader can mistake one for the other
BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
EULER = {"_class_name": "EulerDiscreteScheduler", **BETAS, "prediction_type": "epsilon", "timestep_spacing": "leading"}
PNDM = {"_class_name": "PNDMScheduler", **BETAS}


def write_sdxl(folder: Path, seed: int = 0) -> Path:
    """A Stable Diffusion XL in full precision, one file for each part, as its repository is laid out."""
    generator = torch.Generator().manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=SIDE // 8,
        block_out_channels=(8, 16, 16),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=(1, 2, 2),
        transformer_layers_per_block=(1, 1, 2),
        cross_attention_dim=sum(XL_WIDTHS),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=XL_WIDTHS[1] + 6 * 4,
    )
    _write(unet, folder / "unet", generator)
    _write(_vae(scaling_factor=0.13025, force_upcast=True), folder / "vae", generator)
    _write_encoder(CLIPTextModel, XL_WIDTHS[0], "quick_gelu", folder / "text_encoder", generator)
    _write_encoder(CLIPTextModelWithProjection, XL_WIDTHS[1], "gelu", folder / "text_encoder_2", generator)
    write_tokenizer(folder / "tokenizer", END)
    write_tokenizer(folder / "tokenizer_2", "!")
    _write_json(folder / "scheduler" / "scheduler_config.json", EULER)
    index = {
        "_class_name": "StableDiffusionXLPipeline",
        "_diffusers_version": "0.19.0.dev0",
        "force_zeros_for_empty_prompt": True,
        "add_watermarker": None,
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    _write_json(folder / "model_index.json", index)
    return folder


def write_sd15(folder: Path, seed: int = 0) -> Path:
    """A Stable Diffusion 1.5 in full precision, without its safety checker."""
    generator = torch.Generator().manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=2 * SIDE // 8,
        block_out_channels=(8, 16, 16, 16),
        layers_per_block=2,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=16,
    )
    _write(unet, folder / "unet", generator)
    _write(_vae(), folder / "vae", generator)
    edit(folder, "vae/config.json", force_upcast=None, scaling_factor=None)  # the published one has neither
    _write_encoder(CLIPTextModel, 16, "quick_gelu", folder / "text_encoder", generator)
    write_tokenizer(folder / "tokenizer", END)
    _write_json(folder / "scheduler" / "scheduler_config.json", PNDM)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.6.0",
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    _write_json(folder / "model_index.json", index)
    return folder


def edit(folder: Path, name: str, **settings: object) -> None:
    """Change settings in a configuration; None takes one out."""
    path = folder / name
    changed = json.loads(path.read_text()) | settings
    _write_json(path, {key: value for key, value in changed.items() if settings.get(key, 0) is not None})


def add_fp16(folder: Path, *, alone: bool) -> None:
    """Write every part in half precision too, under that variant's names; `alone` takes the full ones away."""
    for path in weight_files(folder):
        half = path.with_suffix(".fp16.safetensors")
        save_file({name: value.half() for name, value in load_file(path).items()}, half, {"format": "pt"})
        if alone:
            path.unlink()


def shard(folder: Path, part: str, count: int = 2) -> None:
    """Divide a part's file into `count` with an index, as large parts are published."""
    (path,) = (folder / part).glob("*.safetensors")
    stem, *variant = path.stem.split(".")
    state, where = load_file(path), {}
    for k in range(count):
        name = ".".join([f"{stem}-{k + 1:05d}-of-{count:05d}", *variant, "safetensors"])
        piece = {key: state[key] for key in list(state)[k::count]}
        save_file(piece, path.with_name(name), {"format": "pt"})
        where |= dict.fromkeys(piece, name)
    index = {"metadata": {"total_size": sum(value.nbytes for value in state.values())}, "weight_map": where}
    _write_json(path.with_name(".".join([stem, "safetensors.index", *variant, "json"])), index)
    path.unlink()


def weight_files(folder: Path) -> list[Path]:
    """Every file of weights below a folder."""
    return sorted(folder.glob("*/*.safetensors"))


def _vae(**settings: object) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        norm_num_groups=2,
        sample_size=SIDE,
        **settings,
    )


def _write(module, folder: Path, generator: torch.Generator) -> None:
    enliven(module, generator)
    module.save_pretrained(folder)


def _write_encoder(kind, width: int, activation: str, folder: Path, generator: torch.Generator) -> None:
    """An encoder as the published ones are: wrong token ids, and names as before transformers 5."""
    config = CLIPTextConfig(
        architectures=[kind.__name__],
        vocab_size=len(BPE["vocab"]),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=77,
        hidden_act=activation,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
        dtype="float16",
    )
    module = kind(config)
    enliven(module, generator)
    config.save_pretrained(folder)
    state = {name if "text_" in name else f"text_model.{name}": value for name, value in module.state_dict().items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def write_tokenizer(folder: Path, pad_token: str) -> None:
    """The demo base's vocabulary in the files of CLIP's own tokenizer."""
    merges = [" ".join(pair) for pair in BPE["merges"]]
    _write_json(folder / "vocab.json", BPE["vocab"])
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad_token}
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(
        folder / "tokenizer_config.json",
        special | {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True},
    )


def enliven(module, generator: torch.Generator) -> None:
    """Weights of a size at which every one of them shows in the images."""
    for name, value in module.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        if value.dim() > 1:
            value.data = noise / value[0].numel() ** 0.5
        else:
            value.data = 0.2 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)


def _write_json(path: Path, record: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2), encoding="utf-8")
