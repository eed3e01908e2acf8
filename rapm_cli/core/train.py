"""Phase 2: read `train_step` from top to bottom, it is the algorithm."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rapm_cli.core.backbone import Backbone, Conditioning
from rapm_cli.core.config import TrainConfig
from rapm_cli.core.discriminators import DISCRIMINATORS, Discriminator
from rapm_cli.core.errors import ConfigError
from rapm_cli.core.losses import hinge_discriminator_mean, hinge_student_mean, pseudo_huber_mean
from rapm_cli.core.optimizer import load_optimizer_state, optimizer_state
from rapm_cli.core.randomness import generator_for
from rapm_cli.core.recovery import NETWORK
from rapm_cli.core.schedule import fine_grid, noise_forward, slot_edges
from rapm_cli.core.student import attach_lora, copy_tensors, load_lora_state, lora_names, lora_parameters, lora_state
from rapm_cli.core.targets import absolute_target, relative_target, student_step
from rapm_cli.core.trajectories import Trajectories


@dataclass
class SlotLosses:
    """What one slot of one iteration reports.

    Args:
        n: The edge that the slot ends at.
        skipped: What was not finite: the target, loss, gradient or discriminator, from which no update was made, or the
            network, all that is trained; empty where all is well.
    """

    n: int
    skipped: str = ""
    relative: float = 0.0
    absolute: float = 0.0
    adversarial: dict[str, float] = field(default_factory=dict)
    discriminator: dict[str, float] = field(default_factory=dict)
    real_logits: dict[str, list[float]] = field(default_factory=dict)  # by position, one for each tap
    fake_logits: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """One finished iteration.

    Args:
        iteration: Counts from 0.
        learning_rate: The student's.
        trajectories: Which were trained on.
        slots: The noisiest first; where one was skipped, the walk may have ended with it.
    """

    iteration: int
    learning_rate: float
    trajectories: list[int]
    slots: list[SlotLosses]

    @property
    def skipped(self) -> str:
        """What was not finite; empty where all is well."""
        return next((slot.skipped for slot in self.slots if slot.skipped), "")


def check_fit(config: TrainConfig, num_slots: int) -> None:
    """Refuse settings that `num_slots` slots cannot use, before any work is done.

    Raises:
        ConfigError: There is no such discriminator, or the slot weights are too many or too few.
    """
    DISCRIMINATORS[config.discriminator]
    if config.slot_weights and len(config.slot_weights) != num_slots:
        raise ConfigError(
            f"--slot-weights has {len(config.slot_weights)} numbers for {num_slots} slots",
            f"give {num_slots}, the noisiest slot first",
        )


class Trainer:
    """The student, its discriminators and their optimizers.

    Args:
        backbone: Base network; a LoRA is attached here.
        config: Settings.
        num_slots: N.
        fine_steps: M.
        delta: Fine steps from an edge to the point ahead.
    """

    def __init__(self, backbone: Backbone, config: TrainConfig, *, num_slots: int, fine_steps: int, delta: int) -> None:
        check_fit(config, num_slots)
        self.backbone, self.config, self.num_slots = backbone, config, num_slots
        self.rate_scale = 1.0  # smaller after training went back from values that were not finite
        self.edges = slot_edges(num_slots, backbone.schedule.length)
        grid = fine_grid(num_slots, fine_steps, backbone.schedule.length)[::-1]  # cleanest first
        self.ahead = [grid[(n + 1) * fine_steps - delta] for n in range(num_slots)]
        attach_lora(backbone, config.rank, config.alpha, config.seed)
        if config.checkpointing:
            backbone.enable_checkpointing()
        self.parameters = lora_parameters(backbone)
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.kind = DISCRIMINATORS[config.discriminator]
        self.discriminators = {
            position: Discriminator(self.kind, backbone, config.seed, position).to(backbone.device)
            for position in config.positions_judged
        }
        self.judges = [p for judge in self.discriminators.values() for p in judge.parameters()]
        self.judge_optimizer = (
            torch.optim.AdamW(
                self.judges, lr=config.discriminator_learning_rate, betas=(0.0, 0.999), weight_decay=1e-3, fused=True
            )
            if self.judges
            else None
        )

    def learning_rate(self, iteration: int) -> float:
        """The student's rate: a linear warm-up, then a cosine down to a tenth."""
        rate = self.config.learning_rate * self.rate_scale
        if iteration < self.config.warmup:
            return rate * (iteration + 1) / self.config.warmup
        progress = (iteration - self.config.warmup) / max(1, self.config.iterations - self.config.warmup)
        return rate * (0.55 + 0.45 * math.cos(math.pi * min(1.0, progress)))

    def train_step(self, batch: Trajectories, iteration: int) -> list[SlotLosses]:
        """One iteration: the student walks all slots of a batch of trajectories, updated after each.

        Args:
            batch: (B, ...) trajectories on the backbone's device.
            iteration: Counts from 0; with the seed it fixes every random number used here.

        Returns:
            The losses of each slot, the noisiest first. A slot whose target, loss or gradient is not finite makes no
            update and ends the walk; a discriminators' loss or gradient that is not finite makes no update of the two.
            A network that is not finite afterwards is told with the last slot.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(iteration)
        for group in self.judge_optimizer.param_groups if self.judge_optimizer else ():
            group["lr"] = self.config.discriminator_learning_rate * self.rate_scale
        report = []
        z_start = batch.z_teacher[:, self.num_slots]  # the noise
        for n in reversed(range(self.num_slots)):
            t, s = self.edges[n + 1], self.edges[n]
            losses = SlotLosses(n)
            report.append(losses)
            goals = self._goals(batch, n)  # first, so that no graph waits in memory for them
            z_student = student_step(self.backbone, z_start, t, s, batch.cond)
            loss = self._distances(z_student, goals, losses)
            if self.discriminators:
                fake = self._see({"fake": z_student}, n, batch.cond, iteration)["fake"]
                loss = loss + self.config.adversarial_weight * self._adversarial(fake, losses)
            if not self._update_student(loss * self._slot_weight(n)):
                is_targets = not all(goal.isfinite().all() for goal in goals.values())
                losses.skipped = "target" if is_targets else "gradient" if loss.isfinite() else "loss"
                break
            if self.discriminators:
                self._update_discriminators([f.detach() for f in fake], goals, n, batch.cond, iteration, losses)
            z_start = z_student.detach() if self.config.start_from == "student" else batch.z_teacher[:, n]
        if not nn.utils.get_total_norm([*self.parameters, *self.judges]).isfinite():
            report[-1].skipped = NETWORK
        return report

    def _goals(self, batch: Trajectories, n: int) -> dict[str, Tensor]:
        goals = {"absolute": absolute_target(batch.z_teacher, n)}
        if self.config.needs_relative_target:
            goals["relative"] = relative_target(
                self.backbone, batch.z_ahead[:, n], self.ahead[n], self.edges[n], batch.cond
            )
        return goals

    def _distances(self, z_student: Tensor, goals: dict[str, Tensor], losses: SlotLosses) -> Tensor:
        distance_absolute = pseudo_huber_mean(z_student, goals["absolute"])
        losses.absolute = distance_absolute.item()
        total = self.config.absolute_weight * distance_absolute
        if "relative" in goals:
            distance_relative = pseudo_huber_mean(z_student, goals["relative"])
            losses.relative = distance_relative.item()
            total = total + self.config.relative_weight * distance_relative
        return total

    def _see(self, latents: dict[str, Tensor], n: int, cond: Conditioning, iteration: int) -> dict[str, list[Tensor]]:
        """Frozen features of latents at edge n, noised to a random time of the slot above it, in one pass.

        Every kind of latent has its own noise; all share the time, so that a discriminator cannot tell by it.
        """
        seed, count = self.config.seed, len(latents)
        z = torch.cat(list(latents.values()))
        time = generator_for(seed, "discriminator time", iteration, n)
        t = torch.randint(max(self.edges[n], 0), self.edges[n + 1], (len(cond),), generator=time).repeat(count)
        noise = torch.cat(
            [
                torch.randn(part.shape, generator=generator_for(seed, "discriminator noise", iteration, n, kind))
                for kind, part in latents.items()
            ]
        )
        noised = noise_forward(z, noise.to(z.device), self.edges[n], t, self.backbone.schedule)
        features = self.kind.features(self.backbone, noised, t.to(z.device), Conditioning.cat([cond] * count))
        return {kind: [f.chunk(count)[k] for f in features] for k, kind in enumerate(latents)}

    def _adversarial(self, fake: list[Tensor], losses: SlotLosses) -> Tensor:
        total = torch.zeros((), device=fake[0].device)
        for position, judge in self.discriminators.items():
            part = hinge_student_mean(judge(fake))
            losses.adversarial[position] = part.item()
            total = total + part
        return total

    def _update_student(self, loss: Tensor) -> bool:
        """One optimizer step, or none where loss or gradient is not finite; whether it was made."""
        gradients = torch.autograd.grad(loss, self.parameters)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        return self._step(loss, self.optimizer, self.parameters)

    def _step(self, loss: Tensor, optimizer: torch.optim.Optimizer, parameters: list[Any]) -> bool:
        norm = nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)
        is_finite = math.isfinite(norm.item()) and math.isfinite(loss.item())
        if is_finite:
            optimizer.step()
        return is_finite

    def _update_discriminators(
        self,
        fake: list[Tensor],
        goals: dict[str, Tensor],
        n: int,
        cond: Conditioning,
        iteration: int,
        losses: SlotLosses,
    ) -> None:
        assert self.judge_optimizer is not None
        with torch.no_grad():
            real = self._see({position: goals[position] for position in self.discriminators}, n, cond, iteration)
        total = torch.zeros((), device=fake[0].device)
        for position, judge in self.discriminators.items():
            real_logits, fake_logits = judge(real[position]), judge(fake)
            part = hinge_discriminator_mean(real_logits, fake_logits)
            losses.discriminator[position] = part.item()
            losses.real_logits[position] = [logits.mean().item() for logits in real_logits]
            losses.fake_logits[position] = [logits.mean().item() for logits in fake_logits]
            total = total + part
        self.judge_optimizer.zero_grad(set_to_none=True)
        total.backward()
        if not self._step(total, self.judge_optimizer, self.judges):
            losses.skipped = "discriminator"

    def _slot_weight(self, n: int) -> float:
        weights = self.config.slot_weights
        return weights[self.num_slots - 1 - n] if weights else 1.0

    def state(self) -> dict[str, dict[str, Tensor]]:
        """All that iterations change, in parts, each from names to tensors on the CPU; randomness has no state."""
        parts = {
            "student": lora_state(self.backbone),
            "student-optimizer": optimizer_state(self.optimizer, lora_names(self.backbone)),
        }
        if self.judge_optimizer:
            judges = self._named_judges()
            parts["discriminators"] = {name: value.detach().cpu() for name, value in judges.items()}
            parts["discriminators-optimizer"] = optimizer_state(self.judge_optimizer, list(judges))
        return parts

    def load_state(self, parts: dict[str, dict[str, Tensor]]) -> None:
        """Go back to what `state` returned.

        Raises:
            ValueError: It is another trainer's: a name or a shape differs.
        """
        load_lora_state(self.backbone, parts["student"])
        load_optimizer_state(self.optimizer, lora_names(self.backbone), parts["student-optimizer"])
        if self.judge_optimizer:
            judges = self._named_judges()
            copy_tensors(parts["discriminators"], judges)
            load_optimizer_state(self.judge_optimizer, list(judges), parts["discriminators-optimizer"])

    def _named_judges(self) -> dict[str, Tensor]:
        return {
            f"{position}.{name}": value
            for position, judge in self.discriminators.items()
            for name, value in judge.named_parameters()
        }


def batch_indices(seed: int, iteration: int, batch_size: int, count: int) -> Tensor:
    """Trajectories of one iteration: epochs of random permutations, a function of (seed, iteration)."""
    rows = []
    for position in range(iteration * batch_size, (iteration + 1) * batch_size):
        epoch, place = divmod(position, count)
        rows.append(torch.randperm(count, generator=generator_for(seed, "order", epoch))[place])
    return torch.stack(rows)


def train(trainer: Trainer, trajectories: Trajectories, first: int = 0) -> Iterator[Progress]:
    """Run the iterations from `first` on, yielding after each."""
    config, count = trainer.config, len(trajectories)
    for iteration in range(first, config.iterations):
        chosen = batch_indices(config.seed, iteration, config.batch_size, count)
        batch = trajectories[chosen].to(trainer.backbone.device)
        slots = trainer.train_step(batch, iteration)
        yield Progress(iteration, trainer.learning_rate(iteration), chosen.tolist(), slots)
