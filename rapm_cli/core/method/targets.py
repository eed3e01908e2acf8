"""The two positions that the student is drawn to at the end of a slot: the method figure, nothing else.

z_teacher[n+1] --- one fine teacher step ---> z_ahead --- student ---> relative_target
z_teacher[n+1] --- all fine teacher steps ------------------------->   absolute_target
z_start -------------------- student ------------------------------->  z_student
"""

import torch
from torch import Tensor

from rapm_cli.core.network.backbone import Backbone, Conditioning
from rapm_cli.core.network.lora_layers import STUDENT
from rapm_cli.core.network.schedule import ddim_step


def student_step(backbone: Backbone, z: Tensor, t: int | Tensor, s: int | Tensor, cond: Conditioning) -> Tensor:
    """The student's own DDIM step from `t` to `s`, with gradient where gradients are on.

    Args:
        backbone: Network with a LoRA.
        z: (B, C, H, W) latent at `t`, float32.
        t: Timestep `z` is at, or (B,) of them on the CPU.
        s: Timestep to reach, or (B,) of them.
        cond: The prompts' conditioning alone: guidance is distilled into the student.
    """
    with backbone.role(STUDENT):
        noise = backbone.predict_noise(z, t, cond)
    return ddim_step(z, noise, t, s, backbone.schedule)


@torch.no_grad()
def relative_target(backbone: Backbone, z_ahead: Tensor, t_ahead: int, s: int, cond: Conditioning) -> Tensor:
    """Where the student arrives from the teacher's point `z_ahead` at `t_ahead`: the same slot, a head start."""
    return student_step(backbone, z_ahead, t_ahead, s, cond)


def absolute_target(z_teacher: Tensor, n: int) -> Tensor:
    """The teacher's own position at edge n.

    Args:
        z_teacher: (B, N + 1, C, H, W) stored positions, cleanest edge first.
        n: Edge, in [0, N).
    """
    return z_teacher[:, n].detach()
