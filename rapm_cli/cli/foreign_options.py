"""Options of other programs that people type: those that mean an option of rapm, and answers to the others."""

from collections.abc import Collection

SAME = {  # names of options, without dashes, and rapm's option with that meaning; only where a command has that one
    "lr": "learning-rate",
    "cfg": "guidance",
    "cfg-scale": "guidance",
    "guidance-scale": "guidance",
    "num-inference-steps": "steps",
    "resolution": "size",
    "sampling-steps": "steps",
    "max-train-steps": "iterations",
    "train-batch-size": "batch-size",
    "lr-warmup-steps": "warmup",
    "checkpointing-steps": "checkpoint-every",
    "network-dim": "rank",
    "network-alpha": "alpha",
    "mixed-precision": "precision",
    "pretrained-model-name-or-path": "base",
    "model": "base",
    "m": "base",
    "n": "num-images",
    "count": "num-images",
    "batch-count": "num-images",
    "num-images-per-prompt": "num-images",
    "output-dir": "output",
    "outdir": "output",
    "o": "output",
    "s": "seed",
    "scheduler": "sampler",
    "sampler-name": "sampler",
    "sampling-method": "sampler",
    "lora-scale": "lora-weight",
    "lora-strength": "lora-weight",
    "network-mul": "lora-weight",
}
_GUIDANCE = "cfg cfg-scale guidance guidance-scale guidance-rescale true-cfg-scale"
_SIZE = "width height w W H aspect-ratio ar"
_SAMPLER = "schedule schedule-type eta karras"
_IMAGE = "image init-image init-img i strength denoise denoising-strength mask inpaint controlnet control-net"
_ANSWERS = {  # names with the same answer: what is true of rapm, and what to type
    "negative-prompt negative n-prompt neg": (
        "a few-step LoRA is sampled without guidance, and only guidance uses a negative prompt",
        "write what you want into the prompt",
    ),
    _GUIDANCE: (
        "a few-step LoRA is sampled without guidance: its weights hold that of its teacher",
        "leave it out, or distil with rapm distill --guidance",
    ),
    _SIZE: (
        "width and height are one option",
        "give --size WIDTHxHEIGHT, such as 832x1216",
    ),
    _SAMPLER: (
        "a few-step LoRA works only with the sampler and timesteps that it was distilled for, and rapm uses those",
        "leave it out; rapm generate --sampler chooses among those of few-step methods",
    ),
    "clip-skip": ("text encoders are read at the layer that the base was trained with", "leave it out"),
    _IMAGE: (
        "rapm makes images from prompts alone",
        "leave it out, or export the LoRA for diffusers or ComfyUI",
    ),
    "vae refiner": ("VAE and text encoders come with the base", "give --base a folder or checkpoint that has them"),
    "prompt p": (
        "a prompt needs no option",
        'give it in quotes, as in rapm generate "a red cube", or a file as --prompts FILE',
    ),
    "batch b": (
        "rapm has two numbers of images",
        "give --num-images for each prompt's number, or --batch-size for the number at once",
    ),
    "random-seed randomize-seed": ("seeds are given, so that images can be made again", "give --seed 7, or 7..12"),
    "fp16 bf16 fp32 half float16 bfloat16": ("precision is one option", "give --precision fp16, bf16 or fp32"),
    "cpu gpu cuda mps gpu-id": ("the device is one option", "give --device cpu, cuda, cuda:N or mps"),
    "lowvram medvram xformers enable-xformers-memory-efficient-attention": (
        "rapm uses PyTorch's attention and needs no switch for it",
        "for less memory give rapm distill --vram 12 or 8, or a smaller --batch-size",
    ),
    "lr-scheduler": (
        "the learning rate rises for --warmup iterations, then falls along a cosine to --min-lr-ratio of itself",
        "give those two",
    ),
    "optimizer optimizer-type use-8bit-adam": ("training uses AdamW", "leave it out"),
    "epochs num-train-epochs max-train-epochs": ("training is counted in iterations", "give --iterations"),
    "dataset dataset-name train-data-dir data images": (
        "rapm trains on prompts and the base's own trajectories, without images",
        "give --prompts FILE",
    ),
    "resume-from-checkpoint": ("a run resumes from its newest good checkpoint", "give rapm distill --resume RUN"),
}
ANSWERS = {name: answer for names, answer in _ANSWERS.items() for name in names.split()}


def own_name(name: str, known: Collection[str]) -> str:
    """Return the name of rapm's option that a typed name means; the name itself where there is none.

    Args:
        name: Name without dashes in front. Underscores count as dashes.
        known: Names of the command's options.
    """
    dashed = name.replace("_", "-")
    same = SAME.get(dashed, dashed)
    return next((one for one in (name, dashed, same) if one in known), name)


def answer(name: str) -> tuple[str, str] | None:
    """Return why rapm has no option of this name, and what to type; None where nothing is known.

    Args:
        name: Name without dashes in front. Underscores count as dashes.
    """
    return ANSWERS.get(name.replace("_", "-"))
