"""Phase 2: the iterations of a method, and the updates of the student and the critics."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from rapm_cli.core.common.errors import ConfigError, require_shortage
from rapm_cli.core.common.randomness import generator_for
from rapm_cli.core.method import METHODS, sampler_of
from rapm_cli.core.method.config import TeacherConfig, TrainConfig, to_json
from rapm_cli.core.method.context import TrainingContext
from rapm_cli.core.method.store import StoredTrajectories
from rapm_cli.core.method.trajectories import Trajectories
from rapm_cli.core.network.backbone import Backbone, Conditioning, Passes
from rapm_cli.core.network.student import attach_lora, lora_weights
from rapm_cli.core.training.distributed import ALONE, World
from rapm_cli.core.training.optimizer import GuardedAdamW, WeightAverage, backward
from rapm_cli.core.training.recovery import NETWORK
from rapm_cli.core.training.step_metrics import (
    DISCRIMINATOR,
    DeviceMetrics,
    StepMetrics,
    UpdateFlags,
    read_metrics,
)

K = TypeVar("K")
V = TypeVar("V")
FP16_LOSS_SCALE = 4096.0  # a mean over 65,536 values has gradients that fp16 rounds to zero


@dataclass(frozen=True)
class Progress:
    """One finished iteration.

    Args:
        iteration: Counts from 0.
        learning_rate: The student's learning rate.
        trajectories: Indices of the trajectories of the batch.
        slots: Metrics of each slot, the noisiest first; a skipped slot may be the last.
        passes: Passes of the network, in all processes.
    """

    iteration: int
    learning_rate: float
    trajectories: list[int]
    slots: list[StepMetrics]
    passes: Passes

    @property
    def skipped(self) -> str:
        """What was not finite in the first skipped slot; empty if all is well."""
        return next((slot.skipped for slot in self.slots if slot.skipped), "")


def check_fit(config: TrainConfig, num_slots: int) -> None:
    """Check that settings fit `num_slots` slots, before any work is done.

    Raises:
        ConfigError: The method cannot be sampled in `num_slots` steps, or the number of slot weights is not
            `num_slots`.
    """
    sampler_of(to_json(config)).recipe(num_slots)
    if config.slot_weights and len(config.slot_weights) != num_slots:
        raise ConfigError(
            f"--slot-weights has {len(config.slot_weights)} numbers for {num_slots} slots",
            f"give {num_slots}, the noisiest slot first",
        )


def uses_option(name: str, method: str) -> bool:
    """Return whether a method uses a setting; False for one that belongs to other methods only."""
    users = {other for other in METHODS.names() if name in METHODS[other].options}
    return not users or method in users


def check_options(named: Iterable[str], method: str) -> None:
    """Check that a method uses all the settings that the user gave.

    Args:
        named: Names of the settings that the user gave.
        method: Name from `METHODS`.

    Raises:
        ConfigError: One of them belongs to other methods only.
    """
    for name in named:
        if not uses_option(name, method):
            raise ConfigError(
                f"--{name.replace('_', '-')} does not apply to --method {method}", "leave one of the two out"
            )


class Trainer:
    """The student, what is trained beside it, and the method that trains them.

    Args:
        backbone: Base network; a fresh LoRA is attached to it.
        config: Settings of the training.
        num_slots: N.
        fine_steps: M.
        delta: Number of fine steps from an edge to the point ahead.
        guidance_scale: The teacher's guidance scale, for methods that ask the teacher.
        uncond: One row of the empty prompt's conditioning, for methods that ask the teacher.
        world: The processes that train together.
        on_oom: Called when a slot runs out of memory. It makes slots need less memory and returns True, or returns
            False if it cannot.
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
        on_oom: Callable[[], bool] = lambda: False,
    ) -> None:
        check_fit(config, num_slots)
        self.backbone, self.config, self.world, self._on_oom = backbone, config, world, on_oom
        self.rate_scale = 1.0  # smaller after training went back from values that were not finite
        attach_lora(backbone, config.rank, config.alpha, config.seed, init=config.lora_init)
        if config.gradient_checkpointing:
            backbone.enable_checkpointing()
        self.lora = lora_weights(backbone)
        self.average = WeightAverage(self.lora, config.ema_decay) if config.ema_decay else None
        self.student = GuardedAdamW(self.lora, config.learning_rate, weight_decay=config.weight_decay)
        context = TrainingContext(backbone, config, num_slots, fine_steps, delta, guidance_scale, uncond, world)
        self.method = METHODS[config.method](context)

    @classmethod
    def of_teacher(
        cls, backbone: Backbone, config: TrainConfig, teacher: TeacherConfig, uncond: Conditioning | None, **more: Any
    ) -> Self:
        """Return a trainer on the grid and with the guidance of a teacher; arguments as in `Trainer`."""
        return cls(
            backbone,
            config,
            num_slots=teacher.num_slots,
            fine_steps=teacher.fine_steps,
            delta=teacher.delta,
            guidance_scale=teacher.guidance_scale,
            uncond=uncond,
            **more,
        )

    def start_at(self, state: dict[str, Tensor]) -> None:
        """Let the student start at other weights than a fresh LoRA's; before the first iteration.

        Args:
            state: Tensors of the LoRA by peft key.

        Raises:
            ValueError: A key or a shape differs.
        """
        self.lora.load_state(state)
        if self.average:
            self.average.load_state(state)

    @property
    def optimizers(self) -> dict[str, GuardedAdamW]:
        """The optimizers of the student and of the method's critics, by name."""
        return {"student": self.student, **self.method.critics}

    def learning_rate(self, iteration: int) -> float:
        """Return the student's learning rate: a linear warm-up, then a cosine down to the final rate."""
        rate, last = self.config.learning_rate * self.rate_scale, self.config.min_lr_ratio
        if iteration < self.config.warmup:
            return rate * (iteration + 1) / self.config.warmup
        progress = (iteration - self.config.warmup) / max(1, self.config.iterations - self.config.warmup)
        return rate * ((1 + last) / 2 + (1 - last) / 2 * math.cos(math.pi * min(1.0, progress)))

    def train_step(self, batch: Trajectories, iteration: int) -> list[StepMetrics]:
        """Run one iteration of the method on a batch: the student walks the method's slots and is updated in each.

        A slot whose target, loss or gradient is not finite makes no update and ends the walk. Critics whose loss or
        gradient is not finite are not updated, and the student walks on.

        Args:
            batch: This process's trajectories, on the backbone's device.
            iteration: Counts from 0; with the seed it fixes every random number used here.

        Returns:
            The metrics of each slot, the noisiest first. If the trained weights are not finite afterwards, the last
            slot says so.
        """
        for optimizer in self.optimizers.values():
            optimizer.loss_scale = self._loss_scale
            optimizer.set_rate(optimizer.learning_rate * self.rate_scale)
        self.student.set_rate(self.learning_rate(iteration))
        report = []
        z = batch.z_teacher[:, -1]  # the noise
        for n in self.method.slots:
            z, metrics, flags = self._run_slot_with_fallback(batch, n, z, iteration)
            step = read_metrics(metrics, flags, n, self.world)
            report.append(step)
            if step.skipped and step.skipped != DISCRIMINATOR:
                break
        if self.average:
            self.average.follow(iteration)
        if not nn.utils.get_total_norm([optimizer.weights.flat for optimizer in self.optimizers.values()]).isfinite():
            report[-1].skipped = NETWORK
        return report

    def _run_slot_with_fallback(
        self, batch: Trajectories, n: int, z_start: Tensor, iteration: int
    ) -> tuple[Tensor, DeviceMetrics, UpdateFlags]:
        """Run a slot; when memory runs out, repeat it as long as `on_oom` finds a way to need less."""
        while True:
            try:
                return self._run_slot(batch, n, z_start, iteration)
            except RuntimeError as error:
                failure = require_shortage(error)
            if not self._on_oom():
                raise failure

    def _run_slot(
        self, batch: Trajectories, n: int, z_start: Tensor, iteration: int
    ) -> tuple[Tensor, DeviceMetrics, UpdateFlags]:
        """Compute the losses of one slot, take their gradients and update; nothing waits for the device.

        Returns:
            (B, C, H, W) start of the next slot; the slot's measurements; what the updates found finite.
        """
        losses: dict[str, Tensor] = {}
        slot = self.method.student_loss(batch, n, z_start, iteration)
        if slot.loss is not None:
            losses["student"] = self.student.backward(slot.loss)  # frees its graph before the critics need memory
        critics = self.method.critic_loss(slot, batch.cond, n, iteration)
        if critics:
            losses |= dict.fromkeys(self.method.critics, backward(critics.loss, *self.method.critics.values()))
        are_targets_finite = torch.stack([target.isfinite().all() for target in slot.targets.values()]).all()
        flags = self._update(losses, are_targets_finite)  # last: a slot that runs out of memory has changed nothing
        return slot.z_next, slot.metrics | critics.metrics if critics else slot.metrics, flags

    def _update(self, losses: Mapping[str, Tensor], are_targets_finite: Tensor) -> UpdateFlags:
        """Update the weights of these losses, but none if the loss or the gradient of the first is not finite.

        Before anything changes, all memory for the updates is taken, and the processes have averaged their gradients.

        Args:
            losses: Scalar losses by the name of their optimizer, as `backward` returned them; the student's is first.
            are_targets_finite: Scalar True if every target of the slot is finite.
        """
        first, *others = [self.optimizers[name] for name in losses]
        means = torch.stack(list(losses.values()))
        for optimizer in (first, *others):
            optimizer.init_state()
        gradients = [optimizer.weights.flat.grad for optimizer in (first, *others)]
        self.world.average([means, *(gradient for gradient in gradients if gradient is not None)])
        max_norm = self.config.max_grad_norm
        is_finite, is_skipped = first.update(means[0], max_norm)
        pairs = zip(others, means[1:], strict=True)
        skipped = [other.update(loss, max_norm, is_skipped)[1] for other, loss in pairs]
        return UpdateFlags(are_targets_finite, is_finite, is_skipped, torch.stack(skipped).max() if skipped else None)

    @property
    def _loss_scale(self) -> float:
        """The factor of the loss in backward: above 1 in fp16, where small gradients vanish."""
        return FP16_LOSS_SCALE * self.rate_scale if self.backbone.dtype == torch.float16 else 1.0

    def finalize(self) -> None:
        """Put the exported weights, which are the average if one is kept, in the network after the last iteration."""
        self.backbone.reset_graphs()  # they hold as much memory as training took
        if self.average:
            self.average.sync()

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return everything that iterations change, as parts of named tensors on the CPU; randomness has no state."""
        parts: dict[str, dict[str, Tensor]] = {}
        for name, optimizer in self.optimizers.items():
            parts |= {name: optimizer.weights.state(), f"{name}-optimizer": optimizer.state()}
        return parts | ({"average": self.average.state()} if self.average else {})

    def load_state(self, parts: dict[str, dict[str, Tensor]]) -> None:
        """Load what `state` returned.

        Raises:
            ValueError: A name or a shape differs, because the state is another trainer's.
        """
        for name, optimizer in self.optimizers.items():
            optimizer.weights.load_state(parts[name])
            optimizer.load_state(parts[f"{name}-optimizer"])
        if self.average:
            self.average.load_state(parts["average"])


def batch_indices(seed: int, iteration: int, batch_size: int, count: int, stride: int = 1) -> Tensor:
    """Return the indices of one iteration's trajectories: epochs of random permutations, fixed by the seed.

    Where several sizes alternate, a batch has one size, and an epoch is a permutation of whole batches.

    Args:
        seed: Seed of the training.
        iteration: Counts from 0.
        batch_size: Number of trajectories in the batch of all processes.
        count: Number of trajectories in an epoch.
        stride: Number of trajectories from one to the next of the same size.

    Returns:
        (batch_size,) indices in [0, count), on the CPU.
    """
    if stride > 1:
        return _indices_of_one_size(seed, iteration, batch_size, count, stride)
    rows = []
    for position in range(iteration * batch_size, (iteration + 1) * batch_size):
        epoch, place = divmod(position, count)
        rows.append(torch.randperm(count, generator=generator_for(seed, "order", epoch))[place])
    return torch.stack(rows)


def _indices_of_one_size(seed: int, iteration: int, batch_size: int, count: int, stride: int) -> Tensor:
    """Return the indices of a batch of one size; the last batch of a size in an epoch is filled up from its first."""
    sizes = [range(first, count, stride) for first in range(min(stride, count))]
    batches = [(size, k) for size, rows in enumerate(sizes) for k in range(0, len(rows), batch_size)]
    epoch, place = divmod(iteration, len(batches))
    size, start = batches[int(torch.randperm(len(batches), generator=generator_for(seed, "order", epoch))[place])]
    rows = sizes[size]
    order = torch.randperm(len(rows), generator=generator_for(seed, "order", epoch, size))
    return size + stride * order[torch.arange(start, start + batch_size) % len(rows)]


def train(trainer: Trainer, trajectories: Trajectories | StoredTrajectories, first: int = 0) -> Iterator[Progress]:
    """Run the iterations from `first` on and yield after each; a thread reads the next batch meanwhile.

    Args:
        trainer: The trainer; its settings hold the batch size and the number of iterations.
        trajectories: All trajectories, on the CPU or on disk.
        first: Number of iterations that are done already.

    Yields:
        What each iteration did.
    """
    config, world, count = trainer.config, trainer.world, len(trajectories)

    def fetch(iteration: int) -> tuple[Tensor, Trajectories]:
        chosen = batch_indices(config.seed, iteration, config.batch_size, count, trajectories.stride)
        return chosen, trajectories[chosen[world.shard(len(chosen))]]

    for iteration, (chosen, batch) in prefetched(fetch, range(first, config.iterations)):
        before, after = dataclasses.replace(trainer.backbone.passes), trainer.backbone.passes
        slots = trainer.train_step(batch.to(trainer.backbone.device), iteration)
        passes = Passes(world.size * (after.whole - before.whole), world.size * (after.half - before.half))
        yield Progress(iteration, trainer.learning_rate(iteration), chosen.tolist(), slots, passes)


def prefetched(load: Callable[[K], V], keys: Iterable[K]) -> Iterator[tuple[K, V]]:
    """Yield every key with `load(key)`, in order; a thread loads one key ahead."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as reader:
        waiting = None
        for key in keys:
            started = key, reader.submit(load, key)
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = started
        if waiting is not None:
            yield waiting[0], waiting[1].result()
