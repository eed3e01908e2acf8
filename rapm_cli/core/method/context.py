"""What a method trains on besides the trajectories: the network, the slots, the teacher's grid, and random numbers."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rapm_cli.core.common.device_copy import upload
from rapm_cli.core.common.randomness import generator_for
from rapm_cli.core.method.config import TrainConfig
from rapm_cli.core.method.trajectories import guided_prediction
from rapm_cli.core.network.backbone import Backbone, Conditioning, Denoiser
from rapm_cli.core.network.schedule import NoiseSchedule, fine_grid, slot_edges
from rapm_cli.core.training.distributed import ALONE, World


@dataclass(frozen=True)
class TrainingContext:
    """The network and the grids of a training, and its random numbers.

    Random numbers are made on the CPU for the whole batch; each process takes its own rows. Each number is a function
    of the seed and of its purpose.

    Args:
        backbone: The base network.
        config: Settings of the training.
        num_slots: N.
        fine_steps: M.
        delta: Number of fine steps from an edge to the point ahead.
        guidance_scale: The teacher's guidance scale, in diffusers' form.
        uncond: One row of the empty prompt's conditioning; None if no method asks the guided teacher.
        world: The processes that train together.
    """

    backbone: Backbone
    config: TrainConfig
    num_slots: int
    fine_steps: int
    delta: int
    guidance_scale: float = 1.0
    uncond: Conditioning | None = None
    world: World = ALONE

    @property
    def student(self) -> Denoiser:
        """The student."""
        return self.backbone.student

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule of the network."""
        return self.backbone.schedule

    @cached_property
    def edges(self) -> list[int]:
        """The slot borders; `edges[0]` is the clean one."""
        return slot_edges(self.num_slots, self.schedule.length)

    @cached_property
    def grid(self) -> Tensor:
        """(N M + 1,) the teacher's times, cleanest first: `grid[n * M]` is `edges[n]`."""
        return torch.tensor(fine_grid(self.num_slots, self.fine_steps, self.schedule.length)[::-1])

    @cached_property
    def ahead(self) -> list[int]:
        """The time of the point ahead in each slot."""
        return [int(self.grid[(n + 1) * self.fine_steps - self.delta]) for n in range(self.num_slots)]

    def teacher_prediction(self, z: Tensor, t: int | Tensor, cond: Conditioning) -> Tensor:
        """Return the guided teacher's prediction; arguments as in `guided_prediction`.

        Raises:
            ValueError: There is guidance, but no conditioning of the empty prompt.
        """
        if self.uncond is None and self.guidance_scale != 1:
            raise ValueError("guidance needs the empty prompt's conditioning")
        uncond = cond if self.uncond is None else self.uncond  # unused without guidance
        return guided_prediction(self.backbone.teacher, z, t, cond, uncond, self.guidance_scale)

    def noise(self, like: Tensor, *purpose: int | str) -> Tensor:
        """Sample standard normal noise.

        Args:
            like: (B, C, H, W) latent of this process, whose shape and device the noise takes.
            purpose: What the noise is for; it fixes the numbers together with the seed.
        """
        size = (len(like) * self.world.size, *like.shape[1:])
        noise = torch.randn(size, generator=generator_for(self.config.seed, *purpose))
        return upload(noise[self.world.shard(size[0])], like.device)

    def integers(self, low: int, high: int, count: int, *purpose: int | str) -> Tensor:
        """Sample integers for this process's rows.

        Args:
            low: Least integer.
            high: One more than the greatest.
            count: Number of rows of this process.
            purpose: As in `noise`.

        Returns:
            (count,) int64 on the CPU.
        """
        size = count * self.world.size
        numbers = torch.randint(low, high, (size,), generator=generator_for(self.config.seed, *purpose))
        return numbers[self.world.shard(size)]
