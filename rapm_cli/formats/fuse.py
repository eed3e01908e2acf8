"""A LoRA merged into a base's weights, tensor by tensor on their way from the base's files to new ones."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from rapm_cli.core.common.errors import InputError
from rapm_cli.formats import original
from rapm_cli.formats.header import read_header
from rapm_cli.formats.lora import LoraFile
from rapm_cli.formats.original import Original
from rapm_cli.formats.stream import DTYPES, Piece, Stored

OTHER_BASE = "give the --base that it was made for"
Part = Mapping[str, Stored]  # a part's tensors by name


@dataclass(frozen=True)
class FuseReport:
    """What rounding to the written dtype did to the update.

    Args:
        modules: Layers that were merged.
        mean_lost: Mean over modules of |rounded update - update| / |update|, Frobenius norms.
        worst_lost: The largest.
    """

    modules: int
    mean_lost: float
    worst_lost: float


def lora_update(down: Tensor, up: Tensor, scale: float) -> Tensor:
    """Scale * B A in float32, shaped as the layer's weight.

    Args:
        down: A, (r, in) or for a convolution (r, in, k, k).
        up: B, (out, r) or (out, r, 1, 1).
        scale: alpha / rank.
    """
    product = up.float().flatten(1) @ down.float().flatten(1)
    return scale * product.reshape(up.shape[0], *down.shape[1:])


def stored(paths: Iterable[Path]) -> dict[str, Stored]:
    """All tensors of some files, such as a part's shards, by name; only headers are read.

    Raises:
        InputError: A file is no whole safetensors file.
    """
    headers = {path: read_header(path) for path in paths}
    return {name: Stored(path, info) for path, header in headers.items() for name, info in header.tensors.items()}


@dataclass
class Merge:
    """A LoRA on its way into the weights of its layers, each computed in float32 and rounded once.

    Args:
        lora: What is merged.
        dtype: Of the UNet's floating tensors as safetensors names it; None keeps each as it is.
        lost: What rounding has cost so far, by layer.
    """

    lora: LoraFile
    dtype: str | None = None
    lost: dict[str, float] = field(default_factory=dict)

    def folder(self, unet: Part) -> dict[str, Piece]:
        """The pieces of a UNet in diffusers' layout.

        Raises:
            InputError: The LoRA does not fit it.
        """
        return self._unet(unet, {module: f"{module}.weight" for module in self.lora.modules})

    def checkpoint(self, parts: Mapping[str, Part]) -> dict[str, Piece]:
        """The pieces of one file in the original layout, from the parts of a diffusers folder.

        Args:
            parts: "unet", "vae", "text_encoder", and of an SDXL "text_encoder_2".

        Raises:
            InputError: The LoRA does not fit, or a tensor has no place in the original layout.
        """
        pieces = {}
        try:
            for part, tensors in parts.items():
                merged = self.folder(tensors) if part == "unet" else {name: _copy(one) for name, one in tensors.items()}
                for there in _originals(part, tensors, is_xl="text_encoder_2" in parts):
                    pieces[there.name] = _placed(there, merged, tensors)
        except (ValueError, KeyError) as error:
            raise InputError(
                f"the base has no place in one file in the original layout: {error}", "leave out --single-file"
            ) from error
        return pieces

    def original(self, state: Part) -> dict[str, Piece]:
        """The pieces of a checkpoint that is in the original layout already.

        Raises:
            InputError: The LoRA does not fit it.
        """
        attentive = original.attentive_originals(state)
        names = {}
        for module in self.lora.modules:
            try:
                names[module] = f"{original.UNET}{original.unet_layer(module, attentive)}.weight"
            except ValueError as error:
                raise InputError(f"the LoRA does not fit: {error}", OTHER_BASE) from error
        unet = {name: one for name, one in state.items() if name.startswith(original.UNET)}
        others = {name: _copy(one) for name, one in state.items() if name not in unet}
        return others | self._unet(unet, names)

    def report(self) -> FuseReport:
        """What was lost in all pieces that were made."""
        losses = self.lost.values()
        return FuseReport(len(losses), sum(losses) / max(1, len(losses)), max(losses, default=0.0))

    def _unet(self, tensors: Part, names: Mapping[str, str]) -> dict[str, Piece]:
        pieces = {name: _copy(one, self.dtype) for name, one in tensors.items()}
        for module, name in names.items():
            if name not in tensors:
                raise InputError(f"the LoRA changes {module}, which this base does not have", OTHER_BASE)
            down, up = (self.lora.state[f"{module}.lora_{half}.weight"] for half in "AB")
            if (up.shape[0], *down.shape[1:]) != tensors[name].info.shape:
                raise InputError(f"the LoRA's {module} has another shape than the base's", OTHER_BASE)
            if tensors[name].info.dtype not in DTYPES:
                raise InputError(
                    f"the base has its {module} in {tensors[name].info.dtype}, which nothing is merged into",
                    "give the base in 16 or 32 bits",
                )
            pieces[name] = self._merged(module, tensors[name], pieces[name].dtype)
        return pieces

    def _merged(self, module: str, weight: Stored, dtype: str) -> Piece:
        def make() -> Tensor:
            lora = self.lora
            down, up = (lora.state[f"{module}.lora_{half}.weight"] for half in "AB")
            before, update = weight.read().float(), lora_update(down, up, lora.alpha / lora.rank)
            whole = before + update
            made = whole.to(DTYPES[dtype])
            if not made.isfinite().all():
                raise InputError(
                    f"the LoRA makes {module} overflow in {dtype.lower()}", "give --dtype bf16 or fp32, or another LoRA"
                )
            size = float(update.norm())
            if size > 0:
                self.lost[module] = float((made.float() - whole).norm()) / size
            return made

        return Piece((weight,), dtype, weight.info.shape, make)


def _copy(one: Stored, dtype: str | None = None) -> Piece:
    is_cast = dtype not in (None, one.info.dtype) and one.info.dtype in DTYPES
    return Piece((one,), dtype if is_cast and dtype else one.info.dtype, one.info.shape, one.read if is_cast else None)


def _originals(part: str, tensors: Part, *, is_xl: bool) -> Iterable[Original]:
    shapes = {name: one.info.shape for name, one in tensors.items()}
    match part:
        case "unet":
            return original.unet_tensors(shapes)
        case "vae":
            return original.vae_tensors(shapes)
        case "text_encoder_2":
            return original.open_clip_tensors(shapes)
    return original.clip_tensors(shapes, original.CLIP_XL if is_xl else original.CLIP)


def _placed(there: Original, pieces: Mapping[str, Piece], tensors: Part) -> Piece:
    """A tensor of the original layout out of its sources."""
    first = pieces[there.sources[0]]
    sources = tuple(tensors[name] for name in there.sources)
    if len({source.info.dtype for source in sources}) > 1:
        raise ValueError(f"{there.sources[0]} and its fellows are of different dtypes")
    make = (lambda: sources[0].read().t()) if there.is_transposed else first.make
    return Piece(sources, first.dtype, there.shape, make)
