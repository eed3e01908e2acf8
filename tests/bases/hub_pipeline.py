"""A repository with all that SDXL's has, each file some bytes."""

import json

REPO, BIG = "org/xl", "unet/diffusion_pytorch_model.fp16.safetensors"
TOKENIZER = ("merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json")
NETWORKS = {
    **dict.fromkeys(("text_encoder", "text_encoder_2"), "model"),
    **dict.fromkeys(("unet", "vae"), "diffusion_pytorch_model"),
}
NEEDED = [
    *("model_index.json", "scheduler/scheduler_config.json"),
    *(f"{part}/{name}" for part in ("tokenizer", "tokenizer_2") for name in TOKENIZER),
    *(f"{part}/config.json" for part in NETWORKS),
    *(f"{part}/{stem}.fp16.safetensors" for part, stem in NETWORKS.items()),
]
# What else lies in the repositories of SDXL 1.0 and of SD 1.5.
BESIDE = [
    *(".gitattributes", "01.png", "LICENSE.md", "README.md", "sd_xl_base_1.0.safetensors", "pipeline.py"),
    *(f"{part}/{stem}.safetensors" for part, stem in NETWORKS.items()),
    *(f"{part}/{name}" for part in NETWORKS for name in ("model.onnx", "openvino_model.bin", "flax_model.msgpack")),
    *("unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.non_ema.safetensors", "unet/my_unet.py"),
    *("vae_1_0/config.json", "vae_1_0/diffusion_pytorch_model.fp16.safetensors", "vae_decoder/config.json"),
    *("safety_checker/config.json", "safety_checker/model.fp16.safetensors", "text_encoder/pytorch_model.fp16.bin"),
    "feature_extractor/preprocessor_config.json",
]


def a_pipeline(names=(*NEEDED, *BESIDE), **index) -> dict[str, bytes]:
    """Files of those names, the weights of some kilobytes, with an index of SDXL's parts."""
    parts = {part: ["diffusers", "X"] for part in ("scheduler", "tokenizer", "tokenizer_2", *NETWORKS)}
    files = {name: name.encode() * (4000 if "safetensors" in name else 1) for name in names}
    about = {"_class_name": "StableDiffusionXLPipeline", "image_encoder": [None, None], **parts, **index}
    return files | {"model_index.json": json.dumps(about).encode()}
