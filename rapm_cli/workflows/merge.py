"""A base with a LoRA merged in, streamed from the base's files to a folder or to one file, and read back."""

import json
import shutil
from pathlib import Path

import torch

from rapm_cli.bases import Base, Weights
from rapm_cli.bases.weights import FP16
from rapm_cli.core.commit import MANIFEST, committing
from rapm_cli.core.errors import ConfigError, InputError
from rapm_cli.core.files import replacing, write_file
from rapm_cli.core.watch import Watcher
from rapm_cli.formats.folder import set_sampler
from rapm_cli.formats.fuse import FuseReport, Merge, stored
from rapm_cli.formats.modelspec import SGM, model_spec
from rapm_cli.formats.stream import Piece, verify_pieces, write_pieces
from rapm_cli.workflows.disk import with_retries

RECIPE = "rapm_recipe.json"
UNET_FILE = "unet/diffusion_pytorch_model.safetensors"
NOTHING, AGAIN = "nothing of it is left", "free space, and run the same command again"


def merge_to_folder(base: Base, merge: Merge, output: Path, watcher: Watcher) -> FuseReport:
    """Write a diffusers folder whose UNet has the LoRA in it, and whose sampler is the student's.

    Args:
        base: The base that the LoRA was distilled from, in diffusers layout.
        merge: The LoRA, and the dtype of the UNet.
        output: Folder to write.
        watcher: Sees a bar of bytes, and is told of a full disk.

    Raises:
        ConfigError: The base has no folder.
        InputError: The LoRA does not fit, or the base's files are not all there.
        DiskError: It cannot be written; nothing is left.
        VerificationError: What was read back is not what was written; nothing is left.
    """
    weights = base.locate(watcher)
    if weights.checkpoint:
        raise ConfigError(
            f"base {base.name} has no folder to merge into",
            "give --single-file, or --base the model in diffusers layout",
        )
    weights.check("unet")
    names = {name: plain for name, plain in weights.plain_names().items() if name not in (RECIPE, MANIFEST)}
    unet = {path.relative_to(weights.folder).as_posix() for path in weights.files_of("unet")}
    copied = {name: plain for name, plain in names.items() if name not in unet and not _is_index(plain, "unet")}
    pieces = merge.folder(stored(weights.files_of("unet")))
    size = sum(piece.nbytes for piece in pieces.values()) + sum(
        (weights.folder / name).stat().st_size for name in copied
    )

    def write() -> None:
        with committing(output, fingerprint=merge.lora.digest()) as temporary:
            for name, plain in copied.items():
                _copy_file(weights.folder / name, temporary / plain)
            target = temporary / UNET_FILE
            target.parent.mkdir(exist_ok=True)
            _write(target, pieces, {"format": "pt"}, watcher)
            set_sampler(temporary, merge.lora.sampler)
            write_file(temporary / RECIPE, (json.dumps(merge.lora.recipe, indent=2) + "\n").encode())
            _refuse_taken(output)

    with_retries(write, output, size, watcher, NOTHING, AGAIN)
    return merge.report()


def merge_to_file(base: Base, merge: Merge, output: Path, watcher: Watcher) -> FuseReport:
    """Write one checkpoint in the original layout, which ComfyUI and A1111 open, with the LoRA in it.

    Args:
        base: The base that the LoRA was distilled from.
        merge: The LoRA, and the dtype of the UNet; all else is copied byte for byte.
        output: File to write.
        watcher: Sees a bar of bytes, and is told of a full disk.

    Raises:
        InputError: The LoRA does not fit, the base's files are not all there, or the original layout has no place for
            one of its tensors.
        DiskError: It cannot be written; nothing is left.
        VerificationError: What was read back is not what was written; nothing is left.
    """
    weights, architecture = base.locate(watcher), base.architecture(watcher)
    pieces = _checkpoint_pieces(weights, merge)
    is_xl = architecture.has_pooled_text
    metadata = model_spec(
        merge.lora.recipe, is_xl=is_xl, is_lora=False, implementation=SGM, side_px=architecture.side_px
    )
    metadata |= {"modelspec.merged_from": base.name}

    def write() -> None:
        with replacing(output) as temporary:
            _write(temporary, pieces, metadata, watcher)
            _refuse_taken(output)

    with_retries(write, output, sum(piece.nbytes for piece in pieces.values()), watcher, NOTHING, AGAIN)
    return merge.report()


def _checkpoint_pieces(weights: Weights, merge: Merge) -> dict[str, Piece]:
    if weights.checkpoint:
        return merge.original(stored([weights.checkpoint]))
    parts = ["unet", "vae", "text_encoder", "text_encoder_2"]
    present = [part for part in parts if (weights.folder / part).is_dir()]
    for part in present:
        weights.check(part)
    pieces = merge.checkpoint({part: stored(weights.files_of(part)) for part in present})
    predicts = weights.config("scheduler", "scheduler_config.json").get("prediction_type")
    return pieces | ({"v_pred": Piece((), "F32", (0,))} if predicts == "v_prediction" else {})  # an empty mark


def _write(path: Path, pieces: dict[str, Piece], metadata: dict[str, str], watcher: Watcher) -> None:
    total = sum(piece.nbytes for piece in pieces.values())
    with watcher.bar("merging", total, "byte", torch.device("cpu")) as bar:
        write_pieces(path, pieces, metadata, bar.advance)
    with watcher.bar("verifying", total, "byte", torch.device("cpu")) as bar:
        verify_pieces(path, pieces, metadata, bar.advance)


def _copy_file(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.name.endswith(".index.json"):  # of shards, which it names
        target.write_text(source.read_text().replace(f".{FP16}", ""))
    else:
        shutil.copyfile(source, target)


def _is_index(plain: str, part: str) -> bool:
    return plain.startswith(f"{part}/") and plain.endswith(".index.json")


def _refuse_taken(output: Path) -> None:
    if output.exists():
        raise InputError(f"{output} has appeared meanwhile", "give --output another name")
