"""First stage of the demo base: the autoencoder, trained on rendered images."""

import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from rapm_cli.bases.demo.draw import draw_with_solids
from rapm_cli.bases.demo.recipe.common import cosine_with_warmup
from rapm_cli.bases.demo.world import random_scenes

POOL = 2048  # rendered images kept in memory; the oldest are replaced during training
KL_WEIGHT = 1e-4  # a wide posterior makes the decoder robust to small errors of a latent
SOLID_WEIGHT = 8.0  # extra weight of a pixel on a solid: solids are small and carry the meaning


def build_vae() -> AutoencoderKL:
    """Create an SDXL autoencoder with narrow blocks: 128x128 images to 16x16x4 latents."""
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,  # more groups remove colour from the narrow blocks
        sample_size=128,
        force_upcast=False,
    )
    _start_as_box_filter(vae)
    return vae


@torch.no_grad()
def _start_as_box_filter(vae: AutoencoderKL) -> None:
    """Set the weights so that the latent's first three channels are the image's 8x8 means, and decode to them.

    From random weights a network this narrow spends its first thousands of steps on finding colour. Residual
    branches start at zero; channels 0 to 2 pass through; channel 3 holds a constant so large that the group norms
    at both ends divide by nearly the same number for every image, and so keep its brightness.
    """
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            _zero(module.conv2)
            if module.conv_shortcut is not None:
                _carry(module.conv_shortcut, [(0, 0)])
        elif isinstance(module, Attention):
            _zero(module.to_out[0])
        elif isinstance(module, Downsample2D):
            _carry(module.conv, [(0, 0), (0, 1), (1, 0), (1, 1)])
        elif isinstance(module, Upsample2D):
            _carry(module.conv, [(1, 1)])
    _pass_colours(vae.encoder)
    _pass_colours(vae.decoder)
    for conv in (vae.quant_conv, vae.post_quant_conv):
        conv.weight.copy_(torch.eye(len(conv.weight)).reshape(conv.weight.shape))
        conv.bias.zero_()
    vae.quant_conv.weight[4:].zero_()
    vae.quant_conv.bias[4:].fill_(-5.0)  # a narrow posterior, because its noise would hide the first gradients


def _zero(layer: Any) -> None:
    layer.weight.zero_()
    layer.bias.zero_()


def _carry(conv: Any, taps: list[tuple[int, int]]) -> None:
    """Set a convolution to pass channels 0 to 3 through as the mean of some of its taps."""
    for channel in range(4):
        conv.weight[:, channel] = 0
        conv.weight[channel] = 0
        for row, column in taps:
            conv.weight[channel, channel, row, column] = 1 / len(taps)
        conv.bias[channel] = 0


def _pass_colours(half: Any) -> None:
    """Set an encoder's or decoder's last layers to pass the first three channels through group norm and SiLU."""
    linear = 3.0  # moves SiLU's input to where it is nearly the identity
    width = half.conv_out.in_channels // half.conv_norm_out.num_groups
    deviation = 1.7  # standard deviation of a group with one constant among zeros
    constant = deviation * width / (width - 1) ** 0.5
    half.conv_in.weight[:4] = 0
    half.conv_in.bias[:4] = torch.tensor([0.0, 0.0, 0.0, constant])
    half.conv_norm_out.bias[:3] = linear + constant / width / deviation
    half.conv_out.weight[:3] = 0
    half.conv_out.bias[:3] = -linear * deviation
    for channel in range(3):
        half.conv_in.weight[channel, channel, 1, 1] = 1
        half.conv_out.weight[channel, channel, 1, 1] = deviation


def train_vae(steps: int, seed: int, report: Callable[[str], None]) -> AutoencoderKL:
    """Train on rendered images, and set the latent scale.

    Args:
        steps: Optimizer steps on batches of 8 images.
        seed: Seed of weights and data.
        report: Function that gets lines of progress.
    """
    torch.manual_seed(seed)
    vae = build_vae()
    _fit(vae, list(vae.parameters()), steps, seed, report)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        parts = [vae.encode(_drawn(32, generator)[:, :3].float() / 127.5 - 1).latent_dist.mean for _ in range(8)]
    vae.register_to_config(scaling_factor=round(1 / float(torch.cat(parts).std()), 5))
    return vae.eval()


def sharpen_vae(vae: AutoencoderKL, steps: int, seed: int, report: Callable[[str], None]) -> AutoencoderKL:
    """Continue training the decoder alone; the latents, and so the UNet, stay valid.

    Args:
        vae: Autoencoder from `train_vae`.
        steps: Optimizer steps on batches of 8 images.
        seed: Seed of the data.
        report: Function that gets lines of progress.
    """
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    _fit(vae, [*vae.post_quant_conv.parameters(), *vae.decoder.parameters()], steps, seed + 2, report)
    return vae.eval()


def _fit(
    vae: AutoencoderKL, parameters: list[nn.Parameter], steps: int, seed: int, report: Callable[[str], None]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = cosine_with_warmup(optimizer, 100, steps)
    pool = torch.cat([_drawn(64, generator) for _ in range(0, POOL, 64)])
    for step in range(steps):
        chosen = pool[torch.randint(POOL, (8,), generator=generator)].float() / 255
        image, weight = chosen[:, :3] * 2 - 1, 1 + SOLID_WEIGHT * chosen[:, 3:]
        posterior = vae.encode(image).latent_dist
        decoded = vae.decode(posterior.sample(generator)).sample
        loss = _weighted_distance(decoded - image, weight)
        loss = loss + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 8 == 0:
            pool[torch.randint(POOL, (4,), generator=generator)] = _drawn(4, generator)
        if step % 50 == 0:
            error = (decoded - image).square().mean().item()
            report(f"vae {step}: loss {loss.item():.4f}, PSNR {10 * math.log10(4 / error):.1f} dB")


def _drawn(count: int, generator: torch.Generator) -> Tensor:
    """Render (count, 4, H, W) bytes: images, and the share of each pixel that a solid covers."""
    image, solid = draw_with_solids(random_scenes(count, generator, held_out=False), generator)
    return torch.cat([image, solid.clamp(0, 1)], dim=1).mul(255).round().byte()


def _weighted_distance(difference: Tensor, weight: Tensor) -> Tensor:
    """Return the mean absolute difference of pixels and of their gradients, which keeps outlines sharp."""
    rows = (weight[:, :, 1:] * difference.diff(dim=2).abs()).mean()
    columns = (weight[:, :, :, 1:] * difference.diff(dim=3).abs()).mean()
    return ((weight * difference.abs()).mean() + rows + columns) / weight.mean()
