"""The model card of an export: the README.md that the Hugging Face hub shows."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rapm_cli.formats.modelspec import loras_in_words, model_title, training_method
from rapm_cli.formats.programs import folders
from rapm_cli.formats.recipe import distilled_sizes
from rapm_cli.formats.sampling_advice import (
    fooocus_settings,
    has_zero_snr,
    scheduler_of,
    steps_of,
    usage_hint,
    webui_settings,
)

PAPER = "https://arxiv.org/abs/2503.20744"
NOT_SCHEDULER_SETTINGS = ("name", "scheduler", "steps", "timesteps", "guidance_scale")  # keys of a recipe's sampler
A1111_V = "; A1111 needs a .yaml beside the base's file that says that it predicts velocities"
PIPELINES = {True: "StableDiffusionXLPipeline", False: "StableDiffusionPipeline"}


@dataclass(frozen=True)
class CardFile:
    """A file that the card lists.

    Args:
        name: Path of the file, relative to the export's folder.
        readers: Programs that read the file.
    """

    name: str
    readers: Sequence[str]


@dataclass(frozen=True)
class CardContent:
    """Facts that a card is written from.

    Args:
        recipe: Settings of training and sampling.
        base: Name of the base, or its repository on the hub.
        is_on_hub: True where `base` is a repository on the hub.
        is_xl: True for an SDXL; False for a Stable Diffusion 1.5.
        is_lora: True for a LoRA; False for a base with the LoRA fused in.
        files: Weight files of the export.
        prompt: Example prompt that suits the base.
        checkpoint: File name of the base in the ComfyUI workflow.
        is_v: True where the network predicts velocities.
        has_usual_shapes: True where diffusers knows a single file by its shapes.
        image: File name of the contact sheet in the export's folder; None without one.
        metrics: Rows of a table, titles first; empty where nothing was measured.
        provenance: Sentence that says where and how the metrics were measured.
    """

    recipe: Mapping[str, Any]
    base: str
    is_on_hub: bool
    is_xl: bool
    is_lora: bool
    files: Sequence[CardFile]
    prompt: str
    checkpoint: str
    is_v: bool = False
    has_usual_shapes: bool = True
    image: str | None = None
    metrics: Sequence[Sequence[str]] = ()
    provenance: str = ""


def render_card(content: CardContent) -> str:
    """Return the text of the card, in Markdown."""
    parts = [_front_matter(content), f"# {_plain_text(model_title(content.recipe))}", _lead(content)]
    if content.image:
        parts.append(f"![Teacher, bare base and student]({content.image})")
    parts += ["## Files", _table(["file", "read by"], _file_rows(content)), "## Use", _usage(content)]
    if content.metrics:
        parts += ["## Measured", _table(content.metrics[0], content.metrics[1:]), _escaped(content.provenance)]
    text = json.dumps(content.recipe, indent=2, sort_keys=True).replace("`", r"\u0060").replace("<", r"\u003c")
    parts += ["## Recipe", f"```json\n{text}\n```"]
    return "\n\n".join(parts) + "\n"


def _front_matter(content: CardContent) -> str:
    lines = ["library_name: diffusers", "pipeline_tag: text-to-image"]
    if content.is_on_hub:
        relation = "adapter" if content.is_lora else "merge"
        lines += [f"base_model: {content.base}", f"base_model_relation: {relation}"]
    tags = ["text-to-image", "stable-diffusion-xl" if content.is_xl else "stable-diffusion", "few-step", "distillation"]
    tags += ["lora"] if content.is_lora else []
    return "\n".join(["---", *lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _lead(content: CardContent) -> str:
    kind = "A LoRA that makes" if content.is_lora else "The weights of"
    end = "draw" if content.is_lora else "with a LoRA merged in that makes it draw"
    method, hint = training_method(content.recipe), usage_hint(content.recipe)
    source = f" ([paper]({PAPER}))" if method == "RAPM" else ""
    made = (
        f"distilled by {_plain_text(method)}{source} with `rapm`, without real images"
        if method
        else "exported by `rapm`"
    )
    advice = f"**Sample it with {_plain_text(hint)}.** Other samplers and guidance spoil its pictures." if hint else ""
    sizes = distilled_sizes(content.recipe)
    made += f", at {', '.join(sizes)}" if sizes else ""
    lead = f"{kind} `{_plain_text(content.base)}` {end} in few steps, {made}."
    return "\n\n".join(filter(None, [lead, _loras(content), advice]))


def _loras(content: CardContent) -> str:
    """Return which other LoRAs the student needs beside it, or has in it; empty without any."""
    words = _plain_text(loras_in_words(content.recipe) or "none")
    if content.recipe.get("base_loras"):
        return f"It was distilled on that base with other LoRAs merged in. **Load these beside it: {words}.**"
    return f"It contains other LoRAs, which must not be loaded beside it: {words}." if words != "none" else ""


def _file_rows(content: CardContent) -> list[list[str]]:
    return [[f"`{_plain_text(line.name)}`", ", ".join(line.readers)] for line in content.files]


def _usage(content: CardContent) -> str:
    sampler, file = content.recipe.get("sampler", {}), content.files[0].name
    steps, scheduler = steps_of(content.recipe), f"{scheduler_of(content.recipe)}Scheduler"
    pipeline, is_file = PIPELINES[content.is_xl], "/" not in file and not content.is_lora
    named = {name: value for name, value in sampler.items() if _is_setting(name, value)}
    named |= {"prediction_type": "v_prediction"} if content.is_v and is_file else {}  # diffusers cannot see it
    settings = "".join(f", {name}={value!r}" for name, value in named.items())
    place = (
        "." if not content.is_lora else content.base if content.is_on_hub else f"path/to/{_plain_text(content.base)}"
    )
    load = f"from_single_file({file!r}" if is_file else f"from_pretrained({place!r}"
    if is_file and not content.has_usual_shapes:
        load += f", config='path/to/{_plain_text(content.base)}'"
    lines = [
        "import torch",
        f"from diffusers import {scheduler}, {pipeline}",
        "",
        f'pipe = {pipeline}.{load}, torch_dtype=torch.float16).to("cuda")',
        f"pipe.scheduler = {scheduler}.from_config(pipe.scheduler.config{settings})",
        *(_loading(content, file) if content.is_lora else []),
        f"prompt = {content.prompt!r}",
        f"pipe(prompt, num_inference_steps={steps}, guidance_scale=1.0).images[0]",
    ]
    code = "```python\n" + "\n".join(lines) + "\n```"
    return "\n\n".join(filter(None, [code, _programs(content)]))


def _loading(content: CardContent, file: str) -> list[str]:
    """Return the lines of code that load the LoRA, and those that it was distilled on."""
    beside = content.recipe.get("base_loras", [])
    if not beside:
        return [f'pipe.load_lora_weights(".", weight_name={file!r})']
    names = ["student", *(f"lora_{k}" for k in range(1, 1 + len(beside)))]
    lines = [f'pipe.load_lora_weights(".", weight_name={file!r}, adapter_name="student")']
    for name, one in zip(names[1:], beside, strict=True):
        place = f"path/to/{_plain_text(one['name'])}"
        lines.append(f"pipe.load_lora_weights({place!r}, adapter_name={name!r})")
    return [*lines, f"pipe.set_adapters({names}, {[1.0, *(float(one['weight']) for one in beside)]})"]


def _programs(content: CardContent) -> str:
    """Return a list of the other programs: where the file belongs, and how to sample."""
    line = next((line for line in content.files if folders(line.readers, is_lora=content.is_lora)), None)
    if line is None:
        return ""
    is_fooocus = content.is_xl and not has_zero_snr(content.recipe)  # whether it knows such a schedule was not tried
    loads = f", which loads the base from `{_plain_text(content.checkpoint)}`" if content.is_lora else ""
    advice = {
        "ComfyUI": f"open the workflow that lies beside it{loads}",
        "A1111 and Forge": webui_settings(content.recipe) + (A1111_V if content.is_v else ""),
        "Fooocus (SDXL alone)": fooocus_settings(content.recipe) if is_fooocus else "",
    }
    places = folders(line.readers, is_lora=content.is_lora)
    rows = [(program, folder, advice[program]) for program, folder in places.items() if advice[program]]
    file = f"`{_plain_text(line.name)}`"
    return "\n".join(f"* {program}: {file} belongs in `{folder}`; {how}." for program, folder, how in rows)


def _is_setting(name: str, value: Any) -> bool:
    """Return True for a setting of a scheduler. Headers of other people can hold anything, which must not be code."""
    is_plain = isinstance(value, int | float) or (isinstance(value, str) and value.isidentifier())
    return name.isidentifier() and is_plain and name not in NOT_SCHEDULER_SETTINGS


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(map(_escaped, line)) + " |" for line in lines)


def _escaped(text: str) -> str:
    """Return a text in one line, in which no letter but ours begins a link, a cell or markup."""
    letters = (letter for letter in text.replace("](", "] (") if letter.isprintable())
    return "".join({"|": "\\|", "<": "&lt;"}.get(letter, letter) for letter in letters)


def _plain_text(text: str) -> str:
    """Return a text without the characters that Markdown or HTML could interpret; never empty."""
    return "".join(letter for letter in text if letter.isprintable() and letter not in "`<>[]*_|\\") or "?"
