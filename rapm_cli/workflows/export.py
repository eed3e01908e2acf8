"""A run's LoRA to files for elsewhere: the LoRA itself, or the base with the LoRA merged in."""

import json
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from rapm_cli.bases import Base
from rapm_cli.bases.device import DTYPES
from rapm_cli.core.errors import ConfigError, InputError
from rapm_cli.formats.fuse import FuseReport, fuse_folder
from rapm_cli.formats.lora import load_lora, save_lora


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
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as temporary:
        target = Path(temporary) / output.name
        shutil.copytree(source, target)
        report = fuse_folder(target, lora, DTYPES.get(dtype))
        (target / "rapm_recipe.json").write_text(json.dumps(lora.recipe, indent=2) + "\n")
        target.replace(output)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    return Exported(output, size, report)


def default_output(lora_path: Path, *, fuse: bool) -> Path:
    """Where an export goes unless the user names a place: the working folder, named after the run."""
    name = lora_path.parent.name if lora_path.name == "lora.safetensors" else lora_path.stem
    return Path(f"{name}-fused") if fuse else Path(f"{name}.safetensors")
