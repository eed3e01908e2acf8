"""Tell from a LoRA's keys and header which programs read it, and why another does not. This needs no torch.

Source: the loaders of diffusers 0.42, A1111 1.10 and sd-scripts 48d368f; for ComfyUI see `comfyui_keys.py`.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from rapm_cli.formats.comfyui_keys import layers_found

OTHER_KINDS = {  # parts of keys that a plain LoRA which diffusers loads does not have
    "diffusion_model.": "one under ComfyUI's own keys, which diffusers does not load",
    "dora_scale": "a DoRA", "lora_magnitude_vector": "a DoRA", "hada_": "a LoHa", "lokr_": "a LoKr",
    "lora_mid": "a LoCon with a core tensor", "oft_": "an OFT", ".diff": "one with whole weights",
    ".bias": "one with biases", "lora_embedding_": "one with embeddings", "bundle_emb": "one with embeddings",
}  # fmt: skip
PROGRAMS = ("diffusers", "ComfyUI", "A1111", "sd-scripts")
KOHYA_HINT = "rapm export --format kohya writes a file that loads there"
PREFIX_REASON = f"keys that begin with unet. are not supported; {KOHYA_HINT}"
BARE_REASON = f"peft keys without a prefix are not supported; {KOHYA_HINT}"
FOLDERS = {  # of a LoRA and of a checkpoint, by program, below the program whose verdict holds for it
    "ComfyUI": {"ComfyUI": ("models/loras", "models/checkpoints")},
    "A1111": {
        "A1111 and Forge": ("models/Lora", "models/Stable-diffusion"),
        "Fooocus (SDXL alone)": ("models/loras", "models/checkpoints"),
    },
}
UNUSUAL_SHAPES = "it knows a base by its shapes, and this one's are not those of the published SDXL or SD 1.5"
A1111_V = "it takes the file for one that predicts noise, unless a .yaml beside it says that it predicts velocities"
COMFYUI_V = "it takes an SD 1.5 for one that predicts noise, unless its node ModelSamplingDiscrete says v_prediction"
ORIGINAL_BLOCK_KEY = re.compile(r"lora_unet_(input|middle|output)_block|lora_unet_(time_embed|label_emb|out)_\d")


@dataclass(frozen=True, eq=False)
class KeyFormat:
    """A convention for the names of a LoRA's tensors.

    Args:
        title: Name for people.
        refusals: Programs that do not read such names, with the reason.
    """

    title: str
    refusals: Mapping[str, str]


PEFT = KeyFormat("peft keys of a diffusers pipeline", dict.fromkeys(PROGRAMS[1:], PREFIX_REASON))
PEFT_BARE = KeyFormat("peft keys of a UNet", dict.fromkeys(PROGRAMS[1:], BARE_REASON))
DIFFUSERS = KeyFormat("old keys of diffusers", dict.fromkeys(PROGRAMS[1:], PREFIX_REASON))
KOHYA_SGM = KeyFormat("kohya, by the blocks of SDXL's original code", {})
KOHYA_BLOCKS = KeyFormat("kohya, by the blocks of diffusers", {})
COMFY = KeyFormat(
    "ComfyUI's own keys",
    {
        name: f"keys that begin with diffusion_model. are not supported; {KOHYA_HINT}"
        for name in PROGRAMS
        if name != "ComfyUI"
    },
)
LYCORIS = KeyFormat(
    "LyCORIS, by the blocks of diffusers",
    {name: f"keys that begin with lycoris_ are not supported; {KOHYA_HINT}" for name in PROGRAMS if name != "ComfyUI"},
)
MIXED = KeyFormat("a mixture", dict.fromkeys(PROGRAMS[1:], f"some of its keys are not supported; {KOHYA_HINT}"))


@dataclass(frozen=True)
class Verdict:
    """Whether a program reads a file.

    Args:
        program: Name of the program.
        reason: Reason why the program does not read the file; empty where it does.
    """

    program: str
    reason: str


def key_format(names: Collection[str]) -> KeyFormat | None:
    """Return the naming convention of a LoRA's tensors; None where no name is that of a UNet's LoRA."""
    forms = {form for name in names if (form := _key_format_of(name))}
    return forms.pop() if len(forms) == 1 else MIXED if forms else None


def verdicts(
    names: Collection[str], metadata: Mapping[str, str], *, is_xl: bool, has_usual_shapes: bool = True
) -> list[Verdict]:
    """Return one verdict for each program.

    Args:
        names: Names of the LoRA's tensors.
        metadata: Metadata of the LoRA's header.
        is_xl: True for a LoRA of an SDXL.
        has_usual_shapes: True where the base has the shapes of the published SDXL or SD 1.5. Other programs than
            diffusers cannot open another base.
    """
    form = key_format(names)
    if form is None:
        return [Verdict(program, "the file holds no LoRA of a UNet") for program in PROGRAMS]
    if not has_usual_shapes:
        refusals = {**form.refusals, **dict.fromkeys(PROGRAMS[1:], UNUSUAL_SHAPES)}
        return [Verdict(program, refusals.get(program, "")) for program in PROGRAMS]
    refusals = {**form.refusals, "ComfyUI": _comfyui_reason(names)}
    if form is KOHYA_BLOCKS and is_xl:
        refusals["sd-scripts"] = f"keys with diffusers' names of SDXL's layers are not supported; {KOHYA_HINT}"
    if is_xl and "A1111" not in refusals and not metadata.get("ss_base_model_version", "sdxl_").startswith("sdxl_"):
        refusals["A1111"] = "the header names another base, so A1111 hides the LoRA while an SDXL is loaded"
    if is_xl and "A1111" not in refusals and metadata and "ss_base_model_version" not in metadata:
        refusals["A1111"] = f"the header names no base, so A1111 hides the LoRA while an SDXL is loaded; {KOHYA_HINT}"
    return [Verdict(program, refusals.get(program, "")) for program in PROGRAMS]


def folders(readers: Collection[str], *, is_lora: bool) -> dict[str, str]:
    """Return the folder in which each program looks for a file, by the program's name.

    Args:
        readers: Programs that read the file.
        is_lora: True for a LoRA; False for a checkpoint.
    """
    known = (found for program, found in FOLDERS.items() if program in readers)
    return {program: lora if is_lora else whole for found in known for program, (lora, whole) in found.items()}


def _comfyui_reason(names: Collection[str]) -> str:
    found, count = layers_found(names)
    if found == count:
        return ""
    return f"it finds {found or 'none'} of {count} layers and ignores the others; {KOHYA_HINT}"


def checkpoint_verdicts(has_usual_shapes: bool, *, is_xl: bool, is_v: bool, has_workflow: bool) -> list[Verdict]:
    """Return one verdict for each program on a checkpoint in the original layout.

    Args:
        has_usual_shapes: True where the UNet has the shapes of the published SDXL or SD 1.5, by which programs know it.
        is_xl: True for an SDXL.
        is_v: True for a network that predicts velocities.
        has_workflow: True where a ComfyUI workflow that says so lies beside the checkpoint.
    """
    if not has_usual_shapes:
        return [Verdict(program, UNUSUAL_SHAPES if program in PROGRAMS[1:] else "") for program in PROGRAMS]
    refusals = {"A1111": A1111_V} if is_v else {}
    if is_v and not is_xl and not has_workflow:
        refusals["ComfyUI"] = COMFYUI_V
    return [Verdict(program, refusals.get(program, "")) for program in PROGRAMS]


def _key_format_of(name: str) -> KeyFormat | None:
    if name.startswith("lora_unet_"):
        return KOHYA_SGM if ORIGINAL_BLOCK_KEY.match(name) else KOHYA_BLOCKS
    if name.startswith("lycoris_"):
        return LYCORIS
    if name.startswith("diffusion_model."):
        return COMFY
    if ".lora_A." in name or ".lora_B." in name:
        return PEFT if name.startswith("unet.") else PEFT_BARE
    if ".lora.down." in name or ".lora.up." in name or "_lora." in name:
        return DIFFUSERS
    return None
