"""The noise schedule, the grids of timesteps, and the DDIM step."""

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from rapm_cli.core.common.device_copy import upload
from rapm_cli.core.common.errors import ConfigError

CLEAN = -1  # the edge below timestep 0; it carries alphas_cumprod[0], as set_alpha_to_one=False does
# With these settings, diffusers' DDIMScheduler visits the times of `slot_edges`, as the student does.
DDIM_SETTINGS = {"timestep_spacing": "trailing", "set_alpha_to_one": False, "clip_sample": False}
ZERO_SNR_SETTINGS = {"rescale_betas_zero_snr": True}  # of diffusers' schedulers, for a schedule down to zero signal


@dataclass(frozen=True)
class NoiseSchedule:
    """The signal power at every training timestep.

    Args:
        alphas_cumprod: (T,) float32 signal power, falling; the last may be 0 where the network predicts velocities.
        prediction_type: Quantity that the network predicts: "epsilon" or "v_prediction".
    """

    alphas_cumprod: Tensor
    prediction_type: str = "epsilon"

    @classmethod
    def scaled_linear(
        cls,
        start: float = 0.00085,
        end: float = 0.012,
        length: int = 1000,
        prediction_type: str = "epsilon",
        *,
        has_zero_snr: bool = False,
    ) -> "NoiseSchedule":
        """Return Stable Diffusion's schedule, whose betas are linear in their square roots.

        Args:
            start: First beta.
            end: Last beta.
            length: Number of timesteps T.
            prediction_type: What the network predicts, in diffusers' words: "epsilon" or "v_prediction".
            has_zero_snr: Whether the schedule is rescaled so that no signal is left at the last timestep.

        Raises:
            ValueError: A network that predicts noise says nothing where there is no signal.

        Source: diffusers' `beta_schedule="scaled_linear"`; `rescale_betas_zero_snr`, arXiv:2305.08891, algorithm 1.
        """
        betas = torch.linspace(start**0.5, end**0.5, length, dtype=torch.float32) ** 2
        alphas_cumprod = torch.cumprod(1 - betas, dim=0)
        if has_zero_snr and prediction_type == "epsilon":
            raise ValueError("without signal, a network must predict velocities")
        return cls(_down_to_zero(alphas_cumprod) if has_zero_snr else alphas_cumprod, prediction_type)

    @property
    def length(self) -> int:
        """Number of training timesteps, T."""
        return len(self.alphas_cumprod)

    @property
    def settings(self) -> dict[str, bool]:
        """Settings by which diffusers' schedulers make this schedule of the usual one."""
        return ZERO_SNR_SETTINGS if self.alphas_cumprod[-1] == 0 else {}

    def alpha_bar(self, t: int | Tensor, like: Tensor) -> Tensor:
        """Return the signal power at `t` in [CLEAN, T), in a shape and on a device that fit a product with `like`.

        A single value stays on the CPU, because GPU kernels take it from there without a copy.
        """
        values = self.alphas_cumprod[torch.as_tensor(t).clamp(min=0)].to(like.dtype)
        return upload(values.reshape(-1, *[1] * (like.dim() - 1)), like.device) if values.dim() else values


def slot_edges(num_slots: int, length: int = 1000) -> list[int]:
    """Return the borders of the slots, from `edges[0] = CLEAN` to `edges[num_slots] = length - 1`.

    They are the times that diffusers' DDIM visits with trailing spacing and `num_slots` steps.

    Raises:
        ConfigError: `num_slots` does not divide `length`, so that DDIM in other programs would miss these times.
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
    """Return the teacher's times, noisiest first: `num_slots * fine_steps` trailing steps and CLEAN.

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


def _down_to_zero(alphas_cumprod: Tensor) -> Tensor:
    """Shift and scale the amplitudes of the signal so that the first stays as it is and the last is 0."""
    roots = alphas_cumprod.sqrt()
    return ((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))) ** 2


def noise_estimate(z: Tensor, prediction: Tensor, t: int | Tensor, schedule: NoiseSchedule) -> Tensor:
    """Return the noise in a latent that a network's prediction implies; arguments as in `ddim_step`.

    Source: v-prediction, arXiv:2202.00512, appendix D: eps = sqrt(a) v + sqrt(1 - a) z.
    """
    if schedule.prediction_type == "epsilon":
        return prediction
    a = schedule.alpha_bar(t, z)
    return a.sqrt() * prediction + (1 - a).sqrt() * z


def clean_estimate(z: Tensor, prediction: Tensor, t: int | Tensor, schedule: NoiseSchedule) -> Tensor:
    """Return the clean latent that a network's prediction implies; arguments as in `ddim_step`.

    From noise it is x0 = (z - sqrt(1 - a) eps) / sqrt(a), from a velocity x0 = sqrt(a) z - sqrt(1 - a) v: that divides
    by no signal, which may be 0.
    """
    a = schedule.alpha_bar(t, z)
    if schedule.prediction_type == "epsilon":
        return (z - (1 - a).sqrt() * prediction) / a.sqrt()
    return a.sqrt() * z - (1 - a).sqrt() * prediction


def ddim_step(z: Tensor, prediction: Tensor, t: int | Tensor, s: int | Tensor, schedule: NoiseSchedule) -> Tensor:
    """Move a latent from timestep `t` to a cleaner timestep `s` without adding noise.

    Args:
        z: (B, C, H, W) latent at `t`, float32 or float64.
        prediction: (B, C, H, W) the network's prediction at `(z, t)`, noise or velocity, dtype of `z`.
        t: Timestep of `z` in [0, T), or (B,) timesteps on the CPU.
        s: Timestep to reach in [CLEAN, t], or (B,) timesteps.
        schedule: Noise schedule of the base model.

    Returns:
        (B, C, H, W) latent at `s`, dtype of `z`.

    Raises:
        ValueError: `s` is noisier than `t`.

    Source: DDIM, arXiv:2010.02502, eq. 12 with sigma_t = 0.
    """
    if torch.as_tensor(s > t).any():
        raise ValueError(f"cannot step from {t} to the noisier {s}")
    clean, noise = (estimate(z, prediction, t, schedule) for estimate in (clean_estimate, noise_estimate))
    return add_noise(clean, noise, s, schedule)


def add_noise(clean: Tensor, noise: Tensor, t: int | Tensor, schedule: NoiseSchedule) -> Tensor:
    """Noise a clean latent to `t`: sqrt(a_t) clean + sqrt(1 - a_t) noise; arguments as in `noise_forward`."""
    a = schedule.alpha_bar(t, clean)
    return a.sqrt() * clean + (1 - a).sqrt() * noise


def noise_forward(z: Tensor, noise: Tensor, s: int, t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Noise a latent at edge `s` further, to timesteps `t`.

    Args:
        z: (B, C, H, W) latent at `s`, float32.
        noise: (B, C, H, W) standard normal.
        s: Timestep of `z` in [CLEAN, T).
        t: (B,) timesteps to reach, each at least `s`, on the CPU.
        schedule: Noise schedule of the base model.

    Returns:
        (B, C, H, W) latent at `t`: sqrt(r) z + sqrt(1 - r) noise with r = alpha_bar_t / alpha_bar_s.
    """
    ratio = schedule.alpha_bar(t, z) / schedule.alpha_bar(s, z)
    return ratio.sqrt() * z + (1 - ratio).sqrt() * noise
