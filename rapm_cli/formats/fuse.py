"""Fuse a LoRA into a base's weights: on disk, tensor by tensor, or into a network in memory."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from rapm_cli.core.common.errors import InputError
from rapm_cli.core.network.backbone import Backbone
from rapm_cli.formats import original_layout
from rapm_cli.formats.header import read_header
from rapm_cli.formats.lora import LoraFile, wrong_base_error
from rapm_cli.formats.original_layout import OriginalTensor
from rapm_cli.formats.safetensors_writer import DTYPES, OutputTensor, StoredTensor

WRONG_BASE_REMEDY = "give the --base that it was made for"
# Mean over layers of |rounded update - update| / |update|.
# Measured: the demo base's images with fused and with separate updates are equally far from float32's (mean over
# pixels 1.88 and 1.87 of 255 in bf16, 0.153 and 0.155 in fp16) up to 0.13, the most that was met. 2 CPU cores, 2026-11.
MAX_ROUNDING_LOSS = 0.13
StoredTensors = Mapping[str, StoredTensor]  # tensors of one part of a model, by name


@dataclass(frozen=True)
class FuseReport:
    """How much rounding to the written dtype changed the update.

    Args:
        modules: Number of fused layers.
        mean_lost: Mean over layers of |rounded update - update| / |update|, Frobenius norms.
        worst_lost: Largest of these values.
    """

    modules: int
    mean_lost: float
    worst_lost: float


def lora_update(down: Tensor, up: Tensor, scale: float) -> Tensor:
    """Return scale * B A in float32, shaped as the layer's weight.

    Args:
        down: A, (r, in) or for a convolution (r, in, k, k).
        up: B, (out, r) or (out, r, 1, 1).
        scale: alpha / rank.
    """
    product = up.float().flatten(1) @ down.float().flatten(1)
    return scale * product.reshape(up.shape[0], *down.shape[1:])


def check_lora_fits(unet: nn.Module, lora: LoraFile, path: Path) -> None:
    """Check that a network has every layer of a LoRA, in the LoRA's shapes; the network may be without data.

    Args:
        unet: Network in diffusers' layout.
        lora: LoRA to check.
        path: LoRA's file, for messages.

    Raises:
        InputError: The LoRA was made for another base.
    """
    layers = dict(unet.named_modules())
    for name in lora.modules:
        layer = layers.get(name)
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            raise wrong_base_error(path, lora, f"it has no layer {name}")
        down, up = lora.factors(name)
        if (up.shape[0], *down.shape[1:]) != layer.weight.shape:
            raise wrong_base_error(path, lora, f"the shape of {name} differs")


@torch.no_grad()
def fuse_lora(backbone: Backbone, lora: LoraFile, path: Path) -> bool:
    """Fuse a LoRA into a network in memory, unless rounding would lose the update.

    Every update is added in float32, and the sum is rounded once. A fused network needs fewer kernels for each image.

    Args:
        backbone: Network without a LoRA; once fused, it is the student alone.
        lora: LoRA to fuse.
        path: LoRA's file, for messages.

    Returns:
        True where the LoRA was fused; False where the mean loss would exceed `MAX_ROUNDING_LOSS` and nothing changed.

    Raises:
        InputError: The LoRA was made for another base.
    """
    check_lora_fits(backbone.unet, lora, path)
    layers = dict(backbone.unet.named_modules())
    losses = []
    for is_measured in (True, False):
        for name in lora.modules:
            layer = layers[name]
            down, up = (half.to(backbone.device) for half in lora.factors(name))
            before, update = layer.weight.float(), lora_update(down, up, lora.alpha / lora.rank)
            after = (before + update).to(layer.weight.dtype)
            if is_measured:
                losses.append((after.float() - before - update).norm() / update.norm().clamp(min=1e-30))
            else:
                layer.weight.copy_(after)
        if torch.stack(losses).mean() > MAX_ROUNDING_LOSS:
            return False
    return True


def open_tensors(paths: Iterable[Path]) -> dict[str, StoredTensor]:
    """Return all tensors of some files, such as the shards of one part, by name. Only headers are read.

    Raises:
        InputError: A file is not a complete safetensors file.
    """
    headers = {path: read_header(path) for path in paths}
    return {name: StoredTensor(path, info) for path, header in headers.items() for name, info in header.tensors.items()}


@dataclass
class LoraFuser:
    """Fuses a LoRA into the weights of stored files: every sum is computed in float32 and rounded once.

    Args:
        lora: LoRA to fuse.
        dtype: Dtype of the UNet's floating tensors, as safetensors names it; None keeps the dtype of each.
        lost: Relative change of the update by rounding, by layer; filled while tensors are computed.
    """

    lora: LoraFile
    dtype: str | None = None
    lost: dict[str, float] = field(default_factory=dict)

    def fuse_unet(self, unet: StoredTensors) -> dict[str, OutputTensor]:
        """Return the fused tensors of a UNet in diffusers' layout.

        Raises:
            InputError: The LoRA does not fit the UNet.
        """
        return self._fused_unet(unet, self._folder_names())

    def fuse_folder(self, parts: Mapping[str, StoredTensors]) -> dict[str, OutputTensor]:
        """Return the tensors of one file in the original layout, from the parts of a diffusers folder.

        Args:
            parts: Tensors of "unet", "vae", "text_encoder", and for SDXL of "text_encoder_2".

        Raises:
            InputError: The LoRA does not fit, or a tensor has no place in the original layout.
        """
        outputs = {}
        try:
            for part, tensors in parts.items():
                if part == "unet":
                    fused = self.fuse_unet(tensors)
                else:
                    fused = {name: _copied(one) for name, one in tensors.items()}
                for original in _original_tensors(part, tensors, is_xl="text_encoder_2" in parts):
                    outputs[original.name] = _renamed(original, fused, tensors)
        except (ValueError, KeyError) as error:
            raise InputError(
                f"the base has no place in one file in the original layout: {error}", "leave out --single-file"
            ) from error
        return outputs

    def fuse_checkpoint(self, state: StoredTensors) -> dict[str, OutputTensor]:
        """Return the fused tensors of a checkpoint that is already in the original layout.

        Raises:
            InputError: The LoRA does not fit the checkpoint.
        """
        names = self._checkpoint_names(state)
        unet = {name: one for name, one in state.items() if name.startswith(original_layout.UNET)}
        others = {name: _copied(one) for name, one in state.items() if name not in unet}
        return others | self._fused_unet(unet, names)

    def fused_layers(self, tensors: StoredTensors, *, is_checkpoint: bool) -> Iterator[tuple[str, Tensor]]:
        """Yield each changed layer of a UNet with its fused weight.

        Args:
            tensors: Tensors of the UNet in diffusers' layout, or of a checkpoint in the original one.
            is_checkpoint: True for the latter.

        Raises:
            InputError: The LoRA does not fit, or its sum with a weight overflows.
        """
        names = self._checkpoint_names(tensors) if is_checkpoint else self._folder_names()
        outputs = self._fused_unet(tensors, names)
        for module, name in names.items():
            yield module, outputs[name].values()

    def report(self) -> FuseReport:
        """Return the rounding loss of all tensors computed so far."""
        losses = self.lost.values()
        return FuseReport(len(losses), sum(losses) / max(1, len(losses)), max(losses, default=0.0))

    def _folder_names(self) -> dict[str, str]:
        """Return the name of each changed layer's weight in diffusers' layout."""
        return {module: f"{module}.weight" for module in self.lora.modules}

    def _checkpoint_names(self, state: StoredTensors) -> dict[str, str]:
        """Return the name of each changed layer's weight in the original layout."""
        with_attention, names = original_layout.attention_blocks_of_checkpoint(state), {}
        for module in self.lora.modules:
            try:
                layer = original_layout.original_unet_layer(module, with_attention)
            except ValueError as error:
                raise InputError(f"the LoRA does not fit: {error}", WRONG_BASE_REMEDY) from error
            names[module] = f"{original_layout.UNET}{layer}.weight"
        return names

    def _fused_unet(self, tensors: StoredTensors, names: Mapping[str, str]) -> dict[str, OutputTensor]:
        outputs = {name: _copied(one, self.dtype) for name, one in tensors.items()}
        for module, name in names.items():
            if name not in tensors:
                raise InputError(f"the LoRA changes {module}, which this base does not have", WRONG_BASE_REMEDY)
            down, up = self.lora.factors(module)
            if (up.shape[0], *down.shape[1:]) != tensors[name].info.shape:
                raise InputError(f"the LoRA's {module} has another shape than the base's", WRONG_BASE_REMEDY)
            if tensors[name].info.dtype not in DTYPES:
                raise InputError(
                    f"the base stores {module} in {tensors[name].info.dtype}, and rapm merges into 16 bits or more",
                    "give the base in 16 or 32 bits",
                )
            outputs[name] = self._fused_weight(module, tensors[name], outputs[name].dtype)
        return outputs

    def _fused_weight(self, module: str, weight: StoredTensor, dtype: str) -> OutputTensor:
        def compute() -> Tensor:
            lora = self.lora
            before, update = weight.read().float(), lora_update(*lora.factors(module), lora.alpha / lora.rank)
            exact = before + update
            rounded = exact.to(DTYPES[dtype])
            if not rounded.isfinite().all():
                raise InputError(
                    f"the LoRA makes {module} overflow in {dtype.lower()}", "take bf16 or fp32, or another LoRA"
                )
            size = float(update.norm())
            if size > 0:
                self.lost[module] = float((rounded.float() - exact).norm()) / size
            return rounded

        return OutputTensor((weight,), dtype, weight.info.shape, compute)


def _copied(one: StoredTensor, dtype: str | None = None) -> OutputTensor:
    """Return a tensor unchanged, or cast where `dtype` is another floating dtype."""
    is_cast = dtype not in (None, one.info.dtype) and one.info.dtype in DTYPES
    return OutputTensor(
        (one,), dtype if is_cast and dtype else one.info.dtype, one.info.shape, one.read if is_cast else None
    )


def _original_tensors(part: str, tensors: StoredTensors, *, is_xl: bool) -> Iterable[OriginalTensor]:
    shapes = {name: one.info.shape for name, one in tensors.items()}
    match part:
        case "unet":
            return original_layout.unet_tensors(shapes)
        case "vae":
            return original_layout.vae_tensors(shapes)
        case "text_encoder_2":
            return original_layout.open_clip_tensors(shapes)
    return original_layout.clip_tensors(shapes, original_layout.CLIP_XL if is_xl else original_layout.CLIP)


def _renamed(original: OriginalTensor, outputs: Mapping[str, OutputTensor], tensors: StoredTensors) -> OutputTensor:
    """Return one tensor of the original layout, made from its sources in diffusers' layout."""
    first = outputs[original.sources[0]]
    sources = tuple(tensors[name] for name in original.sources)
    if len({source.info.dtype for source in sources}) > 1:
        raise ValueError(f"{', '.join(original.sources)} have different dtypes")
    compute = (lambda: sources[0].read().t()) if original.is_transposed else first.compute
    return OutputTensor(sources, first.dtype, original.shape, compute)
