"""The model card of an export: a README.md that the Hugging Face hub understands, and people too."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rapm_cli.formats.modelspec import method_of, title, usage_hint

PAPER = "https://arxiv.org/abs/2503.20744"
NO_SETTINGS = ("scheduler", "steps", "timesteps", "guidance_scale")  # of a scheduler
PIPELINES = {True: "StableDiffusionXLPipeline", False: "StableDiffusionPipeline"}


@dataclass(frozen=True)
class Line:
    """A file of the export.

    Args:
        name: Of the file.
        readers: Programs that read it.
    """

    name: str
    readers: Sequence[str]


@dataclass(frozen=True)
class Subject:
    """What a card is about.

    Args:
        recipe: How it was made and is sampled.
        base: The base's name, or its repository on the hub.
        is_on_hub: Whether the base's name is such a repository.
        is_xl: Whether the base is an SDXL.
        is_lora: Whether it is a LoRA; else the LoRA is merged into the base.
        files: Of the export.
        prompt: That suits the base.
        checkpoint: The base as ComfyUI's workflow names it.
        picture: Of the export's folder, if there is one.
        metrics: Rows of a table with titles first; empty where nothing was measured.
        provenance: Where and how the metrics were measured.
    """

    recipe: Mapping[str, Any]
    base: str
    is_on_hub: bool
    is_xl: bool
    is_lora: bool
    files: Sequence[Line]
    prompt: str
    checkpoint: str
    picture: str | None = None
    metrics: Sequence[Sequence[str]] = ()
    provenance: str = ""


def card(subject: Subject) -> str:
    """The text of the card."""
    parts = [_front_matter(subject), f"# {_plain(title(subject.recipe))}", _lead(subject)]
    if subject.picture:
        parts.append(f"![Teacher, bare base and student]({subject.picture})")
    parts += ["## Files", _table(["file", "read by"], _file_rows(subject)), "## Use", _usage(subject)]
    if subject.metrics:
        parts += ["## Measured", _table(subject.metrics[0], subject.metrics[1:]), subject.provenance]
    text = json.dumps(subject.recipe, indent=2, sort_keys=True)
    parts += ["## Recipe", f"```json\n{text}\n```"]
    return "\n\n".join(parts) + "\n"


def _front_matter(subject: Subject) -> str:
    lines = ["library_name: diffusers", "pipeline_tag: text-to-image"]
    if subject.is_on_hub:
        relation = "adapter" if subject.is_lora else "merge"
        lines += [f"base_model: {subject.base}", f"base_model_relation: {relation}"]
    tags = ["text-to-image", "stable-diffusion-xl" if subject.is_xl else "stable-diffusion", "few-step", "distillation"]
    tags += ["lora"] if subject.is_lora else []
    return "\n".join(["---", *lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _lead(subject: Subject) -> str:
    kind = "A LoRA that makes" if subject.is_lora else "The weights of"
    end = "draw" if subject.is_lora else "with a LoRA merged in that makes it draw"
    method, hint = method_of(subject.recipe), usage_hint(subject.recipe)
    source = f" ([paper]({PAPER}))" if method == "RAPM" else ""
    made = f"distilled by {_plain(method)}{source} with `rapm`, without real images" if method else "exported by `rapm`"
    advice = f"**Sample it with {_plain(hint)}.** Other samplers and guidance spoil its pictures." if hint else ""
    return f"{kind} `{_plain(subject.base)}` {end} in few steps, {made}.\n\n{advice}".rstrip()


def _file_rows(subject: Subject) -> list[list[str]]:
    return [[f"`{line.name}`", ", ".join(line.readers)] for line in subject.files]


def _usage(subject: Subject) -> str:
    sampler, file = subject.recipe.get("sampler", {}), subject.files[0].name
    steps, scheduler = sampler.get("steps", 4), f"{sampler.get('scheduler', 'DDIM')}Scheduler"
    settings = "".join(f", {name}={value!r}" for name, value in sampler.items() if name not in NO_SETTINGS)
    pipeline, is_file = PIPELINES[subject.is_xl], "/" not in file and not subject.is_lora
    place = "." if not subject.is_lora else subject.base if subject.is_on_hub else f"path/to/{_plain(subject.base)}"
    load = f"from_single_file({file!r}" if is_file else f"from_pretrained({place!r}"
    lines = [
        "import torch",
        f"from diffusers import {scheduler}, {pipeline}",
        "",
        f'pipe = {pipeline}.{load}, dtype=torch.float16).to("cuda")',
        f"pipe.scheduler = {scheduler}.from_config(pipe.scheduler.config{settings})",
        *([f'pipe.load_lora_weights(".", weight_name={file!r})'] if subject.is_lora else []),
        f"prompt = {subject.prompt!r}",
        f"pipe(prompt, num_inference_steps={steps}, guidance_scale=1.0).images[0]",
    ]
    code, name = "```python\n" + "\n".join(lines) + "\n```", "LCM" if scheduler.startswith("LCM") else "DDIM"
    if not any("ComfyUI" in line.readers for line in subject.files):
        return code
    loads = f"; it loads the base from `{_plain(subject.checkpoint)}`" if subject.is_lora else ""
    return (
        f"{code}\n\nComfyUI: open the workflow that lies beside it{loads}. "
        f"A1111: {steps} steps, CFG scale 1, sampler {name}, schedule type SGM Uniform."
    )


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _plain(text: str) -> str:
    """Text that no markup of a card can come from."""
    return "".join(letter for letter in text if letter.isprintable() and letter not in "`<>[]*_|\\") or "?"
