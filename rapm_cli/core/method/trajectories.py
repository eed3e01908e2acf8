"""Phase 1: the guided teacher walks the fine grid; the positions that training needs are kept."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from rapm_cli.core.common.device_copy import upload
from rapm_cli.core.common.randomness import generator_for
from rapm_cli.core.network.backbone import Conditioning, Denoiser
from rapm_cli.core.network.schedule import ddim_step, fine_grid


@dataclass(frozen=True)
class Trajectories:
    """The teacher's positions for B prompts.

    Args:
        z_teacher: (B, N + 1, C, H, W) float32 positions at the edges, `z_teacher[:, 0]` the cleanest.
        z_ahead: (B, N, C, H, W) float32; `z_ahead[:, n]` lies `delta` fine steps past edge n + 1, inside slot n.
        cond: The prompts' conditioning.
    """

    z_teacher: Tensor
    z_ahead: Tensor
    cond: Conditioning

    @property
    def stride(self) -> int:
        """Number of trajectories from one to the next of the same size: they all have the same."""
        return 1

    def __len__(self) -> int:
        return len(self.z_teacher)

    def __getitem__(self, rows: slice | Tensor) -> "Trajectories":
        return Trajectories(self.z_teacher[rows], self.z_ahead[rows], self.cond[rows])

    @staticmethod
    def cat(items: list["Trajectories"]) -> "Trajectories":
        """Concatenate batches."""
        cond = Conditioning.cat([item.cond for item in items])
        z_teacher, z_ahead = (torch.cat([getattr(item, name) for item in items]) for name in ("z_teacher", "z_ahead"))
        return Trajectories(z_teacher, z_ahead, cond)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name, without those that are None.

        Returns:
            `z_teacher`, `z_ahead` and the parts of the conditioning: `tokens`, and for SDXL `pooled` and `time_ids`.
        """
        named = {"z_teacher": self.z_teacher, "z_ahead": self.z_ahead, "tokens": self.cond.tokens}
        named |= {} if self.cond.pooled is None else {"pooled": self.cond.pooled}
        return named | ({} if self.cond.time_ids is None else {"time_ids": self.cond.time_ids})

    @property
    def is_finite(self) -> bool:
        """True if all positions are finite; False if the teacher overflowed."""
        return bool(self.z_teacher.isfinite().all() and self.z_ahead.isfinite().all())

    def to(self, device: torch.device) -> "Trajectories":
        """Return a copy on another device, with latents in float32."""
        return Trajectories(
            upload(self.z_teacher.float(), device), upload(self.z_ahead.float(), device), self.cond.to(device)
        )


def initial_noise(seed: int, purpose: str, indices: list[int], shape: tuple[int, int, int]) -> Tensor:
    """Sample (B, C, H, W) standard normal noise; row i depends on the seed, the purpose and `indices[i]` alone."""
    rows = [torch.randn(shape, generator=generator_for(seed, purpose, index)) for index in indices]
    return torch.stack(rows)


def guided_prediction(
    teacher: Denoiser, z: Tensor, t: int | Tensor, cond: Conditioning, uncond: Conditioning, guidance_scale: float
) -> Tensor:
    """Return the network's prediction with classifier-free guidance, both halves in one batch.

    Args:
        teacher: The network without a LoRA.
        z: (B, C, H, W) latent at `t`.
        t: Timestep, or (B,) timesteps on the CPU.
        cond: Conditioning of the prompts, B rows.
        uncond: Conditioning of the empty prompt, B rows or one; the images' sizes are taken from `cond`.
        guidance_scale: diffusers' form: uncond + scale * (cond - uncond). 1 means no guidance and half the work.

    Returns:
        (B, C, H, W) noise or velocity, float32.
    """
    if guidance_scale == 1:
        return teacher(z, t, cond)
    without_text = uncond.expand(len(z)) if len(uncond) == 1 else uncond
    both = Conditioning.cat([replace(without_text, time_ids=cond.time_ids), cond])
    times = t.repeat(2) if isinstance(t, Tensor) else t
    without, with_ = teacher(torch.cat([z, z]), times, both).chunk(2)
    return without + guidance_scale * (with_ - without)


@torch.no_grad()
def walk_teacher(
    teacher: Denoiser,
    z: Tensor,
    times: list[int],
    cond: Conditioning,
    uncond: Conditioning,
    guidance_scale: float,
) -> Iterator[Tensor]:
    """Yield the guided teacher's positions at `times[0]` (which is `z`), `times[1]`, ..., one DDIM step apart.

    Other arguments as in `guided_prediction`.

    Raises:
        ValueError: The base is rounded to 8 bits, so that this would be another teacher.
            Walk before the base is rounded.
    """
    if teacher.backbone.is_rounded:
        raise ValueError("the base is rounded to 8 bits: it is no longer the teacher")
    yield z
    for t, s in pairwise(times):
        prediction = guided_prediction(teacher, z, t, cond, uncond, guidance_scale)
        z = ddim_step(z, prediction, t, s, teacher.schedule)
        yield z


def rollout(
    teacher: Denoiser,
    z: Tensor,
    cond: Conditioning,
    uncond: Conditioning,
    *,
    num_slots: int,
    fine_steps: int,
    delta: int,
    guidance_scale: float,
    on_step: Callable[[], object] = lambda: None,
) -> Trajectories:
    """Compute a batch of teacher trajectories.

    Args:
        teacher: The network without a LoRA.
        z: (B, C, H, W) noise at the noisiest edge.
        cond: Conditioning of the prompts, B rows.
        uncond: Conditioning of the empty prompt, B rows or one.
        num_slots: N.
        fine_steps: M, the number of teacher steps in each slot.
        delta: Number of fine steps from an edge to `z_ahead`, in [1, M).
        guidance_scale: Guidance scale in diffusers' form.
        on_step: Called after each of the N * M steps.
    """
    times = fine_grid(num_slots, fine_steps, teacher.schedule.length)
    positions: list[Tensor] = []
    ahead: list[Tensor] = []
    for k, position in enumerate(walk_teacher(teacher, z, times, cond, uncond, guidance_scale)):
        if k:
            on_step()
        if k % fine_steps == 0:
            positions.append(position)
        if k % fine_steps == delta:
            ahead.append(position)
    return Trajectories(torch.stack(positions[::-1], dim=1), torch.stack(ahead[::-1], dim=1), cond)
