"""Third stage of the demo base: the attribute reader, trained on rendered images and reconstructions."""

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional

from rapm_cli.bases.demo.draw import draw
from rapm_cli.bases.demo.reader import Reader
from rapm_cli.bases.demo.recipe.common import cosine_with_warmup
from rapm_cli.bases.demo.world import labels, random_scenes

POOL = 6144


@torch.no_grad()
def round_trip(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Encode (B, 3, H, W) images in [0, 1], and return the decoded images, clamped to [0, 1]."""
    parts = []
    for part in images.split(32):
        latent = vae.encode(part * 2 - 1).latent_dist.mean
        parts.append((vae.decode(latent).sample / 2 + 0.5).clamp(0, 1))
    return torch.cat(parts)


def train_reader(vae: AutoencoderKL, steps: int, seed: int, report: Callable[[str], None]) -> Reader:
    """Train the reader; a third of its images are reconstructions by `vae`.

    Args:
        vae: Trained autoencoder.
        steps: Optimizer steps on batches of 64 images.
        seed: Seed of weights and images.
        report: Function that gets lines of progress.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    reader = Reader()
    optimizer = torch.optim.AdamW(reader.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = cosine_with_warmup(optimizer, 50, steps)
    scenes = random_scenes(POOL, generator, held_out=False)
    target = labels(scenes)
    pool = torch.cat([draw(scenes[i : i + 64], generator) for i in range(0, POOL, 64)])
    pool[::3] = round_trip(vae, pool[::3])
    pool = pool.mul(255).round().byte()
    for step in range(steps):
        chosen = torch.randint(POOL, (64,), generator=generator)
        images = pool[chosen].float() / 255
        strength = 0.04 * torch.rand(64, 1, 1, 1, generator=generator)
        images = (images + strength * torch.randn(images.shape, generator=generator)).clamp(0, 1)
        answers = reader(images)
        loss = torch.stack([functional.cross_entropy(a, target[chosen][:, k]) for k, a in enumerate(answers)]).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        fresh, scenes = torch.randint(POOL, (6,), generator=generator), random_scenes(6, generator, held_out=False)
        drawn = draw(scenes, generator)
        drawn[::3] = round_trip(vae, drawn[::3])
        pool[fresh], target[fresh] = drawn.mul(255).round().byte(), labels(scenes)
        if (step + 1) % 100 == 0:
            report(f"reader {step + 1}: loss {loss.item():.4f}")
    whole = [draw(random_scenes(64, generator, held_out=False), generator) for _ in range(32)]
    reader.eval().standardise(torch.cat(whole))
    return reader


def score_reader(reader: Reader, vae: AutoencoderKL, count: int, seed: int) -> dict[str, float]:
    """Return the accuracy over attributes on fresh held-out images, before and after reconstruction."""
    generator = torch.Generator().manual_seed(seed)
    scenes = random_scenes(count, generator, held_out=True)
    target = labels(scenes)
    drawn = torch.cat([draw(scenes[i : i + 64], generator) for i in range(0, count, 64)])
    return {
        "straight": float((reader.read(drawn) == target).float().mean()),
        "round trip": float((reader.read(round_trip(vae, drawn)) == target).float().mean()),
    }
