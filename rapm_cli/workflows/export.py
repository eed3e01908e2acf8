"""A run's LoRA to files for elsewhere: the LoRA itself, or the base with the LoRA merged in."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rapm_cli.bases import Base
from rapm_cli.bases.device import DTYPES
from rapm_cli.bases.weights import FP16
from rapm_cli.core.commit import MANIFEST, committing, read_manifest
from rapm_cli.core.errors import ConfigError, InputError
from rapm_cli.core.files import sweep, write_file
from rapm_cli.core.watch import Watcher
from rapm_cli.formats.fuse import FuseReport, fuse_folder
from rapm_cli.formats.lora import LoraFile, load_lora, save_lora
from rapm_cli.workflows.disk import with_retries

RECIPE = "rapm_recipe.json"
NOTHING, AGAIN = "nothing of it is left", "free space, and run the same command again"


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


def export(lora_path: Path, base: Base, output: Path, *, fuse: bool, dtype: str, watcher: Watcher) -> Exported:
    """Write one export; nothing is left behind if it fails.

    Args:
        lora_path: LoRA to export.
        base: The base that it was distilled from.
        output: File to write, or with `fuse` the folder.
        fuse: Merge the LoRA into the base's weights.
        dtype: Of what is written: "fp16", "bf16", "fp32", or "base" for the merged UNet's or the LoRA's own.
        watcher: Is told of a full disk.

    Raises:
        ConfigError: The base has no folder to merge into, or the dtype is unknown.
        InputError: The output exists, or the base's UNet is not all there.
        DiskError: It cannot be written.
    """
    lora = load_lora(lora_path)
    if output.exists():
        raise InputError(f"{output} exists", "give --output another name, or remove it")
    if dtype not in ("base", *DTYPES):
        raise ConfigError(f"--dtype {dtype} is unknown", f"give base, {', '.join(DTYPES)}")
    sweep(output.parent)
    if not fuse:
        kept = {name: value.to(DTYPES.get(dtype, value.dtype)) for name, value in lora.state.items()}
        size = sum(value.nbytes for value in kept.values())
        with_retries(lambda: save_lora(output, replace(lora, state=kept)), output, size, watcher, NOTHING, AGAIN)
        return Exported(output, output.stat().st_size, None)
    weights = base.locate(watcher)
    if weights.checkpoint:
        raise ConfigError(f"base {base.name} has no folder to merge into", "give --base the model in diffusers layout")
    weights.check("unet")
    names = {name: plain for name, plain in weights.plain_names().items() if name not in (RECIPE, MANIFEST)}
    size = 2 * sum((weights.folder / name).stat().st_size for name in names)
    report = with_retries(
        lambda: _fuse(weights.folder, names, lora, output, DTYPES.get(dtype)), output, size, watcher, NOTHING, AGAIN
    )
    return Exported(output, read_manifest(output).total_bytes, report)


def _fuse(source: Path, names: dict[str, str], lora: LoraFile, output: Path, dtype: torch.dtype | None) -> FuseReport:
    with committing(output, fingerprint=lora.digest()) as temporary:
        for name, plain in names.items():
            target = temporary / plain
            target.parent.mkdir(parents=True, exist_ok=True)
            if plain.endswith(".index.json"):  # of shards, which it names
                target.write_text((source / name).read_text().replace(f".{FP16}", ""))
            else:
                shutil.copyfile(source / name, target)
        report = fuse_folder(temporary, lora, dtype)
        write_file(temporary / RECIPE, (json.dumps(lora.recipe, indent=2) + "\n").encode())
        if output.exists():
            raise InputError(f"{output} has appeared meanwhile", "give --output another name")
    return report


def default_output(lora_path: Path, *, fuse: bool) -> Path:
    """Where an export goes unless the user names a place: the working folder, named after the run."""
    name = lora_path.parent.name if lora_path.name == "lora.safetensors" else lora_path.stem
    return Path(f"{name}-fused") if fuse else Path(f"{name}.safetensors")
