"""Write a run's LoRA for other programs: the LoRA in several formats, or the base with the LoRA fused in."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from rapm_cli.bases import Base
from rapm_cli.bases.device import DTYPES
from rapm_cli.bases.hub import check_login, publish
from rapm_cli.core.common.errors import ConfigError, InputError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.storage.commit import MANIFEST, committing, read_manifest
from rapm_cli.core.storage.files import replacing, sweep, write_file
from rapm_cli.export.plan import (
    ExportedFile,
    ExportPlan,
    plan_fused_checkpoint,
    plan_fused_folder,
    plan_lora,
    write_verified,
)
from rapm_cli.export.sidecars import build_sidecars
from rapm_cli.formats.exports import EXPORTS
from rapm_cli.formats.fuse import FuseReport, LoraFuser
from rapm_cli.formats.header import SUFFIX
from rapm_cli.formats.kohya import LoraTarget
from rapm_cli.formats.lora import LoraFile, load_lora
from rapm_cli.formats.lora_stack import stack_loras
from rapm_cli.runs.retry import with_retries

Dtype = Literal["base", "fp16", "bf16", "fp32"]
SAFETENSORS_DTYPES: dict[Dtype, str | None] = {
    "fp16": "F16",
    "bf16": "BF16",
    "fp32": "F32",
    "base": None,
}  # by the value of --dtype
PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
NOTHING_LEFT, RETRY = "no part of the export was kept", "run the same command again"


@dataclass(frozen=True)
class ExportResult:
    """A finished export.

    Args:
        path: File or folder of the export.
        total_bytes: Size of the export.
        files: Files with weights that other programs read.
        report: What rounding changed in a fused update; None for a LoRA.
        url: Address on the hub; empty where the export was not uploaded.
    """

    path: Path
    total_bytes: int
    files: list[ExportedFile] = field(default_factory=list)
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
    dtype: Dtype = "base",
    absorb: bool = False,
) -> ExportResult:
    """Write one export and verify it. A failed export leaves no file behind.

    Args:
        lora_path: LoRA file to export.
        base: Base that the LoRA was distilled from.
        output: Path to write: a file where it ends in `.safetensors`, else a folder with a model card.
        reporter: Shows bars, and warns of a full disk.
        formats: Names from `EXPORTS`. By default a folder gets all, and a file kohya's, which most programs read.
        fuse: Fuse the LoRA into the base's weights.
        single_file: With `fuse`, write one checkpoint in the original layout.
        dtype: Dtype of the written UNet or LoRA; "base" keeps it.
        absorb: Write one LoRA that holds the base's LoRAs too.

    Raises:
        ConfigError: A format is unknown, options contradict each other, or the base has no folder to fuse into.
        InputError: The output exists, the LoRA does not fit, or files of the base are missing.
        DiskError: The output cannot be written.
        VerificationError: The bytes read back differ from those written.
    """
    is_file = output.suffix == SUFFIX
    if output.suffix in PICKLE_SUFFIXES:
        raise ConfigError(f"--output {output} names a pickle, which rapm never writes", f"end it in {SUFFIX}")
    _check_options(formats, fuse, single_file, is_file)
    if absorb and (fuse or not base.loras):
        reason = "and --fuse merges all LoRAs anyway" if fuse else f"and {lora_path} was distilled on none"
        raise ConfigError(f"--absorb takes the LoRAs of the base into this one, {reason}", "leave --absorb out")
    lora = load_lora(lora_path)
    if base.bare and (fuse or absorb):
        lora, base = absorbed(lora, base, reporter), base.bare
    if output.exists():
        raise InputError(f"{output} exists", "give --output another name, or remove it")
    sweep(output.parent)
    fuser = LoraFuser(lora, SAFETENSORS_DTYPES[dtype]) if fuse else None
    if fuser is None:
        names = formats or (["kohya"] if is_file else EXPORTS.names())
        target = replace(lora_target(base, reporter), alias=output.stem if is_file else "")
        plan = plan_lora(lora, target, output.name, names, DTYPES.get(dtype))
    elif single_file:
        name = output.stem if is_file else output.name
        plan = plan_fused_checkpoint(base, fuser, name, reporter, has_workflow=not is_file)
    else:
        plan = plan_fused_folder(base, fuser, reporter)

    def write() -> tuple[list[ExportedFile], int]:
        return _write_file(plan, output) if is_file else _write_folder(plan, output, lora_path, lora, base, reporter)

    files, total = with_retries(write, output, plan.nbytes, reporter, NOTHING_LEFT, RETRY)
    return ExportResult(output, total, files, fuser.report() if fuser else None)


def absorbed(lora: LoraFile, base: Base, reporter: Reporter) -> LoraFile:
    """Return one LoRA for the bare base that replaces a LoRA and those that its base is merged with.

    Args:
        lora: LoRA to write.
        base: Its base, with LoRAs.
        reporter: Shows requests to the hub.
    """
    identity = (base.bare or base).identity(reporter)
    about = {"absorbed": [one.record for one in base.loras], "base_identity": identity}
    recipe = {name: value for name, value in lora.recipe.items() if name != "base_loras"} | about
    return stack_loras([(lora, 1.0), *((load_lora(one.path), one.weight) for one in base.loras)], recipe)


def _check_options(formats: Sequence[str], fuse: bool, single_file: bool, is_file: bool) -> None:
    if single_file and not fuse:
        raise ConfigError("--single-file goes with --fuse", "a LoRA is one file anyway")
    if fuse and formats:
        raise ConfigError("--format is for a LoRA, and --fuse writes a whole model", "leave one of the two out")
    if fuse and is_file and not single_file:
        raise ConfigError("--fuse writes a folder", f"give --single-file, or an --output that does not end in {SUFFIX}")
    for name in formats:
        EXPORTS[name]
    if is_file and len(formats) > 1:
        raise ConfigError("one file has one format", "give --output a folder, or one --format")


def lora_target(base: Base, reporter: Reporter) -> LoraTarget:
    """Return the layer names and the image size of a base; its weights are not needed."""
    architecture = base.architecture(reporter)
    network = architecture.network(torch.device("meta"), torch.float32)
    layers = {name for name, layer in network.named_modules() if hasattr(layer, "weight")}
    return LoraTarget(
        architecture.has_pooled_text, layers, architecture.image_size, has_usual_shapes=architecture.has_usual_shapes
    )


def _write_file(plan: ExportPlan, output: Path) -> tuple[list[ExportedFile], int]:
    ((_, write),) = plan.files.items()
    with replacing(output) as temporary:
        file = write_verified(temporary, output, write)
        _check_absent(output)
    return [file], file.bytes


def _write_folder(
    plan: ExportPlan, output: Path, lora_path: Path, lora: LoraFile, base: Base, reporter: Reporter
) -> tuple[list[ExportedFile], int]:
    with committing(output, fingerprint=lora.digest()) as temporary:
        files = [write_verified(temporary / name, output / name, write) for name, write in plan.files.items()]
        readable = [file for file in files if file.readers]
        sidecars = build_sidecars(lora_path, lora, base, output, readable, is_lora=plan.is_lora, reporter=reporter)
        for name, data in sidecars.items():
            write_file(temporary / name, data)
        _check_absent(output)
    return readable, read_manifest(output).total_bytes


def _check_absent(output: Path) -> None:
    if output.exists():
        raise InputError(f"{output} was made by another process during the export", "give --output another name")


def check_push(repo: str, output: Path) -> None:
    """Check before the export that it can be uploaded.

    Raises:
        ConfigError: The output is one file, or `repo` is not a repository's name.
        WeightsError: The network is forbidden, or the user is not logged in.
    """
    if output.suffix == SUFFIX:
        raise ConfigError(
            "--push-to-hub uploads a folder with its card", f"give an --output that does not end in {SUFFIX}"
        )
    check_login(repo)


def push(made: ExportResult, repo: str, reporter: Reporter) -> ExportResult:
    """Upload an export to the hub, and return it with its address.

    Raises:
        WeightsError: The user may not write there, or the hub cannot be reached.
        InputError: The hub refuses the export.
    """
    reporter.say(f"uploading {made.path} to {repo}")
    return replace(made, url=publish(made.path, repo, (MANIFEST,)))


def default_output(lora_path: Path, *, fuse: bool) -> Path:
    """Return the default folder of an export: below the working folder, named after the run."""
    name = lora_path.parent.name if lora_path.name == "lora.safetensors" else lora_path.stem
    return Path(f"{name}-fused" if fuse else f"{name}-lora")
