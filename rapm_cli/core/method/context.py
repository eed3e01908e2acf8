"""The course that teacher and student walk: the network, its slots, the teacher's grid, and what chance decides."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rapm_cli.core.common.device_copy import upload
from rapm_cli.core.common.randomness import generator_for
from rapm_cli.core.method.config import TrainConfig
from rapm_cli.core.method.trajectories import guided_noise
from rapm_cli.core.network.backbone import Backbone, Conditioning
from rapm_cli.core.network.schedule import fine_grid, slot_edges
from rapm_cli.core.training.distributed import ALONE, World


@dataclass(frozen=True)
class Course:
    """All that a method trains a student on, besides the trajectories.

    Random numbers are drawn on the CPU for the whole batch, of which this process takes its rows; each is a function
    of the seed and of what it is for.

    Args:
        backbone: The base network.
        config: Settings.
        num_slots: N.
        fine_steps: M.
        delta: Fine steps from an edge to the point ahead.
        guidance_scale: The teacher's, in diffusers' form.
        uncond: One row of the empty prompt's conditioning; None where nobody asks the guided teacher.
        world: The processes that train together; this one alone by default.
    """

    backbone: Backbone
    config: TrainConfig
    num_slots: int
    fine_steps: int
    delta: int
    guidance_scale: float = 1.0
    uncond: Conditioning | None = None
    world: World = ALONE

    @cached_property
    def edges(self) -> list[int]:
        """Slot borders, `edges[0]` the clean one."""
        return slot_edges(self.num_slots, self.backbone.schedule.length)

    @cached_property
    def grid(self) -> Tensor:
        """(N M + 1,) the teacher's times, cleanest first: `grid[n * M]` is `edges[n]`."""
        return torch.tensor(fine_grid(self.num_slots, self.fine_steps, self.backbone.schedule.length)[::-1])

    @cached_property
    def ahead(self) -> list[int]:
        """For each slot, the time of the point ahead."""
        return [int(self.grid[(n + 1) * self.fine_steps - self.delta]) for n in range(self.num_slots)]

    def teacher_noise(self, z: Tensor, t: int | Tensor, cond: Conditioning) -> Tensor:
        """The guided teacher's noise estimate; arguments as of `guided_noise`.

        Raises:
            ValueError: It is guided, and the empty prompt's conditioning was not given.
        """
        if self.uncond is None and self.guidance_scale != 1:
            raise ValueError("guidance needs the empty prompt's conditioning")
        uncond = cond if self.uncond is None else self.uncond  # without guidance nobody looks at it
        return guided_noise(self.backbone, z, t, cond, uncond, self.guidance_scale)

    def noise(self, like: Tensor, *purpose: int | str) -> Tensor:
        """Standard normal numbers in the shape and place of a latent of this process."""
        size = (len(like) * self.world.size, *like.shape[1:])
        drawn = torch.randn(size, generator=generator_for(self.config.seed, *purpose))
        return upload(drawn[self.world.shard(size[0])], like.device)

    def integers(self, low: int, high: int, count: int, *purpose: int | str) -> Tensor:
        """(count,) numbers in [low, high) for this process's rows, on the CPU."""
        size = count * self.world.size
        drawn = torch.randint(low, high, (size,), generator=generator_for(self.config.seed, *purpose))
        return drawn[self.world.shard(size)]
