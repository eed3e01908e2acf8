"""Plan an export before anything is written: one function for each file, which writes and verifies it."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rapm_cli.bases import Base, Weights
from rapm_cli.bases.support import V_PREDICTION
from rapm_cli.bases.weights import FP16, read_json
from rapm_cli.core.common.errors import ConfigError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.method.samplers import Sampler
from rapm_cli.core.storage.commit import MANIFEST
from rapm_cli.core.storage.files import file_sha256, write_file
from rapm_cli.export.transformers4 import named_encoders, tokenizer_files
from rapm_cli.formats.exports import EXPORTS, verify_lora
from rapm_cli.formats.fuse import LoraFuser, open_tensors
from rapm_cli.formats.header import SUFFIX
from rapm_cli.formats.kohya import LoraTarget
from rapm_cli.formats.lora import LoraFile
from rapm_cli.formats.modelspec import SGM, model_spec
from rapm_cli.formats.original_layout import V_TENSOR, ZERO_SNR_TENSOR, clip_name
from rapm_cli.formats.programs import PROGRAMS, Verdict, checkpoint_verdicts
from rapm_cli.formats.recipe import MODEL_INDEX, RECIPE_FILE, SCHEDULER_CONFIG
from rapm_cli.formats.safetensors_writer import OutputTensor, stream_tensors, verify_tensors

CARD, SHEET = "README.md", "sheet.png"
REPLACED_FILES = (RECIPE_FILE, CARD, SHEET, MANIFEST)  # an export writes its own, and does not copy the base's
UNET_FILE = f"unet/diffusion_pytorch_model{SUFFIX}"
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
FileWriter = Callable[[Path], Sequence[Verdict]]


@dataclass(frozen=True)
class ExportPlan:
    """Files that an export will write.

    Args:
        files: File names, relative to the export's folder, to functions. Each function writes its file to the path
            that it gets, verifies it, and returns the verdict of each program.
        nbytes: Approximate size of all files, in bytes.
        is_lora: True where the files hold the LoRA; False where they hold a whole model.
    """

    files: dict[str, FileWriter]
    nbytes: int
    is_lora: bool


@dataclass(frozen=True)
class ExportedFile:
    """A file of an export, written and verified.

    Args:
        path: Path of the file.
        bytes: Size of the file.
        sha256: Checksum of the file, in hexadecimal digits.
        verdicts: One verdict for each program; empty for a file without weights.
    """

    path: Path
    bytes: int
    sha256: str
    verdicts: Sequence[Verdict]

    @property
    def readers(self) -> list[str]:
        """Names of the programs that read the file."""
        return [one.program for one in self.verdicts if not one.reason]


def write_verified(path: Path, final: Path, write: FileWriter) -> ExportedFile:
    """Write and verify one file, and make its folder.

    Args:
        path: Path to write to now.
        final: Path that the file will have once the export is complete.
        write: Function that writes and verifies the file.

    Raises:
        OSError: The file cannot be written.
        VerificationError: The bytes read back differ from those written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    verdicts = write(path)
    return ExportedFile(final, path.stat().st_size, file_sha256(path), verdicts)


def plan_lora(
    lora: LoraFile, target: LoraTarget, name: str, formats: Sequence[str], dtype: torch.dtype | None
) -> ExportPlan:
    """Plan the LoRA alone, one file for each format.

    Args:
        lora: LoRA to write.
        target: UNet that the LoRA is for.
        name: Stem of the file names.
        formats: Names from `EXPORTS`.
        dtype: Dtype of the written weights; None keeps the LoRA's own.
    """

    def write(path: Path, form: str) -> Sequence[Verdict]:
        EXPORTS[form](path, lora, target, dtype)
        return verify_lora(path, lora, target)

    files: dict[str, FileWriter] = {f"{name}-{form}{SUFFIX}": partial(write, form=form) for form in formats}
    size = sum(value.nbytes for value in lora.state.values())
    return ExportPlan(files, 2 * len(files) * size, is_lora=True)


def plan_fused_folder(base: Base, fuser: LoraFuser, reporter: Reporter) -> ExportPlan:
    """Plan a diffusers folder whose UNet contains the LoRA and whose scheduler is the student's.

    Args:
        base: Base that the LoRA was distilled from, in diffusers layout.
        fuser: LoRA, and the dtype of the written UNet.
        reporter: Shows a bar of bytes.

    Raises:
        ConfigError: The base is one checkpoint file, not a folder.
        InputError: The LoRA does not fit the base, or files of the base are missing.
    """
    weights = base.locate(reporter)
    if weights.checkpoint:
        raise ConfigError(
            f"base {base.name} has no folder to merge into",
            "give --single-file, or --base the model in diffusers layout",
        )
    weights.check("unet")
    names = {name: plain for name, plain in weights.plain_names().items() if name not in REPLACED_FILES}
    unet = weights.files_of("unet")
    copied = {
        plain: weights.folder / name
        for name, plain in names.items()
        if weights.folder / name not in unet and not plain.startswith("unet/diffusion_pytorch_model")
    }
    files: dict[str, FileWriter] = {plain: partial(_copy_file, source=source) for plain, source in copied.items()}
    for name in (MODEL_INDEX, SCHEDULER_CONFIG):
        config = with_sampler(name, read_json(weights.folder / name), fuser.lora.sampler)
        files[name] = partial(_write_bytes, data=config)
    files[RECIPE_FILE] = partial(_write_bytes, data=(json.dumps(fuser.lora.recipe, indent=2) + "\n").encode())
    files |= {name: partial(_write_bytes, data=data) for name, data in tokenizer_files(weights).items()}
    outputs = fuser.fuse_unet(open_tensors(unet))
    write = partial(_write_fused, metadata={"format": "pt"}, reporter=reporter)
    for name, tensors in named_encoders(weights).items():
        files[name] = partial(write, outputs=tensors, verdicts=())
    files[UNET_FILE] = partial(write, outputs=outputs, verdicts=[Verdict(PROGRAMS[0], "")])
    nbytes = _total_bytes(outputs) + sum(source.stat().st_size for source in copied.values())
    return ExportPlan(files, nbytes, is_lora=False)


def plan_fused_checkpoint(
    base: Base, fuser: LoraFuser, name: str, reporter: Reporter, *, has_workflow: bool
) -> ExportPlan:
    """Plan one checkpoint in the original layout, which ComfyUI and A1111 open, with the LoRA fused in.

    Args:
        base: Base that the LoRA was distilled from.
        fuser: LoRA, and the dtype of the written UNet; all other tensors are copied byte for byte.
        name: Stem of the file name.
        reporter: Shows a bar of bytes.
        has_workflow: True where a ComfyUI workflow lies beside the file.

    Raises:
        InputError: The LoRA does not fit the base, files of the base are missing, or the original layout has no place
            for one of its tensors.
    """
    weights, architecture = base.locate(reporter), base.architecture(reporter)
    is_v = base.prediction_type == V_PREDICTION
    outputs = _original_outputs(weights, fuser, _marks(base))
    is_xl, size = architecture.has_pooled_text, architecture.image_size
    metadata = model_spec(fuser.lora.recipe, is_xl=is_xl, is_lora=False, implementation=SGM, size=size)
    metadata |= {"modelspec.merged_from": base.name}
    metadata |= {"modelspec.prediction_type": "v"} if is_v else {}  # sd-scripts' word
    found = checkpoint_verdicts(architecture.has_usual_shapes, is_xl=is_xl, is_v=is_v, has_workflow=has_workflow)
    write = partial(_write_fused, outputs=outputs, metadata=metadata, verdicts=found, reporter=reporter)
    return ExportPlan({f"{name}{SUFFIX}": write}, _total_bytes(outputs), is_lora=False)


def with_sampler(name: str, config: dict[str, Any], sampler: Sampler) -> bytes:
    """Return one of the two config files that name the scheduler, with the student's scheduler in it.

    Args:
        name: `MODEL_INDEX` or `SCHEDULER_CONFIG`.
        config: Content of the base's file.
        sampler: Sampler of the student; for most methods DDIM with trailing timesteps.
    """
    kind = f"{sampler.scheduler}Scheduler"
    new = {"scheduler": ["diffusers", kind]} if name == MODEL_INDEX else {"_class_name": kind, **sampler.settings}
    return (json.dumps(config | new, indent=2) + "\n").encode()


def _marks(base: Base) -> dict[str, OutputTensor]:
    """Return empty tensors whose names tell ComfyUI and rapm what the network predicts, and down to which signal."""
    marks = {V_TENSOR: base.prediction_type == V_PREDICTION, ZERO_SNR_TENSOR: base.has_zero_snr}
    return {name: OutputTensor((), "F32", (0,)) for name, is_true in marks.items() if is_true}


def _original_outputs(weights: Weights, fuser: LoraFuser, marks: dict[str, OutputTensor]) -> dict[str, OutputTensor]:
    if weights.checkpoint:
        fused = fuser.fuse_checkpoint(open_tensors([weights.checkpoint]))
        return marks | {clip_name(name): output for name, output in fused.items()}
    present = [part for part in PARTS if (weights.folder / part).is_dir()]
    for part in present:
        weights.check(part)
    return marks | fuser.fuse_folder({part: open_tensors(weights.files_of(part)) for part in present})


def _write_fused(
    path: Path,
    outputs: dict[str, OutputTensor],
    metadata: dict[str, str],
    verdicts: Sequence[Verdict],
    reporter: Reporter,
) -> Sequence[Verdict]:
    with reporter.bar("merging", _total_bytes(outputs), "byte", torch.device("cpu")) as bar:
        stream_tensors(path, outputs, metadata, bar.advance)
    with reporter.bar("verifying", _total_bytes(outputs), "byte", torch.device("cpu")) as bar:
        verify_tensors(path, outputs, metadata, bar.advance)
    return verdicts


def _total_bytes(outputs: dict[str, OutputTensor]) -> int:
    return sum(output.nbytes for output in outputs.values())


def _copy_file(path: Path, source: Path) -> list[Verdict]:
    if path.name.endswith(".index.json"):  # it names the shards, which lose their variant suffix
        path.write_text(source.read_text().replace(f".{FP16}", ""))
    else:
        shutil.copyfile(source, path)
    return []


def _write_bytes(path: Path, data: bytes) -> list[Verdict]:
    write_file(path, data)
    return []
