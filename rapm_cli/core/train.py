"""Phase 2: read `train_step` from top to bottom, it is the algorithm."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rapm_cli.core.backbone import Backbone, Conditioning
from rapm_cli.core.config import TrainConfig
from rapm_cli.core.discriminators import DISCRIMINATORS, Discriminator
from rapm_cli.core.errors import ConfigError, require_shortage
from rapm_cli.core.learner import Learner
from rapm_cli.core.losses import hinge_discriminator_mean, hinge_student_mean, pseudo_huber_mean
from rapm_cli.core.parallel import ALONE, Ranks
from rapm_cli.core.prefetch import prefetched
from rapm_cli.core.randomness import generator_for
from rapm_cli.core.recovery import NETWORK
from rapm_cli.core.schedule import fine_grid, noise_forward, slot_edges
from rapm_cli.core.slotlog import DISCRIMINATOR, SlotLog, SlotLosses
from rapm_cli.core.store import StoredTrajectories
from rapm_cli.core.student import attach_lora, lora_weights
from rapm_cli.core.targets import absolute_target, relative_target, student_step
from rapm_cli.core.trained import TrainedWeights
from rapm_cli.core.trajectories import Trajectories
from rapm_cli.core.transfer import upload

FP16_LOSS_SCALE = 4096.0  # a mean over 65,536 values has gradients that fp16 rounds to nothing


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
        ranks: The processes that train together; this one alone by default.
    """

    def __init__(
        self,
        backbone: Backbone,
        config: TrainConfig,
        *,
        num_slots: int,
        fine_steps: int,
        delta: int,
        ranks: Ranks = ALONE,
    ) -> None:
        check_fit(config, num_slots)
        self.backbone, self.config, self.num_slots, self.ranks = backbone, config, num_slots, ranks
        self.relieve: Callable[[], bool] = lambda: False  # makes a slot need less memory; whether it could
        self.rate_scale = 1.0  # smaller after training went back from values that were not finite
        self.edges = slot_edges(num_slots, backbone.schedule.length)
        grid = fine_grid(num_slots, fine_steps, backbone.schedule.length)[::-1]  # cleanest first
        self.ahead = [grid[(n + 1) * fine_steps - delta] for n in range(num_slots)]
        attach_lora(backbone, config.rank, config.alpha, config.seed)
        if config.checkpointing:
            backbone.enable_checkpointing()
        self.lora = lora_weights(backbone)
        self.student = Learner(self.lora, config.learning_rate, weight_decay=config.weight_decay)
        self.kind = DISCRIMINATORS[config.discriminator]
        self.discriminators = {
            position: Discriminator(self.kind, backbone, config.seed, position).to(backbone.device)
            for position in config.positions_judged
        }
        self.judges = self._learner_of_judges() if self.discriminators else None

    def _learner_of_judges(self) -> Learner:
        named = {
            f"{position}.{name}": value
            for position, judge in self.discriminators.items()
            for name, value in judge.named_parameters()
        }
        rate, betas = self.config.discriminator_learning_rate, (0.0, 0.999)
        return Learner(TrainedWeights(named, torch.float32), rate, betas=betas, weight_decay=1e-3)

    @property
    def learners(self) -> list[Learner]:
        """The student's, and that of the discriminators where there are any."""
        return [self.student, self.judges] if self.judges else [self.student]

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
            batch: This process's trajectories, on the backbone's device.
            iteration: Counts from 0; with the seed it fixes every random number used here.

        Returns:
            The losses of each slot, the noisiest first. A slot whose target, loss or gradient is not finite makes no
            update and ends the walk; a discriminators' loss or gradient that is not finite makes no update of the two.
            A network that is not finite afterwards is told with the last slot.
        """
        self.student.set_rate(self.learning_rate(iteration))
        if self.judges:
            self.judges.set_rate(self.config.discriminator_learning_rate * self.rate_scale)
        report = []
        z_start = batch.z_teacher[:, self.num_slots]  # the noise
        for n in reversed(range(self.num_slots)):
            z_student, log = self._slot_that_fits(batch, n, z_start, iteration)
            losses = log.read(n, self.ranks)
            report.append(losses)
            if losses.skipped and losses.skipped != DISCRIMINATOR:
                break
            z_start = z_student if self.config.start_from == "student" else batch.z_teacher[:, n]
        if not nn.utils.get_total_norm([learner.weights.flat for learner in self.learners]).isfinite():
            report[-1].skipped = NETWORK
        return report

    def _slot_that_fits(self, batch: Trajectories, n: int, z_start: Tensor, iteration: int) -> tuple[Tensor, SlotLog]:
        """A slot, again with less memory for as long as there is too little and `relieve` finds some."""
        while True:
            try:
                return self._slot(batch, n, z_start, iteration)
            except RuntimeError as error:
                failure = require_shortage(error)
            if not self.relieve():
                raise failure

    def _slot(self, batch: Trajectories, n: int, z_start: Tensor, iteration: int) -> tuple[Tensor, SlotLog]:
        """One slot: the student's step, both targets, one update of the student, one of the discriminators.

        Nothing in here waits for the device: what is not finite makes the optimizers skip there.

        Args:
            batch: Trajectories.
            n: The edge that the slot ends at.
            z_start: (B, C, H, W) latent at edge n + 1.
            iteration: Counts from 0.

        Returns:
            (B, C, H, W) the student's latent at edge n, detached; what the slot reports, on the device.
        """
        log = SlotLog()
        goals = self._goals(batch, n)  # first, so that no graph waits in memory for them
        z_student = student_step(self.backbone, z_start, self.edges[n + 1], self.edges[n], batch.cond)
        loss, judged = self._distances(z_student, goals, log), None
        if self.discriminators:
            fake = self._see({"fake": z_student}, n, batch.cond, iteration)["fake"]
            loss = loss + self.config.adversarial_weight * self._adversarial(fake, log)
        loss = loss * self._slot_weight(n)
        self.lora.take_gradients(loss, self._loss_scale)
        if self.judges:
            judged = self._judge(self.judges, [f.detach() for f in fake], goals, n, batch.cond, iteration, log)
        self._update(loss, judged, goals, log)  # last, so that a slot that runs out of memory has changed nothing
        return z_student.detach(), log

    def _goals(self, batch: Trajectories, n: int) -> dict[str, Tensor]:
        goals = {"absolute": absolute_target(batch.z_teacher, n)}
        if self.config.needs_relative_target:
            goals["relative"] = relative_target(
                self.backbone, batch.z_ahead[:, n], self.ahead[n], self.edges[n], batch.cond
            )
        return goals

    def _distances(self, z_student: Tensor, goals: dict[str, Tensor], log: SlotLog) -> Tensor:
        total = torch.zeros((), device=z_student.device)
        for position, goal in goals.items():
            distance = pseudo_huber_mean(z_student, goal)
            log.distance[position] = distance.detach()
            total = total + self._distance_weights[position] * distance
        return total

    def _see(self, latents: dict[str, Tensor], n: int, cond: Conditioning, iteration: int) -> dict[str, list[Tensor]]:
        """Frozen features of latents at edge n, noised to a random time of the slot above it, in one pass.

        Every kind of latent has its own noise; all share the time, so that a discriminator cannot tell by it. Both are
        drawn for the whole batch, of which this process has its rows.
        """
        seed, count = self.config.seed, len(latents)
        z = torch.cat(list(latents.values()))
        size = (len(cond) * self.ranks.world, *z.shape[1:])
        rows = self.ranks.rows(size[0])
        time = generator_for(seed, "discriminator time", iteration, n)
        t = torch.randint(max(self.edges[n], 0), self.edges[n + 1], size[:1], generator=time)[rows].repeat(count)
        noise = torch.cat(
            [
                torch.randn(size, generator=generator_for(seed, "discriminator noise", iteration, n, kind))[rows]
                for kind in latents
            ]
        )
        noised = noise_forward(z, upload(noise, z.device), self.edges[n], t, self.backbone.schedule)
        features = self.kind.features(self.backbone, noised, upload(t, z.device), Conditioning.cat([cond] * count))
        return {kind: [f.chunk(count)[k] for f in features] for k, kind in enumerate(latents)}

    def _adversarial(self, fake: list[Tensor], log: SlotLog) -> Tensor:
        total = torch.zeros((), device=fake[0].device)
        for position, judge in self.discriminators.items():
            part = hinge_student_mean(judge(fake))
            log.adversarial[position] = part.detach()
            total = total + part
        return total

    def _judge(
        self,
        judges: Learner,
        fake: list[Tensor],
        goals: dict[str, Tensor],
        n: int,
        cond: Conditioning,
        iteration: int,
        log: SlotLog,
    ) -> Tensor:
        """The discriminators' loss, and its gradients."""
        with torch.no_grad():
            real = self._see({position: goals[position] for position in self.discriminators}, n, cond, iteration)
        total = torch.zeros((), device=fake[0].device)
        for position, judge in self.discriminators.items():
            real_logits, fake_logits = judge(real[position]), judge(fake)
            part = hinge_discriminator_mean(real_logits, fake_logits)
            log.discriminator[position] = part.detach()
            log.real_logits[position] = torch.stack([logits.detach().mean() for logits in real_logits])
            log.fake_logits[position] = torch.stack([logits.detach().mean() for logits in fake_logits])
            total = total + part
        judges.weights.take_gradients(total)
        return total

    def _update(self, loss: Tensor, judged: Tensor | None, goals: dict[str, Tensor], log: SlotLog) -> None:
        """One optimizer step of the student and one of the discriminators, or none where something is not finite.

        All memory that they need is taken, and all processes have met, before the first of them changes anything.
        """
        losses = torch.stack([part.detach().float() for part in (loss, judged) if part is not None])
        log.are_goals_finite = torch.stack([goal.isfinite().all() for goal in goals.values()]).all()
        for learner in self.learners:
            learner.take_memory()
        gradients = [learner.weights.flat.grad for learner in self.learners]
        self.ranks.average([losses, *(gradient for gradient in gradients if gradient is not None)])
        log.is_loss_finite, log.is_lost = self.student.update(losses[0], self.config.max_grad_norm)
        if self.judges:
            log.are_judges_lost = self.judges.update(losses[1], self.config.max_grad_norm, log.is_lost)[1]

    @property
    def _distance_weights(self) -> dict[str, float]:
        return {"absolute": self.config.absolute_weight, "relative": self.config.relative_weight}

    @property
    def _loss_scale(self) -> float:
        """What a loss is multiplied by on its way back through a network in fp16, where small gradients vanish."""
        return FP16_LOSS_SCALE * self.rate_scale if self.backbone.dtype == torch.float16 else 1.0

    def _slot_weight(self, n: int) -> float:
        weights = self.config.slot_weights
        return weights[self.num_slots - 1 - n] if weights else 1.0

    def state(self) -> dict[str, dict[str, Tensor]]:
        """All that iterations change, in parts, each from names to tensors on the CPU; randomness has no state."""
        parts = {"student": self.lora.state(), "student-optimizer": self.student.state()}
        if self.judges:
            parts |= {"discriminators": self.judges.weights.state(), "discriminators-optimizer": self.judges.state()}
        return parts

    def load_state(self, parts: dict[str, dict[str, Tensor]]) -> None:
        """Go back to what `state` returned.

        Raises:
            ValueError: It is another trainer's: a name or a shape differs.
        """
        self.lora.load_state(parts["student"])
        self.student.load_state(parts["student-optimizer"])
        if self.judges:
            self.judges.weights.load_state(parts["discriminators"])
            self.judges.load_state(parts["discriminators-optimizer"])


def batch_indices(seed: int, iteration: int, batch_size: int, count: int) -> Tensor:
    """Trajectories of one iteration: epochs of random permutations, a function of (seed, iteration)."""
    rows = []
    for position in range(iteration * batch_size, (iteration + 1) * batch_size):
        epoch, place = divmod(position, count)
        rows.append(torch.randperm(count, generator=generator_for(seed, "order", epoch))[place])
    return torch.stack(rows)


def train(trainer: Trainer, trajectories: Trajectories | StoredTrajectories, first: int = 0) -> Iterator[Progress]:
    """Run the iterations from `first` on, yielding after each; the next one's trajectories are read meanwhile."""
    config, ranks, count = trainer.config, trainer.ranks, len(trajectories)

    def fetch(iteration: int) -> tuple[Tensor, Trajectories]:
        chosen = batch_indices(config.seed, iteration, config.batch_size, count)
        return chosen, trajectories[chosen[ranks.rows(len(chosen))]]

    for iteration, (chosen, batch) in prefetched(fetch, range(first, config.iterations)):
        slots = trainer.train_step(batch.to(trainer.backbone.device), iteration)
        yield Progress(iteration, trainer.learning_rate(iteration), chosen.tolist(), slots)
