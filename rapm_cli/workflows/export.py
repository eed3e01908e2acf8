"""A run's LoRA to files for elsewhere: the LoRA itself, or the base with the LoRA merged in."""

from dataclasses import dataclass, replace
from pathlib import Path

from rapm_cli.bases import Base
from rapm_cli.bases.device import DTYPES
from rapm_cli.core.commit import read_manifest
from rapm_cli.core.errors import ConfigError, InputError
from rapm_cli.core.files import sweep
from rapm_cli.core.watch import Watcher
from rapm_cli.formats.fuse import FuseReport, Merge
from rapm_cli.formats.lora import load_lora, save_lora
from rapm_cli.workflows.disk import with_retries
from rapm_cli.workflows.merge import AGAIN, NOTHING, merge_to_file, merge_to_folder

STORED = {"fp16": "F16", "bf16": "BF16", "fp32": "F32", "base": None}  # by what --dtype is given


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        path: File or folder.
        total_bytes: Its size.
        report: What rounding did to a merged update; None for a LoRA.
    """

    path: Path
    total_bytes: int
    report: FuseReport | None


def export(
    lora_path: Path,
    base: Base,
    output: Path,
    *,
    fuse: bool,
    dtype: str,
    watcher: Watcher,
    single_file: bool = False,
) -> Exported:
    """Write one export, and read it back; nothing is left behind if it fails.

    Args:
        lora_path: LoRA to export.
        base: The base that it was distilled from.
        output: File to write, or with `fuse` alone the folder.
        fuse: Merge the LoRA into the base's weights.
        dtype: Of what is written: "fp16", "bf16", "fp32", or "base" for the merged UNet's or the LoRA's own.
        watcher: Sees a bar, and is told of a full disk.
        single_file: With `fuse`: one checkpoint in the original layout.

    Raises:
        ConfigError: The base has no folder to merge into, the dtype is unknown, or there is nothing to merge.
        InputError: The output exists, the LoRA does not fit, or the base is not all there.
        DiskError: It cannot be written.
        VerificationError: What was read back is not what was written.
    """
    if single_file and not fuse:
        raise ConfigError("--single-file goes with --fuse", "a LoRA is one file anyway")
    if dtype not in STORED:
        raise ConfigError(f"--dtype {dtype} is unknown", f"give {', '.join(STORED)}")
    lora = load_lora(lora_path)
    if output.exists():
        raise InputError(f"{output} exists", "give --output another name, or remove it")
    sweep(output.parent)
    if not fuse:
        kept = {name: value.to(DTYPES.get(dtype, value.dtype)) for name, value in lora.state.items()}
        size = sum(value.nbytes for value in kept.values())
        with_retries(lambda: save_lora(output, replace(lora, state=kept)), output, size, watcher, NOTHING, AGAIN)
        return Exported(output, output.stat().st_size, None)
    merge = Merge(lora, STORED[dtype])
    if single_file:
        report = merge_to_file(base, merge, output, watcher)
        return Exported(output, output.stat().st_size, report)
    report = merge_to_folder(base, merge, output, watcher)
    return Exported(output, read_manifest(output).total_bytes, report)


def default_output(lora_path: Path, *, fuse: bool, single_file: bool) -> Path:
    """Where an export goes unless the user names a place: the working folder, named after the run."""
    name = lora_path.parent.name if lora_path.name == "lora.safetensors" else lora_path.stem
    name = f"{name}-fused" if fuse else name
    return Path(name) if fuse and not single_file else Path(f"{name}.safetensors")
