"""The noise schedule, the grids of timesteps, and the one step that everything is made of."""

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from rapm_cli.core.common.device_copy import upload
from rapm_cli.core.common.errors import ConfigError

CLEAN = -1  # the edge below timestep 0; it carries alphas_cumprod[0], as set_alpha_to_one=False does
# diffusers' DDIMScheduler so set visits the times of `slot_edges`, as the student does.
DDIM_SETTINGS = {"timestep_spacing": "trailing", "set_alpha_to_one": False, "clip_sample": False}


@dataclass(frozen=True)
class NoiseSchedule:
    """Signal power at every training timestep.

    Args:
        alphas_cumprod: (T,) float32, falling.
        prediction_type: What the network predicts: "epsilon" or "v_prediction".
    """

    alphas_cumprod: Tensor
    prediction_type: str = "epsilon"

    @classmethod
    def scaled_linear(
        cls, start: float = 0.00085, end: float = 0.012, length: int = 1000, prediction_type: str = "epsilon"
    ) -> "NoiseSchedule":
        """Stable Diffusion's schedule: betas linear in their square roots."""
        betas = torch.linspace(start**0.5, end**0.5, length, dtype=torch.float32) ** 2
        return cls(torch.cumprod(1 - betas, dim=0), prediction_type)

    @property
    def length(self) -> int:
        """Number of training timesteps, T."""
        return len(self.alphas_cumprod)

    def alpha_bar(self, t: int | Tensor, like: Tensor) -> Tensor:
        """Signal power at `t` in [CLEAN, T), shaped and placed to multiply `like`.

        A single value stays on the CPU, from where it enters a GPU's kernels without a copy.
        """
        values = self.alphas_cumprod[torch.as_tensor(t).clamp(min=0)].to(like.dtype)
        return upload(values.reshape(-1, *[1] * (like.dim() - 1)), like.device) if values.dim() else values


def slot_edges(num_slots: int, length: int = 1000) -> list[int]:
    """Borders of the slots, `edges[0] = CLEAN` to `edges[num_slots] = length - 1`.

    They are the times that diffusers' DDIM visits with trailing spacing and `num_slots` steps.

    Raises:
        ConfigError: DDIM elsewhere would not land on these times, because `num_slots` does not divide `length`.
    """
    allowed = [n for n in range(1, 101) if length % n == 0]
    if num_slots not in allowed:
        raise ConfigError(
            f"{num_slots} steps do not divide the {length} training timesteps, so other programs' samplers would miss "
            "the times that the student is trained on",
            f"choose --steps from {', '.join(map(str, allowed))}",
        )
    return [length * n // num_slots - 1 for n in range(num_slots + 1)]


def fine_grid(num_slots: int, fine_steps: int, length: int = 1000) -> list[int]:
    """The teacher's times, noisiest first: `num_slots * fine_steps` trailing steps and CLEAN.

    Entry `k * fine_steps` is a slot edge for every k.

    Raises:
        ConfigError: There are more steps than timesteps, or the slots do not divide the schedule.
    """
    slot_edges(num_slots, length)
    total = num_slots * fine_steps
    if not 1 <= total <= length:
        raise ConfigError(
            f"{num_slots} x {fine_steps} teacher steps exceed the {length} training timesteps",
            f"choose --fine-steps of at most {length // num_slots}",
        )
    return [round(Fraction(length * (total - k), total)) - 1 for k in range(total + 1)]


def predicted_noise(prediction: Tensor, z: Tensor, t: int | Tensor, schedule: NoiseSchedule) -> Tensor:
    """Predicted noise at `(z, t)`, whatever the network predicts.

    Args:
        prediction: (B, C, H, W) what the network returned, float32.
        z: (B, C, H, W) latent at `t`, float32.
        t: Timestep, in [0, T), or (B,) of them.
        schedule: Noise schedule of the base model.

    Source: v-prediction, arXiv:2202.00512, appendix D: eps = sqrt(a) v + sqrt(1 - a) z.
    """
    if schedule.prediction_type == "epsilon":
        return prediction
    a = schedule.alpha_bar(t, z)
    return a.sqrt() * prediction + (1 - a).sqrt() * z


def clean_estimate(z: Tensor, noise: Tensor, t: int | Tensor, schedule: NoiseSchedule) -> Tensor:
    """The clean latent that a noise estimate at `(z, t)` amounts to: x0 = (z - sqrt(1 - a_t) noise) / sqrt(a_t).

    Arguments as in `ddim_step`.
    """
    a = schedule.alpha_bar(t, z)
    return (z - (1 - a).sqrt() * noise) / a.sqrt()


def ddim_step(z: Tensor, noise: Tensor, t: int | Tensor, s: int | Tensor, schedule: NoiseSchedule) -> Tensor:
    """Move a latent from timestep `t` to a cleaner timestep `s` without adding noise.

    Args:
        z: (B, C, H, W) latent at `t`, float32 or float64.
        noise: (B, C, H, W) predicted noise at `(z, t)`, dtype of `z`.
        t: Timestep `z` is at, in [0, T), or (B,) of them on the CPU.
        s: Timestep to reach, in [CLEAN, t], or (B,) of them.
        schedule: Noise schedule of the base model.

    Returns:
        (B, C, H, W) latent at `s`, dtype of `z`.

    Raises:
        ValueError: `s` is noisier than `t`.

    Source: DDIM, arXiv:2010.02502, eq. 12 with sigma_t = 0.
    """
    if torch.as_tensor(s > t).any():
        raise ValueError(f"cannot step from {t} to the noisier {s}")
    return add_noise(clean_estimate(z, noise, t, schedule), noise, s, schedule)


def add_noise(clean: Tensor, noise: Tensor, t: int | Tensor, schedule: NoiseSchedule) -> Tensor:
    """A latent without any noise carried to `t`: sqrt(a_t) clean + sqrt(1 - a_t) noise; arguments as in `ddim_step`."""
    a = schedule.alpha_bar(t, clean)
    return a.sqrt() * clean + (1 - a).sqrt() * noise


def noise_forward(z: Tensor, noise: Tensor, s: int, t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Carry a latent from edge `s` to noisier timesteps `t` with fresh noise.

    Args:
        z: (B, C, H, W) latent at `s`, float32.
        noise: (B, C, H, W) standard normal.
        s: Timestep `z` is at, in [CLEAN, T).
        t: (B,) timesteps to reach, each at least `s`, on the CPU.
        schedule: Noise schedule of the base model.

    Returns:
        (B, C, H, W) latent at `t`: sqrt(r) z + sqrt(1 - r) noise with r = alpha_bar_t / alpha_bar_s.
    """
    ratio = schedule.alpha_bar(t, z) / schedule.alpha_bar(s, z)
    return ratio.sqrt() * z + (1 - ratio).sqrt() * noise
