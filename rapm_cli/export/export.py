"""A run's LoRA to files for elsewhere: the LoRA itself in some forms, or the base with the LoRA merged in."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from rapm_cli.bases import Base
from rapm_cli.bases.device import DTYPES
from rapm_cli.bases.hub import check_login, publish
from rapm_cli.core.common.errors import ConfigError, InputError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.storage.commit import MANIFEST, committing, read_manifest
from rapm_cli.core.storage.files import replacing, sweep, write_file
from rapm_cli.export.plan import FILE, Content, File, checkpoint, folder, loras, written
from rapm_cli.export.sidecars import companions
from rapm_cli.formats.exports import EXPORTS
from rapm_cli.formats.fuse import FuseReport, Merge
from rapm_cli.formats.kohya import Target
from rapm_cli.formats.lora import LoraFile, load_lora
from rapm_cli.runs.retry import with_retries

STORED = {"fp16": "F16", "bf16": "BF16", "fp32": "F32", "base": None}  # by what --dtype is given
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
NOTHING, AGAIN = "nothing of it is left", "free space, and run the same command again"


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        path: File or folder.
        total_bytes: Its size.
        files: Of weights that other programs read.
        report: What rounding did to a merged update; None for a LoRA.
        url: Where it was published; empty for nowhere.
    """

    path: Path
    total_bytes: int
    files: list[File] = field(default_factory=list)
    report: FuseReport | None = None
    url: str = ""


def export(
    lora_path: Path,
    base: Base,
    output: Path,
    *,
    reporter: Reporter,
    formats: Sequence[str] = (),
    fuse: bool = False,
    single_file: bool = False,
    dtype: str = "base",
) -> Exported:
    """Write one export, and read it back; nothing is left behind if it fails.

    Args:
        lora_path: LoRA to export.
        base: The base that it was distilled from.
        output: What to write: a folder with a card and all forms, or one file where the name ends so.
        reporter: Sees bars, and is told of a full disk.
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
    if output.suffix in PICKLES:
        raise ConfigError(f"--output {output} names a pickle, which rapm never writes", f"end it in {FILE}")
    _check(formats, fuse, single_file, dtype, is_file)
    lora = load_lora(lora_path)
    if output.exists():
        raise InputError(f"{output} exists", "give --output another name, or remove it")
    sweep(output.parent)
    merge = Merge(lora, STORED[dtype]) if fuse else None
    if merge:
        name = output.stem if is_file else output.name
        content = checkpoint(base, merge, name, reporter) if single_file else folder(base, merge, reporter)
    else:
        forms = formats or (["diffusers"] if is_file else EXPORTS.names())
        target = replace(target_of(base, reporter), alias=output.stem if is_file else "")
        content = loras(lora, target, output.name, forms, DTYPES.get(dtype))

    def write() -> tuple[list[File], int]:
        return _as_file(content, output) if is_file else _as_folder(content, output, lora_path, lora, base, reporter)

    files, total = with_retries(write, output, content.nbytes, reporter, NOTHING, AGAIN)
    return Exported(output, total, files, merge.report() if merge else None)


def _check(formats: Sequence[str], fuse: bool, single_file: bool, dtype: str, is_file: bool) -> None:
    if single_file and not fuse:
        raise ConfigError("--single-file goes with --fuse", "a LoRA is one file anyway")
    if fuse and formats:
        raise ConfigError("--format is of a LoRA, and --fuse writes none", "leave one of the two out")
    if fuse and is_file and not single_file:
        raise ConfigError("--fuse writes a folder", f"give --single-file, or an --output that does not end in {FILE}")
    for name in formats:
        EXPORTS[name]
    if is_file and len(formats) > 1:
        raise ConfigError("one file has one format", "give --output a folder, or one --format")
    if dtype not in STORED:
        raise ConfigError(f"--dtype {dtype} is unknown", f"give {', '.join(STORED)}")


def target_of(base: Base, reporter: Reporter) -> Target:
    """The shapes of a base that a LoRA is written for; its weights are not needed."""
    architecture = base.architecture(reporter)
    network = architecture.network(torch.device("meta"), torch.float32)
    layers = {name for name, layer in network.named_modules() if hasattr(layer, "weight")}
    return Target(architecture.has_pooled_text, layers, architecture.side_px)


def _as_file(content: Content, output: Path) -> tuple[list[File], int]:
    ((_, write),) = content.files.items()
    with replacing(output) as temporary:
        file = written(temporary, output, write)
        _refuse_taken(output)
    return [file], file.bytes


def _as_folder(
    content: Content, output: Path, lora_path: Path, lora: LoraFile, base: Base, reporter: Reporter
) -> tuple[list[File], int]:
    with committing(output, fingerprint=lora.digest()) as temporary:
        files = [written(temporary / name, output / name, write) for name, write in content.files.items()]
        told = [file for file in files if file.readers]
        beside = companions(lora_path, lora, base, output, told, is_lora=content.is_lora, reporter=reporter)
        for name, data in beside.items():
            write_file(temporary / name, data)
        _refuse_taken(output)
    return told, read_manifest(output).total_bytes


def _refuse_taken(output: Path) -> None:
    if output.exists():
        raise InputError(f"{output} has appeared meanwhile", "give --output another name")


def check_push(repo: str, output: Path) -> None:
    """Refuse what could not be published, before it is made.

    Raises:
        ConfigError: It is one file, or the name is no repository's.
        WeightsError: The network is forbidden, or the user has no login.
    """
    if output.suffix == FILE:
        raise ConfigError("--push-to-hub uploads a folder with its card", f"give an --output that ends not in {FILE}")
    check_login(repo)


def push(made: Exported, repo: str, reporter: Reporter) -> Exported:
    """Publish an export on the hub.

    Raises:
        WeightsError: It may not be written, or the hub cannot be reached.
        InputError: The hub refuses it.
    """
    reporter.say(f"uploading {made.path} to {repo}")
    return replace(made, url=publish(made.path, repo, (MANIFEST,)))


def default_output(lora_path: Path, *, fuse: bool) -> Path:
    """Where an export goes unless the user names a place: the working folder, named after the run."""
    name = lora_path.parent.name if lora_path.name == "lora.safetensors" else lora_path.stem
    return Path(f"{name}-fused" if fuse else f"{name}-lora")
