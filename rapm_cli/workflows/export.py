"""A run's LoRA to files for elsewhere: the LoRA itself in some forms, or the base with the LoRA merged in."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rapm_cli.bases import BASES, Base
from rapm_cli.bases.device import DTYPES
from rapm_cli.bases.published import PUBLISHED
from rapm_cli.core.checksum import file_sha256
from rapm_cli.core.commit import committing, read_manifest
from rapm_cli.core.errors import ConfigError, InputError
from rapm_cli.core.files import sweep, write_file
from rapm_cli.core.watch import Watcher
from rapm_cli.formats.card import Line, Subject, card
from rapm_cli.formats.comfy import workflow_bytes
from rapm_cli.formats.exports import EXPORTS, verify_lora
from rapm_cli.formats.fuse import FuseReport, Merge
from rapm_cli.formats.kohya import Target
from rapm_cli.formats.lora import LoraFile, load_lora
from rapm_cli.formats.programs import Verdict
from rapm_cli.workflows.disk import with_retries
from rapm_cli.workflows.merge import AGAIN, NOTHING, merge_to_file, merge_to_folder
from rapm_cli.workflows.rundir import Run

STORED = {"fp16": "F16", "bf16": "BF16", "fp32": "F32", "base": None}  # by what --dtype is given
FILE = ".safetensors"
CARD, WORKFLOW, SHEET = "README.md", "comfyui.json", "sheet.png"


@dataclass(frozen=True)
class File:
    """A file of an export that was read back.

    Args:
        path: Of it.
        bytes: Its size.
        sha256: Its checksum.
        verdicts: What each program makes of it.
    """

    path: Path
    bytes: int
    sha256: str
    verdicts: Sequence[Verdict] = ()


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        path: File or folder.
        total_bytes: Its size.
        files: Of weights that other programs read.
        report: What rounding did to a merged update; None for a LoRA.
    """

    path: Path
    total_bytes: int
    files: list[File] = field(default_factory=list)
    report: FuseReport | None = None


def export(
    lora_path: Path,
    base: Base,
    output: Path,
    *,
    watcher: Watcher,
    formats: Sequence[str] = (),
    fuse: bool = False,
    single_file: bool = False,
    dtype: str = "base",
) -> Exported:
    """Write one export, and read it back; nothing is left behind if it fails.

    Args:
        lora_path: LoRA to export.
        base: The base that it was distilled from.
        output: What to write: a folder with all forms, or one file where the name ends so.
        watcher: Sees a bar, and is told of a full disk.
        formats: Names from `EXPORTS`; by default all of them, and in one file diffusers'.
        fuse: Merge the LoRA into the base's weights.
        single_file: With `fuse`: one checkpoint in the original layout.
        dtype: Of what is written: "fp16", "bf16", "fp32", or "base" for the merged UNet's or the LoRA's own.

    Raises:
        ConfigError: The base has no folder to merge into, a name is unknown, or options contradict each other.
        InputError: The output exists, the LoRA does not fit, or the base is not all there.
        DiskError: It cannot be written.
        VerificationError: What was read back is not what was written.
    """
    is_file = output.suffix == FILE
    _check(formats, fuse, single_file, dtype, is_file)
    lora = load_lora(lora_path)
    if output.exists():
        raise InputError(f"{output} exists", "give --output another name, or remove it")
    sweep(output.parent)
    if not fuse:
        target, kind = target_of(base, watcher), DTYPES.get(dtype)
        if is_file:
            form, size = (formats or ["diffusers"])[0], 2 * sum(value.nbytes for value in lora.state.values())
            write = partial(_write_lora, output, output, lora, target, form, kind)
            file = with_retries(write, output, size, watcher, NOTHING, AGAIN)
            return Exported(output, file.bytes, [file])
        return _write_folder(lora_path, lora, base, target, output, formats or EXPORTS.names(), kind, watcher)
    merge = Merge(lora, STORED[dtype])
    if single_file:
        report = merge_to_file(base, merge, output, watcher)
        return Exported(output, output.stat().st_size, [_file(output)], report)
    report = merge_to_folder(base, merge, output, watcher)
    return Exported(output, read_manifest(output).total_bytes, report=report)


def _check(formats: Sequence[str], fuse: bool, single_file: bool, dtype: str, is_file: bool) -> None:
    if single_file and not fuse:
        raise ConfigError("--single-file goes with --fuse", "a LoRA is one file anyway")
    if fuse and formats:
        raise ConfigError("--format is of a LoRA, and --fuse writes none", "leave one of the two out")
    if fuse and is_file != single_file:
        raise ConfigError(
            f"--fuse {'--single-file ' if single_file else ''}writes a {'file' if single_file else 'folder'}",
            f"give --output a name that {'ends' if single_file else 'does not end'} in {FILE}",
        )
    for name in formats:
        EXPORTS[name]
    if is_file and len(formats) > 1:
        raise ConfigError("one file has one format", "give --output a folder, or one --format")
    if dtype not in STORED:
        raise ConfigError(f"--dtype {dtype} is unknown", f"give {', '.join(STORED)}")


def target_of(base: Base, watcher: Watcher) -> Target:
    """The shapes of a base that a LoRA is written for; its weights are not needed."""
    architecture = base.architecture(watcher)
    network = architecture.network(torch.device("meta"), torch.float32)
    layers = {name for name, layer in network.named_modules() if hasattr(layer, "weight")}
    return Target(architecture.has_pooled_text, layers, architecture.side_px)


def _write_folder(
    lora_path: Path,
    lora: LoraFile,
    base: Base,
    target: Target,
    output: Path,
    formats: Sequence[str],
    dtype: torch.dtype | None,
    watcher: Watcher,
) -> Exported:
    """All forms, with a card and a ComfyUI workflow."""
    run, name = Run(lora_path.parent), output.name
    files: list[File] = []

    def write() -> None:
        files.clear()
        with committing(output, fingerprint=lora.digest()) as temporary:
            for form in formats:
                file = f"{name}-{form}{FILE}"
                files.append(_write_lora(temporary / file, output / file, lora, target, form, dtype))
            picture = run.sheet if run.lora == lora_path and run.sheet.is_file() else None
            if picture:
                write_file(temporary / SHEET, picture.read_bytes())
            subject = _subject(lora, base, target, files, run if picture else None)
            write_file(temporary / CARD, card(subject).encode())
            if comfy := next((file.path.name for file in files if _reads("ComfyUI", file)), None):
                known = {"checkpoint": _checkpoint(base), "lora": comfy, "side_px": target.side_px}
                write_file(temporary / WORKFLOW, workflow_bytes(lora.recipe, **known, prompt=subject.prompt))
            if output.exists():
                raise InputError(f"{output} has appeared meanwhile", "give --output another name")

    size = len(formats) * 2 * sum(value.nbytes for value in lora.state.values())
    with_retries(write, output, size, watcher, NOTHING, AGAIN)
    return Exported(output, read_manifest(output).total_bytes, files)


def _write_lora(path: Path, final: Path, lora: LoraFile, target: Target, form: str, dtype: torch.dtype | None) -> File:
    """One file, which will lie at `final`; gone again where it cannot be verified."""
    EXPORTS[form](path, lora, target, dtype)
    try:
        verdicts = verify_lora(path, lora, target)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return _file(path, final, verdicts)


def _file(path: Path, final: Path | None = None, verdicts: Sequence[Verdict] = ()) -> File:
    return File(final or path, path.stat().st_size, file_sha256(path), verdicts)


def _reads(program: str, file: File) -> bool:
    return any(one.program == program and not one.reason for one in file.verdicts)


def _subject(lora: LoraFile, base: Base, target: Target, files: Sequence[File], run: Run | None) -> Subject:
    lines = [Line(file.path.name, [one.program for one in file.verdicts if not one.reason]) for file in files]
    is_on_hub = base.name in PUBLISHED or (base.source not in BASES.names() and not Path(base.source).exists())
    name = PUBLISHED[base.name].repo if base.name in PUBLISHED else base.name
    metrics, provenance = _metrics(run) if run else ((), "")
    return Subject(
        lora.recipe,
        name,
        is_on_hub,
        target.is_xl,
        True,
        lines,
        prompt=min(base.training_prompts(8, 0), key=len),
        picture=SHEET if run else None,
        metrics=metrics,
        provenance=provenance,
    )


def _metrics(run: Run) -> tuple[list[list[str]], str]:
    """What the run measured at its end, as a table, and where."""
    result: dict[str, Any] = run.result()
    rows = (result.get("comparison") or {}).get("rows", [])
    if not rows:
        return [], ""
    names = list(rows[0]["metrics"])
    lines = [["", "evaluations", *names]]
    for row in rows:
        scores = [row["metrics"][name] for name in names]
        cells = [f"{score['value']:.4g} [{score['low']:.4g}, {score['high']:.4g}]" for score in scores]
        lines.append([row["name"], str(row["evaluations"]), *cells])
    about = result["comparison"]
    said = f"{about['samples']} {about['part']}, seed {about['seed']}, 95 % intervals; {result['machine']}."
    return lines, said


def _checkpoint(base: Base) -> str:
    """What ComfyUI calls the base's file."""
    known = {"sdxl": "sd_xl_base_1.0.safetensors", "sd15": "v1-5-pruned-emaonly.safetensors"}
    return known.get(base.name, f"{base.name.rpartition('/')[2]}{FILE}")


def default_output(lora_path: Path, *, fuse: bool, single_file: bool) -> Path:
    """Where an export goes unless the user names a place: the working folder, named after the run."""
    name = lora_path.parent.name if lora_path.name == "lora.safetensors" else lora_path.stem
    name = f"{name}-fused" if fuse else f"{name}-lora"
    return Path(f"{name}{FILE}" if single_file else name)
