"""Sidecar files of an export: the model card, the run's contact sheet and a ComfyUI workflow."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rapm_cli.bases import BASES, Base
from rapm_cli.bases.published import PUBLISHED
from rapm_cli.bases.support import V_PREDICTION
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.network.schedule import ZERO_SNR_SETTINGS
from rapm_cli.export.plan import CARD, SHEET, ExportedFile
from rapm_cli.formats.header import SUFFIX
from rapm_cli.formats.lora import LoraFile
from rapm_cli.formats.model_card import CardContent, CardFile, render_card
from rapm_cli.formats.recipe import shown_size
from rapm_cli.formats.sampling_advice import COMFYUI_SAMPLERS, COMFYUI_SCHEDULE, scheduler_of, steps_of
from rapm_cli.runs.run import Run

WORKFLOW = "comfyui.json"
PUBLISHED_FILES = {  # names of the single-file checkpoints on the hub
    "sdxl": f"sd_xl_base_1.0{SUFFIX}",
    "sd15": f"v1-5-pruned-emaonly{SUFFIX}",
}


def build_sidecars(
    lora_path: Path,
    lora: LoraFile,
    base: Base,
    output: Path,
    files: Sequence[ExportedFile],
    *,
    is_lora: bool,
    reporter: Reporter,
) -> dict[str, bytes]:
    """Return the bytes of the sidecar files by name.

    The contact sheet is included only for a run's own LoRA, and the workflow only where ComfyUI reads one of the files.

    Args:
        lora_path: File of the exported LoRA.
        lora: Content of that file.
        base: Base of the LoRA.
        output: Folder of the export.
        files: Weight files of the export.
        is_lora: True where `files` hold the LoRA; False where they hold the base with the LoRA fused in.
        reporter: Shows downloads of the base's configuration.
    """
    run, architecture, recipe = Run(lora_path.parent), base.architecture(reporter), _recipe(lora, base)
    has_sheet = run.lora == lora_path and run.sheet.is_file()
    metrics, provenance = _metrics(run) if has_sheet else ([], "")
    lines = [CardFile(file.path.relative_to(output).as_posix(), file.readers) for file in files]
    published, is_local = PUBLISHED.get(base.name), base.source in BASES.names() or Path(base.source).exists()
    base_file = PUBLISHED_FILES.get(base.name, f"{base.name.rpartition('/')[2]}{SUFFIX}")
    content = CardContent(
        recipe,
        published.repo if published else base.name,
        is_on_hub=bool(published) or not is_local,
        is_xl=architecture.has_pooled_text,
        is_lora=is_lora,
        files=lines,
        prompt=min(base.training_prompts(8, 0), key=len),
        checkpoint=base_file,
        is_v=base.prediction_type == V_PREDICTION,
        has_usual_shapes=architecture.has_usual_shapes,
        image=SHEET if has_sheet else None,
        metrics=metrics,
        provenance=provenance,
    )
    made = {CARD: render_card(content).encode()} | ({SHEET: run.sheet.read_bytes()} if has_sheet else {})
    if comfy := next((line.name for line in lines if "ComfyUI" in line.readers), None):
        workflow = comfyui_workflow(
            recipe,
            checkpoint=base_file if is_lora else comfy,
            lora=comfy if is_lora else None,
            size=shown_size(recipe, architecture.image_size),
            prompt=content.prompt,
            is_v=content.is_v and (base.has_zero_snr or not content.is_xl),  # ComfyUI sees velocities in an SDXL
            has_zero_snr=base.has_zero_snr,
        )
        made[WORKFLOW] = (json.dumps(workflow, indent=2) + "\n").encode()
    return made


def _recipe(lora: LoraFile, base: Base) -> dict[str, Any]:
    """Return a LoRA's recipe, whose sampler names the noise schedule of this base."""
    sampler = lora.recipe.get("sampler")
    if not sampler or not base.has_zero_snr:
        return lora.recipe
    return lora.recipe | {"sampler": sampler | ZERO_SNR_SETTINGS}


def comfyui_workflow(
    recipe: Mapping[str, Any],
    *,
    checkpoint: str,
    lora: str | None,
    size: tuple[int, int],
    prompt: str,
    is_v: bool = False,
    has_zero_snr: bool = False,
) -> dict[str, Any]:
    """Return the nodes of a ComfyUI workflow by number, each with its class and inputs.

    Args:
        recipe: Settings of training and sampling.
        checkpoint: File below ComfyUI's `models/checkpoints`.
        lora: File below ComfyUI's `models/loras`; None where the LoRA is fused into the checkpoint. After it come the
            LoRAs that it was distilled on.
        size: Width and height of the images, in pixels.
        prompt: Prompt that the workflow starts with.
        is_v: True where ComfyUI must be told that the network predicts velocities.
        has_zero_snr: True where it must be told, too, that the noise schedule goes down to zero signal.
    """
    nodes: dict[str, Any] = {"1": ("CheckpointLoaderSimple", {"ckpt_name": checkpoint})}
    model: list[Any] = ["1", 0]
    beside = [(one["name"], float(one["weight"])) for one in recipe.get("base_loras", [])]
    for k, (name, weight) in enumerate([(lora, 1.0), *beside] if lora else []):
        number = str(10 + k) if k else "2"
        nodes[number] = ("LoraLoaderModelOnly", {"model": model, "lora_name": name, "strength_model": weight})
        model = [number, 0]
    if is_v:
        sampling = {"model": model, "sampling": "v_prediction", "zsnr": has_zero_snr}
        nodes["9"] = ("ModelSamplingDiscrete", sampling)
        model = ["9", 0]
    nodes |= {
        "3": ("CLIPTextEncode", {"clip": ["1", 1], "text": prompt}),
        "4": ("CLIPTextEncode", {"clip": ["1", 1], "text": ""}),  # ignored at CFG 1
        "5": ("EmptyLatentImage", {"width": size[0], "height": size[1], "batch_size": 1}),
        "6": (
            "KSampler",
            {
                "model": model, "positive": ["3", 0], "negative": ["4", 0], "latent_image": ["5", 0], "seed": 0,
                "steps": steps_of(recipe), "cfg": 1.0, "denoise": 1.0, "scheduler": COMFYUI_SCHEDULE,
                "sampler_name": COMFYUI_SAMPLERS[scheduler_of(recipe)],
            },
        ),
        "7": ("VAEDecode", {"samples": ["6", 0], "vae": ["1", 2]}),
        "8": ("SaveImage", {"images": ["7", 0], "filename_prefix": "rapm"}),
    }  # fmt: skip
    return {number: {"class_type": kind, "inputs": inputs} for number, (kind, inputs) in nodes.items()}


def _metrics(run: Run) -> tuple[list[list[str]], str]:
    """Return the run's final measurements as rows of a table, titles first, and a sentence on their provenance."""
    result = run.result()
    about = result.get("comparison") or {}
    rows = about.get("rows", [])
    if not rows:
        return [], ""
    names = list(rows[0]["metrics"])
    lines = [["", "evaluations", *names]]
    for row in rows:
        scores = [row["metrics"][name] for name in names]
        cells = [f"{score['value']:.4g} [{score['low']:.4g}, {score['high']:.4g}]" for score in scores]
        lines.append([row["name"], str(row["evaluations"]), *cells])
    provenance = f"{about['samples']} {about['part']}, seed {about['seed']}, 95 % intervals; {result['machine']}."
    return lines, provenance
