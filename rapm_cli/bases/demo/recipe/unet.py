"""Last stage of the demo base: the UNet, trained to predict noise on the frozen autoencoder and encoders."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from rapm_cli.bases.demo.captions import phrases
from rapm_cli.bases.demo.draw import IMAGE_PX, draw
from rapm_cli.bases.demo.recipe.common import cosine_with_warmup
from rapm_cli.bases.demo.recipe.text import MAX_TOKENS, OMIT, WIDTHS
from rapm_cli.bases.demo.world import random_scenes
from rapm_cli.core.network.schedule import DDIM_SETTINGS

DROPPED = 0.1  # probability to replace a prompt, its pooled state too, by zeros, as the pipeline's guidance does
SNR_CAP = 5.0  # min-SNR weighting, arXiv:2303.09556
EMA_HORIZON = 0.02  # averaging horizon as a fraction of all steps


def build_unet() -> UNet2DConditionModel:
    """Create a UNet with SDXL's topology at a tenth of its width."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64, 128),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(1, 2, 4),  # diffusers' name for the number of heads
        norm_num_groups=8,
        cross_attention_dim=sum(WIDTHS),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=WIDTHS[1] + 6 * 16,
    )


@dataclass
class _Pool:
    """Encoded scenes with their captions' embeddings, gradually replaced during training."""

    mean: Tensor  # (P, 4, 16, 16)
    deviation: Tensor  # (P, 4, 16, 16)
    tokens: Tensor  # (P, 32, 224)
    pooled: Tensor  # (P, 128)

    @classmethod
    def empty(cls, size: int) -> "_Pool":
        shapes = (4, 16, 16), (4, 16, 16), (MAX_TOKENS, sum(WIDTHS)), (WIDTHS[1],)
        return cls(*(torch.empty(size, *shape) for shape in shapes))

    def __setitem__(self, where: slice | Tensor, rows: Sequence[Tensor]) -> None:
        for table, values in zip((self.mean, self.deviation, self.tokens, self.pooled), rows, strict=True):
            table[where] = values


def train_unet(
    vae: AutoencoderKL,
    tokenizers: tuple[CLIPTokenizer, CLIPTokenizer],
    encoders: tuple[CLIPTextModel, CLIPTextModelWithProjection],
    *,
    steps: int,
    batch: int,
    pool_size: int,
    seed: int,
    device: str,
    report: Callable[[str], None],
    snapshot: Callable[[UNet2DConditionModel], None],
) -> UNet2DConditionModel:
    """Train the UNet and return the exponential moving average of its weights.

    Args:
        vae: Trained autoencoder with its scaling factor set.
        tokenizers: Both tokenizers.
        encoders: Both trained text encoders.
        steps: Optimizer steps.
        batch: Images in a batch.
        pool_size: Encoded scenes in memory; four of them are replaced at every step.
        seed: Seed of weights, scenes and noise.
        device: Device that trains the UNet; scenes are rendered and encoded on the CPU.
        report: Function that gets lines of progress.
        snapshot: Function that gets the averaged network every 500 steps.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    unet, average = build_unet().to(device), build_unet().to(device).requires_grad_(False)
    average.load_state_dict(unet.state_dict())
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-2, fused=True)
    schedule = cosine_with_warmup(optimizer, 200, steps)
    pool = _Pool.empty(pool_size)
    for start in range(0, pool_size, 64):
        count = min(64, pool_size - start)
        pool[slice(start, start + count)] = _encoded(vae, tokenizers, encoders, count, generator)
    report(f"unet: {pool_size} scenes encoded")

    alphas_cumprod, running = noise_schedule().alphas_cumprod, math.nan
    for step in range(steps):
        loss = _denoising_loss(unet, pool, batch, alphas_cumprod, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        decay = min((step + 1) / (step + 10), 1 - 1 / (EMA_HORIZON * steps))
        torch._foreach_lerp_(list(average.parameters()), [p.detach() for p in unet.parameters()], 1 - decay)
        replaced = torch.randint(pool_size, (4,), generator=generator)
        pool[replaced] = _encoded(vae, tokenizers, encoders, 4, generator)
        running = loss.item() if math.isnan(running) else 0.98 * running + 0.02 * loss.item()
        if (step + 1) % 50 == 0:
            report(f"unet {step + 1}: loss {running:.4f}")
        if (step + 1) % 500 == 0:
            snapshot(average)
    return average.cpu().eval()


def _denoising_loss(
    unet: UNet2DConditionModel, pool: _Pool, batch: int, alphas_cumprod: Tensor, generator: torch.Generator
) -> Tensor:
    """Return the min-SNR weighted mean squared error of the predicted noise, on random scenes at random timesteps."""
    chosen = torch.randint(len(pool.mean), (batch,), generator=generator)
    kept = (torch.rand(batch, generator=generator) >= DROPPED).float()
    latent = pool.mean[chosen] + pool.deviation[chosen] * torch.randn(batch, 4, 16, 16, generator=generator)
    noise = torch.randn(batch, 4, 16, 16, generator=generator)
    t = torch.randint(1000, (batch,), generator=generator)
    alpha_bar = alphas_cumprod[t].reshape(-1, 1, 1, 1)
    noisy = alpha_bar.sqrt() * latent + (1 - alpha_bar).sqrt() * noise
    time_ids = torch.tensor([[IMAGE_PX, IMAGE_PX, 0, 0, IMAGE_PX, IMAGE_PX]]).float()
    added = {"text_embeds": pool.pooled[chosen] * kept.reshape(-1, 1), "time_ids": time_ids.expand(batch, -1)}
    predicted = unet(
        noisy.to(unet.device),
        t.to(unet.device),
        (pool.tokens[chosen] * kept.reshape(-1, 1, 1)).to(unet.device),
        added_cond_kwargs={name: value.to(unet.device) for name, value in added.items()},
    ).sample
    snr = alphas_cumprod[t] / (1 - alphas_cumprod[t])
    weight = (snr.clamp(max=SNR_CAP) / snr).to(unet.device)
    loss: Tensor = (weight * (predicted - noise.to(unet.device)).square().mean(dim=(1, 2, 3))).mean()
    return loss


@torch.no_grad()
def _encoded(
    vae: AutoencoderKL,
    tokenizers: tuple[CLIPTokenizer, CLIPTokenizer],
    encoders: tuple[CLIPTextModel, CLIPTextModelWithProjection],
    count: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Encode fresh training scenes: latent mean and deviation, text states as SDXL joins them, and the pooled state."""
    scenes = random_scenes(count, generator, held_out=False)
    posterior = vae.encode(draw(scenes, generator) * 2 - 1).latent_dist
    captions = [caption for caption, _ in phrases(scenes, generator, omit=OMIT)]
    states, pooled = [], torch.empty(0)
    for tokenizer, encoder in zip(tokenizers, encoders, strict=True):
        tokens = tokenizer(
            captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
        ).input_ids
        out = encoder(tokens, output_hidden_states=True)
        states.append(out.hidden_states[-2])
        pooled = out[0]
    scale = vae.config.scaling_factor
    return posterior.mean * scale, posterior.std * scale, torch.cat(states, dim=-1), pooled


def noise_schedule() -> DDIMScheduler:
    """Create SDXL's noise schedule with the sampler of the few-step students."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        **DDIM_SETTINGS,
    )
