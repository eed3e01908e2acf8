"""What an export consists of, planned before anything is written: a writer for each file, which verifies it."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from rapm_cli.bases import Base, Weights
from rapm_cli.bases.weights import FP16, read_json
from rapm_cli.core.common.errors import ConfigError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.storage.commit import MANIFEST
from rapm_cli.core.storage.files import file_sha256, write_file
from rapm_cli.formats.exports import EXPORTS, verify_lora
from rapm_cli.formats.folder import INDEX, SCHEDULER, with_sampler
from rapm_cli.formats.fuse import Merge, stored
from rapm_cli.formats.kohya import Target
from rapm_cli.formats.lora import LoraFile
from rapm_cli.formats.modelspec import SGM, model_spec
from rapm_cli.formats.programs import PROGRAMS, Verdict
from rapm_cli.formats.recipe import RECIPE_FILE
from rapm_cli.formats.stream import Piece, verify_pieces, write_pieces

FILE = ".safetensors"
CARD, SHEET = "README.md", "sheet.png"
ANEW = (RECIPE_FILE, CARD, SHEET, MANIFEST)  # files of a base that an export has of its own
UNET_FILE = f"unet/diffusion_pytorch_model{FILE}"
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
Write = Callable[[Path], Sequence[Verdict]]


@dataclass(frozen=True)
class Content:
    """What an export consists of.

    Args:
        files: Names in its folder to what writes and verifies each, and says which programs read it.
        nbytes: Size of all, about.
        is_lora: Whether it is the LoRA; else it is a whole model.
    """

    files: dict[str, Write]
    nbytes: int
    is_lora: bool


@dataclass(frozen=True)
class File:
    """A file of an export that was read back.

    Args:
        path: Of it.
        bytes: Its size.
        sha256: Its checksum.
        verdicts: What each program makes of it; none for what is no file of weights by itself.
    """

    path: Path
    bytes: int
    sha256: str
    verdicts: Sequence[Verdict]

    @property
    def readers(self) -> list[str]:
        """The programs that read it."""
        return [one.program for one in self.verdicts if not one.reason]


def written(path: Path, final: Path, write: Write) -> File:
    """Write a file at `path`, which will lie at `final`; its folder is made.

    Raises:
        OSError: It cannot be written.
        VerificationError: It did not turn out as it should.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    verdicts = write(path)
    return File(final, path.stat().st_size, file_sha256(path), verdicts)


def loras(lora: LoraFile, target: Target, name: str, formats: Sequence[str], dtype: torch.dtype | None) -> Content:
    """The LoRA in some forms.

    Args:
        lora: What is written.
        target: The base that it is for.
        name: What the files' names begin with.
        formats: Names from `EXPORTS`.
        dtype: Of the weights; None keeps theirs.
    """

    def write(path: Path, form: str) -> Sequence[Verdict]:
        EXPORTS[form](path, lora, target, dtype)
        return verify_lora(path, lora, target)

    files: dict[str, Write] = {f"{name}-{form}{FILE}": partial(write, form=form) for form in formats}
    size = sum(value.nbytes for value in lora.state.values())
    return Content(files, 2 * len(files) * size, is_lora=True)


def folder(base: Base, merge: Merge, reporter: Reporter) -> Content:
    """A diffusers folder whose UNet has the LoRA in it, and whose sampler is the student's.

    Args:
        base: The base that the LoRA was distilled from, in diffusers layout.
        merge: The LoRA, and the dtype of the UNet.
        reporter: Sees a bar of bytes.

    Raises:
        ConfigError: The base has no folder.
        InputError: The LoRA does not fit, or the base's files are not all there.
    """
    weights = base.locate(reporter)
    if weights.checkpoint:
        raise ConfigError(
            f"base {base.name} has no folder to merge into",
            "give --single-file, or --base the model in diffusers layout",
        )
    weights.check("unet")
    names = {name: plain for name, plain in weights.plain_names().items() if name not in ANEW}
    unet = weights.files_of("unet")
    copied = {
        plain: weights.folder / name
        for name, plain in names.items()
        if weights.folder / name not in unet and not plain.startswith("unet/diffusion_pytorch_model")
    }
    files: dict[str, Write] = {plain: partial(_copy, source=source) for plain, source in copied.items()}
    for name in (INDEX, SCHEDULER):
        said = with_sampler(name, read_json(weights.folder / name), merge.lora.sampler)
        files[name] = partial(_bytes, data=said)
    files[RECIPE_FILE] = partial(_bytes, data=(json.dumps(merge.lora.recipe, indent=2) + "\n").encode())
    pieces = merge.folder(stored(unet))
    files[UNET_FILE] = partial(
        _merged, pieces=pieces, metadata={"format": "pt"}, readers=PROGRAMS[:1], reporter=reporter
    )
    return Content(files, _size(pieces) + sum(source.stat().st_size for source in copied.values()), is_lora=False)


def checkpoint(base: Base, merge: Merge, name: str, reporter: Reporter) -> Content:
    """One checkpoint in the original layout, which ComfyUI and A1111 open, with the LoRA in it.

    Args:
        base: The base that the LoRA was distilled from.
        merge: The LoRA, and the dtype of the UNet; all else is copied byte for byte.
        name: Of the file, without its end.
        reporter: Sees a bar of bytes.

    Raises:
        InputError: The LoRA does not fit, the base's files are not all there, or the original layout has no place for
            one of its tensors.
    """
    weights, architecture = base.locate(reporter), base.architecture(reporter)
    pieces = _original_pieces(weights, merge)
    is_xl, side_px = architecture.has_pooled_text, architecture.side_px
    metadata = model_spec(merge.lora.recipe, is_xl=is_xl, is_lora=False, implementation=SGM, side_px=side_px)
    metadata |= {"modelspec.merged_from": base.name}
    write = partial(_merged, pieces=pieces, metadata=metadata, readers=PROGRAMS, reporter=reporter)
    return Content({f"{name}{FILE}": write}, _size(pieces), is_lora=False)


def _original_pieces(weights: Weights, merge: Merge) -> dict[str, Piece]:
    if weights.checkpoint:
        return merge.original(stored([weights.checkpoint]))
    present = [part for part in PARTS if (weights.folder / part).is_dir()]
    for part in present:
        weights.check(part)
    pieces = merge.checkpoint({part: stored(weights.files_of(part)) for part in present})
    predicts = read_json(weights.folder / SCHEDULER).get("prediction_type")
    return pieces | ({"v_pred": Piece((), "F32", (0,))} if predicts == "v_prediction" else {})  # an empty mark


def _merged(
    path: Path, pieces: dict[str, Piece], metadata: dict[str, str], readers: Sequence[str], reporter: Reporter
) -> list[Verdict]:
    with reporter.bar("merging", _size(pieces), "byte", torch.device("cpu")) as bar:
        write_pieces(path, pieces, metadata, bar.advance)
    with reporter.bar("verifying", _size(pieces), "byte", torch.device("cpu")) as bar:
        verify_pieces(path, pieces, metadata, bar.advance)
    return [Verdict(program, "") for program in readers]


def _size(pieces: dict[str, Piece]) -> int:
    return sum(piece.nbytes for piece in pieces.values())


def _copy(path: Path, source: Path) -> list[Verdict]:
    if path.name.endswith(".index.json"):  # of shards, which it names
        path.write_text(source.read_text().replace(f".{FP16}", ""))
    else:
        shutil.copyfile(source, path)
    return []


def _bytes(path: Path, data: bytes) -> list[Verdict]:
    write_file(path, data)
    return []
