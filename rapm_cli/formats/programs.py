"""Which programs read a LoRA, by its keys and header alone, and why one would not; torch is not needed.

Source: the loaders of diffusers 0.42, ComfyUI 17358c8, A1111 1.10 and sd-scripts 48d368f.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

OTHER_KINDS = {  # pieces of keys that no plain LoRA has, or none that diffusers loads
    "diffusion_model.": "one under ComfyUI's own keys, which diffusers does not load",
    "dora_scale": "a DoRA", "lora_magnitude_vector": "a DoRA", "hada_": "a LoHa", "lokr_": "a LoKr",
    "lora_mid": "a LoCon with a core tensor", "oft_": "an OFT", ".diff": "one with whole weights",
    ".bias": "one with biases", "lora_embedding_": "one with embeddings", "bundle_emb": "one with embeddings",
}  # fmt: skip
PROGRAMS = ("diffusers", "ComfyUI", "A1111", "sd-scripts")
KOHYA = "rapm export --format kohya writes one that is"
PIPELINE = f"keys that begin with unet. are not read there; {KOHYA}"
BARE = f"such keys are not read there; {KOHYA}"
SGM = re.compile(r"lora_unet_(input|middle|output)_block|lora_unet_(time_embed|label_emb|out)_\d")


@dataclass(frozen=True, eq=False)
class Form:
    """A way to name a LoRA's tensors.

    Args:
        title: In words.
        refusals: Programs that do not read it, and why.
    """

    title: str
    refusals: Mapping[str, str]


PEFT = Form("peft keys of a diffusers pipeline", dict.fromkeys(PROGRAMS[1:], PIPELINE))
PEFT_BARE = Form("peft keys of a UNet", dict.fromkeys(PROGRAMS[1:], BARE))
DIFFUSERS = Form("old keys of diffusers", dict.fromkeys(PROGRAMS[1:], PIPELINE))
KOHYA_SGM = Form("kohya, by the blocks of SDXL's original code", {})
KOHYA_BLOCKS = Form("kohya, by the blocks of diffusers", {})
COMFY = Form(
    "ComfyUI's own keys",
    {
        name: f"keys that begin with diffusion_model. are not read there; {KOHYA}"
        for name in PROGRAMS
        if name != "ComfyUI"
    },
)
MIXED = Form("a mixture", dict.fromkeys(PROGRAMS[1:], f"some of its keys are not read there; {KOHYA}"))


@dataclass(frozen=True)
class Verdict:
    """What a program makes of a file; it reads it where there is no reason not to."""

    program: str
    reason: str


def form_of(names: Collection[str]) -> Form | None:
    """How a LoRA's tensors are named; None where nothing of it is a LoRA of a UNet."""
    forms = {form for name in names if (form := _form(name))}
    return forms.pop() if len(forms) == 1 else MIXED if forms else None


def verdicts(names: Collection[str], metadata: Mapping[str, str], *, is_xl: bool) -> list[Verdict]:
    """What each program makes of a LoRA.

    Args:
        names: Of its tensors.
        metadata: Of its header.
        is_xl: Whether it is one of an SDXL.
    """
    form = form_of(names)
    if form is None:
        return [Verdict(program, "it holds no LoRA of a UNet") for program in PROGRAMS]
    refusals = dict(form.refusals)
    if form is KOHYA_BLOCKS and is_xl:
        refusals["sd-scripts"] = f"SDXL's layers have the original code's names there; {KOHYA}"
    if is_xl and "A1111" not in refusals and not metadata.get("ss_base_model_version", "sdxl_").startswith("sdxl_"):
        refusals["A1111"] = "its header names another base, and A1111 hides it beside an SDXL"
    if is_xl and "A1111" not in refusals and metadata and "ss_base_model_version" not in metadata:
        refusals["A1111"] = f"its header names no base, and A1111 hides it beside an SDXL; {KOHYA}"
    return [Verdict(program, refusals.get(program, "")) for program in PROGRAMS]


def _form(name: str) -> Form | None:
    if name.startswith("lora_unet_"):
        return KOHYA_SGM if SGM.match(name) else KOHYA_BLOCKS
    if name.startswith("diffusion_model."):
        return COMFY
    if ".lora_A." in name or ".lora_B." in name:
        return PEFT if name.startswith("unet.") else PEFT_BARE
    if ".lora.down." in name or ".lora.up." in name or "_lora." in name:
        return DIFFUSERS
    return None
