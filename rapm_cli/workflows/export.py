"""A run's LoRA to files for elsewhere: the LoRA itself, or the base with the LoRA merged in."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from rapm_cli.bases import Base
from rapm_cli.bases.device import DTYPES
from rapm_cli.core.commit import committing, read_manifest
from rapm_cli.core.errors import ConfigError, DiskError, InputError
from rapm_cli.core.files import write_file
from rapm_cli.formats.fuse import FuseReport, fuse_folder, is_other_weights
from rapm_cli.formats.lora import load_lora, save_lora
from rapm_cli.workflows.disk import require_room


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


def export(lora_path: Path, base: Base, output: Path, *, fuse: bool, dtype: str) -> Exported:
    """Write one export; nothing is left behind if it fails.

    Args:
        lora_path: LoRA to export.
        base: The base that it was distilled from.
        output: File to write, or with `fuse` the folder.
        fuse: Merge the LoRA into the base's weights.
        dtype: Of what is written: "fp16", "bf16", "fp32", or "base" for the merged UNet's or the LoRA's own.

    Raises:
        ConfigError: The base has no folder to merge into, or the dtype is unknown.
        InputError: The output exists.
    """
    lora = load_lora(lora_path)
    if output.exists():
        raise InputError(f"{output} exists", "give --output another name, or remove it")
    if dtype not in ("base", *DTYPES):
        raise ConfigError(f"--dtype {dtype} is unknown", f"give base, {', '.join(DTYPES)}")
    if not fuse:
        kept = {name: value.to(DTYPES.get(dtype, value.dtype)) for name, value in lora.state.items()}
        save_lora(output, replace(lora, state=kept))
        return Exported(output, output.stat().st_size, None)
    source = base.locate()
    if not isinstance(source, Path):
        raise ConfigError(f"base {base.name} has no folder to merge into", "give --base the folder of its snapshot")
    files = [path for path in source.rglob("*") if path.is_file() and not is_other_weights(path, source)]
    require_room(output, 2 * sum(path.stat().st_size for path in files), "the merged model")
    try:
        with committing(output, fingerprint=lora.digest()) as temporary:
            for path in files:
                target = temporary / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
            report = fuse_folder(temporary, lora, DTYPES.get(dtype))
            write_file(temporary / "rapm_recipe.json", (json.dumps(lora.recipe, indent=2) + "\n").encode())
    except OSError as error:
        raise DiskError.of(error, output) from error
    return Exported(output, read_manifest(output).total_bytes, report)


def default_output(lora_path: Path, *, fuse: bool) -> Path:
    """Where an export goes unless the user names a place: the working folder, named after the run."""
    name = lora_path.parent.name if lora_path.name == "lora.safetensors" else lora_path.stem
    return Path(f"{name}-fused") if fuse else Path(f"{name}.safetensors")
