"""N-step sampling with the student."""

import torch
from torch import Tensor

from rapm_cli.core.backbone import Backbone, Conditioning
from rapm_cli.core.schedule import slot_edges
from rapm_cli.core.targets import student_step


@torch.no_grad()
def sample_student(backbone: Backbone, z: Tensor, cond: Conditioning, num_slots: int) -> list[Tensor]:
    """The student's own walk from noise to a clean latent.

    Args:
        backbone: Network with a LoRA.
        z: (B, C, H, W) noise.
        cond: The prompts' conditioning.
        num_slots: N, which is the number of evaluations.

    Returns:
        N + 1 latents (B, C, H, W) by edge, `[0]` the clean one and `[N]` the noise.
    """
    edges = slot_edges(num_slots, backbone.schedule.length)
    positions = [z]
    for n in reversed(range(num_slots)):
        positions.append(student_step(backbone, positions[-1], edges[n + 1], edges[n], cond))
    return positions[::-1]


def position_errors(z_student: list[Tensor], z_teacher: Tensor) -> list[float]:
    """Root mean square distance from student to teacher at each edge, `[0]` the clean one; the noise is left out."""
    return [float((mine - z_teacher[:, n]).square().mean().sqrt()) for n, mine in enumerate(z_student[:-1])]
