"""Phase 2: iterations of a method, and the updates that its gradients make."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from rapm_cli.core.common.errors import ConfigError, require_shortage
from rapm_cli.core.common.randomness import generator_for
from rapm_cli.core.method import METHODS, sampler_of
from rapm_cli.core.method.config import TrainConfig, to_json
from rapm_cli.core.method.context import Course
from rapm_cli.core.method.discriminators import DISCRIMINATORS
from rapm_cli.core.method.store import StoredTrajectories
from rapm_cli.core.method.trajectories import Trajectories
from rapm_cli.core.network.backbone import Backbone, Conditioning, Passes
from rapm_cli.core.network.student import attach_lora, lora_weights
from rapm_cli.core.training.distributed import ALONE, World
from rapm_cli.core.training.optimizer import GuardedAdamW, WeightAverage
from rapm_cli.core.training.recovery import NETWORK
from rapm_cli.core.training.step_metrics import DISCRIMINATOR, SlotLog, SlotLosses

K = TypeVar("K")
V = TypeVar("V")
FP16_LOSS_SCALE = 4096.0  # a mean over 65,536 values has gradients that fp16 rounds to nothing


@dataclass(frozen=True)
class Progress:
    """One finished iteration.

    Args:
        iteration: Counts from 0.
        learning_rate: The student's.
        trajectories: Which were trained on.
        slots: The noisiest first; where one was skipped, the walk may have ended with it.
        passes: Of the network, in all processes.
    """

    iteration: int
    learning_rate: float
    trajectories: list[int]
    slots: list[SlotLosses]
    passes: Passes

    @property
    def skipped(self) -> str:
        """What was not finite; empty where all is well."""
        return next((slot.skipped for slot in self.slots if slot.skipped), "")


def check_fit(config: TrainConfig, num_slots: int) -> None:
    """Refuse settings that do not fit `num_slots` slots, before any work is done.

    Raises:
        ConfigError: There is no such method or discriminator, the method cannot be sampled with so many steps, or the
            slot weights are too many or too few.
    """
    DISCRIMINATORS[config.discriminator]
    sampler_of(to_json(config)).recipe(num_slots)
    if config.slot_weights and len(config.slot_weights) != num_slots:
        raise ConfigError(
            f"--slot-weights has {len(config.slot_weights)} numbers for {num_slots} slots",
            f"give {num_slots}, the noisiest slot first",
        )


def check_heeded(named: Iterable[str], method: str) -> None:
    """Refuse settings that the user named and the method would pass over.

    Args:
        named: Settings.
        method: Name from `METHODS`.

    Raises:
        ConfigError: There is one.
    """
    heeded = METHODS[method].options
    for name in named:
        if name not in heeded and any(name in METHODS[other].options for other in METHODS.names()):
            raise ConfigError(
                f"--{name.replace('_', '-')} is not heeded by --method {method}", "leave one of the two out"
            )


class Trainer:
    """The student, what is trained beside it, and the method that trains them.

    Args:
        backbone: Base network; a LoRA is attached here.
        config: Settings.
        num_slots: N.
        fine_steps: M.
        delta: Fine steps from an edge to the point ahead.
        guidance_scale: The teacher's, for methods that ask it.
        uncond: One row of the empty prompt's conditioning, for the same.
        world: The processes that train together; this one alone by default.
    """

    def __init__(
        self,
        backbone: Backbone,
        config: TrainConfig,
        *,
        num_slots: int,
        fine_steps: int,
        delta: int,
        guidance_scale: float = 1.0,
        uncond: Conditioning | None = None,
        world: World = ALONE,
    ) -> None:
        check_fit(config, num_slots)
        self.backbone, self.config, self.world = backbone, config, world
        self.on_oom: Callable[[], bool] = lambda: False  # makes a slot need less memory; whether it could
        self.rate_scale = 1.0  # smaller after training went back from values that were not finite
        attach_lora(backbone, config.rank, config.alpha, config.seed, init=config.lora_init)
        if config.gradient_checkpointing:
            backbone.enable_checkpointing()
        self.lora = lora_weights(backbone)
        self.average = WeightAverage(self.lora, config.ema_decay) if config.ema_decay else None
        self.student = GuardedAdamW(self.lora, config.learning_rate, weight_decay=config.weight_decay)
        course = Course(backbone, config, num_slots, fine_steps, delta, guidance_scale, uncond, world)
        self.method = METHODS[config.method](course, self.student)

    @property
    def learners(self) -> dict[str, GuardedAdamW]:
        """The student's, and those of what is trained beside it, by name."""
        return {"student": self.student, **self.method.others}

    def learning_rate(self, iteration: int) -> float:
        """The student's rate: a linear warm-up, then a cosine down to the final one."""
        rate, last = self.config.learning_rate * self.rate_scale, self.config.min_lr_ratio
        if iteration < self.config.warmup:
            return rate * (iteration + 1) / self.config.warmup
        progress = (iteration - self.config.warmup) / max(1, self.config.iterations - self.config.warmup)
        return rate * ((1 + last) / 2 + (1 - last) / 2 * math.cos(math.pi * min(1.0, progress)))

    def train_step(self, batch: Trajectories, iteration: int) -> list[SlotLosses]:
        """One iteration of the method on a batch of trajectories: RAPM's student walks all slots, updated after each.

        Args:
            batch: This process's trajectories, on the backbone's device.
            iteration: Counts from 0; with the seed it fixes every random number used here.

        Returns:
            The losses of each slot, the noisiest first. A slot whose target, loss or gradient is not finite makes no
            update and ends the walk; a discriminators' loss or gradient that is not finite makes no update of the two.
            A network that is not finite afterwards is told with the last slot.
        """
        for learner in self.learners.values():
            learner.loss_scale = self._loss_scale
            learner.set_rate(learner.learning_rate * self.rate_scale)
        self.student.set_rate(self.learning_rate(iteration))
        report = []
        z = batch.z_teacher[:, -1]  # the noise
        for n in self.method.slots:
            z, log = self._slot_that_fits(batch, n, z, iteration)
            losses = log.read(n, self.world)
            report.append(losses)
            if losses.skipped and losses.skipped != DISCRIMINATOR:
                break
        if self.average:
            self.average.follow(iteration)
        if not nn.utils.get_total_norm([learner.weights.flat for learner in self.learners.values()]).isfinite():
            report[-1].skipped = NETWORK
        return report

    def _slot_that_fits(self, batch: Trajectories, n: int, z_start: Tensor, iteration: int) -> tuple[Tensor, SlotLog]:
        """A slot, again with less memory for as long as there is too little and `on_oom` finds some."""
        while True:
            try:
                return self._slot(batch, n, z_start, iteration)
            except RuntimeError as error:
                failure = require_shortage(error)
            if not self.on_oom():
                raise failure

    def _slot(self, batch: Trajectories, n: int, z_start: Tensor, iteration: int) -> tuple[Tensor, SlotLog]:
        """One slot: the method takes gradients, then everything is updated; nothing waits for the device.

        Returns:
            (B, C, H, W) where the next slot starts; what this one reports, on the device.
        """
        log = SlotLog()
        z = self.method.slot(batch, n, z_start, iteration, log)
        self._update(log)  # last, so that a slot that runs out of memory has changed nothing
        return z, log

    def _update(self, log: SlotLog) -> None:
        """One optimizer step of every learner that has a gradient, or none where something is not finite.

        All memory that they need is taken, and all processes have met, before the first of them changes anything.
        """
        ready = [(learner, learner.loss) for learner in self.learners.values() if learner.loss is not None]
        losses = torch.stack([loss for _, loss in ready])
        for learner, _ in ready:
            learner.init_state()
        gradients = [learner.weights.flat.grad for learner, _ in ready]
        self.world.average([losses, *(gradient for gradient in gradients if gradient is not None)])
        (first, _), *others = ready
        most = self.config.max_grad_norm
        log.is_loss_finite, log.is_lost = first.update(losses[0], most)
        lost = [other.update(loss, most, log.is_lost)[1] for (other, _), loss in zip(others, losses[1:], strict=True)]
        log.are_judges_lost = torch.stack(lost).max() if lost else None

    @property
    def _loss_scale(self) -> float:
        """What a loss is multiplied by on its way back through a network in fp16, where small gradients vanish."""
        return FP16_LOSS_SCALE * self.rate_scale if self.backbone.dtype == torch.float16 else 1.0

    def finalize(self) -> None:
        """After the last iteration: let the network compute with what is exported, the average where one is kept."""
        self.backbone.reset_graphs()  # recordings hold as much memory as training took
        if self.average:
            self.average.sync()

    def state(self) -> dict[str, dict[str, Tensor]]:
        """All that iterations change, in parts, each from names to tensors on the CPU; randomness has no state."""
        parts: dict[str, dict[str, Tensor]] = {}
        for name, learner in self.learners.items():
            parts |= {name: learner.weights.state(), f"{name}-optimizer": learner.state()}
        return parts | ({"average": self.average.state()} if self.average else {})

    def load_state(self, parts: dict[str, dict[str, Tensor]]) -> None:
        """Go back to what `state` returned.

        Raises:
            ValueError: It is another trainer's: a name or a shape differs.
        """
        for name, learner in self.learners.items():
            learner.weights.load_state(parts[name])
            learner.load_state(parts[f"{name}-optimizer"])
        if self.average:
            self.average.load_state(parts["average"])


def batch_indices(seed: int, iteration: int, batch_size: int, count: int) -> Tensor:
    """Trajectories of one iteration: epochs of random permutations, a function of (seed, iteration)."""
    rows = []
    for position in range(iteration * batch_size, (iteration + 1) * batch_size):
        epoch, place = divmod(position, count)
        rows.append(torch.randperm(count, generator=generator_for(seed, "order", epoch))[place])
    return torch.stack(rows)


def train(trainer: Trainer, trajectories: Trajectories | StoredTrajectories, first: int = 0) -> Iterator[Progress]:
    """Run the iterations from `first` on, yielding after each; the next one's trajectories are read meanwhile."""
    config, world, count = trainer.config, trainer.world, len(trajectories)

    def fetch(iteration: int) -> tuple[Tensor, Trajectories]:
        chosen = batch_indices(config.seed, iteration, config.batch_size, count)
        return chosen, trajectories[chosen[world.shard(len(chosen))]]

    for iteration, (chosen, batch) in prefetched(fetch, range(first, config.iterations)):
        before, after = dataclasses.replace(trainer.backbone.passes), trainer.backbone.passes
        slots = trainer.train_step(batch.to(trainer.backbone.device), iteration)
        passes = Passes(world.size * (after.whole - before.whole), world.size * (after.half - before.half))
        yield Progress(iteration, trainer.learning_rate(iteration), chosen.tolist(), slots, passes)


def prefetched(load: Callable[[K], V], keys: Iterable[K]) -> Iterator[tuple[K, V]]:
    """Every key with what `load` makes of it, in order; one load runs ahead, in a thread of its own."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as reader:
        waiting = None
        for key in keys:
            started = key, reader.submit(load, key)
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = started
        if waiting is not None:
            yield waiting[0], waiting[1].result()
