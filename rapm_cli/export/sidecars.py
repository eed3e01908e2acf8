"""Sidecar files of an export: the model card, the run's contact sheet and a ComfyUI workflow."""

from collections.abc import Sequence
from pathlib import Path

from rapm_cli.bases import BASES, Base
from rapm_cli.bases.published import PUBLISHED
from rapm_cli.core.common.progress import Reporter
from rapm_cli.export.plan import CARD, SHEET, SUFFIX, ExportedFile
from rapm_cli.formats.comfyui import workflow_bytes
from rapm_cli.formats.lora import LoraFile
from rapm_cli.formats.model_card import CardContent, CardFile, render_card
from rapm_cli.runs.run import Run

WORKFLOW = "comfyui.json"
PUBLISHED_FILES = {
    "sdxl": f"sd_xl_base_1.0{SUFFIX}",
    "sd15": f"v1-5-pruned-emaonly{SUFFIX}",
}  # on the hub


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
    run, architecture = Run(lora_path.parent), base.architecture(reporter)
    has_sheet = run.lora == lora_path and run.sheet.is_file()
    metrics, provenance = _metrics(run) if has_sheet else ([], "")
    lines = [CardFile(file.path.relative_to(output).as_posix(), file.readers) for file in files]
    published, is_local = PUBLISHED.get(base.name), base.source in BASES.names() or Path(base.source).exists()
    base_file = PUBLISHED_FILES.get(base.name, f"{base.name.rpartition('/')[2]}{SUFFIX}")
    content = CardContent(
        lora.recipe,
        published.repo if published else base.name,
        is_on_hub=bool(published) or not is_local,
        is_xl=architecture.has_pooled_text,
        is_lora=is_lora,
        files=lines,
        prompt=min(base.training_prompts(8, 0), key=len),
        checkpoint=base_file,
        image=SHEET if has_sheet else None,
        metrics=metrics,
        provenance=provenance,
    )
    made = {CARD: render_card(content).encode()} | ({SHEET: run.sheet.read_bytes()} if has_sheet else {})
    if comfy := next((line.name for line in lines if "ComfyUI" in line.readers), None):
        made[WORKFLOW] = workflow_bytes(
            lora.recipe,
            checkpoint=base_file if is_lora else comfy,
            lora=comfy if is_lora else None,
            side_px=architecture.side_px,
            prompt=content.prompt,
        )
    return made


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
