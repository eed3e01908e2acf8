"""The three arrows of the method figure: the student's step, and its two targets at the end of a slot.

z_teacher[n+1] --- one fine teacher step ---> z_ahead --- student ---> relative_target
z_teacher[n+1] --- all fine teacher steps ------------------------->   absolute_target
z_start -------------------- student ------------------------------->  z_student
"""

import torch
from torch import Tensor

from rapm_cli.core.network.backbone import Conditioning, Denoiser
from rapm_cli.core.network.schedule import ddim_step

CONSISTENCY = "consistency"  # name of the one target of PCM and LCM, in the metrics


def student_step(student: Denoiser, z: Tensor, t: int | Tensor, s: int | Tensor, cond: Conditioning) -> Tensor:
    """Take one DDIM step of the student from `t` to `s`; it has a gradient where gradients are on.

    Args:
        student: The student.
        z: (B, C, H, W) latent at `t`, float32.
        t: Timestep of `z`, or (B,) timesteps on the CPU.
        s: Timestep to reach, or (B,) timesteps.
        cond: Conditioning of the prompts alone, because guidance is distilled into the student.

    Returns:
        (B, C, H, W) latent at `s`.
    """
    return ddim_step(z, student(z, t, cond), t, s, student.schedule)


@torch.no_grad()
def relative_target(student: Denoiser, z_ahead: Tensor, t_ahead: int, s: int, cond: Conditioning) -> Tensor:
    """Return where the student arrives from the teacher's point ahead in the same slot.

    Args:
        student: The student.
        z_ahead: (B, C, H, W) the teacher's latent at `t_ahead`, float32.
        t_ahead: Timestep of the point ahead, inside the slot.
        s: Timestep of the slot's clean edge.
        cond: Conditioning of the prompts alone.

    Returns:
        (B, C, H, W) latent at `s`, outside the graph.
    """
    return student_step(student, z_ahead, t_ahead, s, cond)


def absolute_target(z_teacher: Tensor, n: int) -> Tensor:
    """Return the teacher's own position at edge n.

    Args:
        z_teacher: (B, N + 1, C, H, W) stored positions, cleanest edge first.
        n: Edge, in [0, N).

    Returns:
        (B, C, H, W) latent at edge n, outside the graph.
    """
    return z_teacher[:, n].detach()
