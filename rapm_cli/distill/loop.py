"""Phase 2 without loss: checkpoints, signals, and the recovery from values that are not finite."""

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from rapm_cli.core.common.errors import (
    DamagedError,
    DiskError,
    DivergedError,
    InputError,
    OutOfMemoryError,
    Stopped,
    VerificationError,
    require_shortage,
)
from rapm_cli.core.common.progress import Bar, Reporter
from rapm_cli.core.method.store import StoredTrajectories
from rapm_cli.core.method.trainer import Progress, Trainer, train
from rapm_cli.core.storage.commit import commit
from rapm_cli.core.storage.files import append_to_file, replace_file
from rapm_cli.core.storage.room import require_room
from rapm_cli.core.training.distributed import Verdict
from rapm_cli.core.training.recovery import NETWORK, Health
from rapm_cli.core.training.step_metrics import StepMetrics
from rapm_cli.distill.replicas import send_state
from rapm_cli.runs import signals
from rapm_cli.runs.checkpoints import KEPT, Checkpoint, Checkpoints, checkpoint_name
from rapm_cli.runs.retry import with_retries
from rapm_cli.runs.run import OFFENDING, Run
from rapm_cli.runs.settings import Settings

MAX_CHECKPOINTS = 2 * KEPT + 1  # training checkpoints that a run folder holds at once
STATE = 3  # numbers in a checkpoint for each trained one: the optimizer adds two
MAX_OFFENDING = 16  # skipped iterations whose trajectories are kept for inspection


class Training:
    """Training from the newest checkpoint to the last iteration.

    Args:
        run: Run folder, locked by this process.
        settings: Settings of the run.
        trainer: A fresh trainer.
        trajectories: All trajectories of the run.
        is_strict: True to stop at a damaged checkpoint instead of using an older one.
        reporter: Receives the progress bar and warnings.
        follow: Called with each iteration's line of the log.
        begin: Called with the trainer before the first iteration, where there is no checkpoint.

    Raises:
        InputError: A checkpoint does not fit the trainer.
        DamagedError: A checkpoint is damaged, and `is_strict` is True.
        DiskError: The disk has too little room for the checkpoints.
    """

    def __init__(
        self,
        run: Run,
        settings: Settings,
        trainer: Trainer,
        trajectories: StoredTrajectories,
        *,
        is_strict: bool,
        reporter: Reporter,
        follow: Callable[[dict[str, Any]], None] = lambda line: None,
        begin: Callable[[Trainer], None] = lambda trainer: None,
    ) -> None:
        self.run, self.settings, self.trainer = run, settings, trainer
        self.trajectories, self.is_strict, self.reporter = trajectories, is_strict, reporter
        self.follow = follow
        self.checkpoints = Checkpoints(run, settings)
        self.done, self.saved, self.health = 0, self.checkpoints.save_settings(), Health()
        self.seconds, self.saving_seconds = 0.0, 0.0
        weights = sum(value.nbytes for part in trainer.state().values() for value in part.values())
        more = max(1, MAX_CHECKPOINTS - len(run.checkpoint_folders()))
        require_room(run.folder, STATE * weights * more, "keeping checkpoints")
        checkpoint, damage = self.checkpoints.load_newest()
        self._warn_of_damage(damage, checkpoint)
        self.checkpoints.set_aside(damage)
        self._log = bytearray()
        if checkpoint:
            self._restore(checkpoint)
            if self.done < self.total:
                self.reporter.say(f"resuming after iteration {self.done} of {self.total}")
        else:
            begin(trainer)
            self._save(is_regular=True)
        send_state(trainer, self.done)

    @property
    def total(self) -> int:
        """Number of iterations of the whole run."""
        return self.settings.training.iterations

    def finish(self) -> None:
        """Run the iterations that are left.

        Raises:
            Stopped: A signal came; the work is saved.
            DivergedError: Neither skipping nor going back has helped.
            DiskError: A checkpoint cannot be written.
        """
        self._show_log()
        if self.done == self.total:
            return
        device, begun = self.trainer.backbone.device, self.seconds
        clock = time.perf_counter()
        with (
            self.reporter.bar("training", self.total, "iteration", device, done=self.done) as bar,
            signals.deferred("this iteration"),
        ):
            while self.done < self.total:
                for progress in self._iterations():
                    self.seconds = begun + time.perf_counter() - clock
                    self._take(progress)
                    bar.advance(note=note(progress.slots))
                    if self.health.must_return:
                        self._go_back(bar)
                        send_state(self.trainer, self.done)
                        break
                    self._save_where_due()
                    self.trainer.world.broadcast_verdict(Verdict.GO)
        self._show_log()

    def _iterations(self) -> Iterator[Progress]:
        """Yield the remaining iterations; if memory runs out for good, the error says how to resume."""
        try:
            yield from train(self.trainer, self.trajectories, self.done)
        except RuntimeError as error:
            failure = require_shortage(error)
            raise OutOfMemoryError(
                f"training is out of memory at iteration {self.done}; {int(self.saved)} iterations are saved",
                f"close other programs on the device and resume with: {self.run.resume_command}; "
                "with --vram 8 its base is rounded to 8 bits",
            ) from failure

    def _take(self, progress: Progress) -> None:
        """Log an iteration, and keep its trajectories if it was skipped."""
        self.done = progress.iteration + 1
        self.health = self.health.after(progress.skipped)
        line = log_line(progress)
        self._append(line)
        if progress.skipped:
            self._keep_offending(progress)
        self.follow(line)

    def _save_where_due(self) -> None:
        # Training may return to a regular checkpoint.
        is_regular = self.done % self.settings.checkpoint_every == 0 and not self.health.skips
        if signals.take_save_request() or is_regular or self.done == self.total:
            self._save(is_regular=is_regular)
        number = self.trainer.world.request_stop(signals.pending())  # sent to any of the processes
        if number is not None:
            self._save(is_regular=is_regular)
            self.trainer.world.broadcast_verdict(Verdict.STOP, number)
            saved = f"{self.done} of {self.total} iterations are saved"
            raise Stopped(number, saved, f"resume with: {self.run.resume_command}")

    def _save(self, *, is_regular: bool) -> None:
        if self.saved == checkpoint_name(self.done):
            return
        clock = time.perf_counter()
        state, log = self.trainer.state(), bytes(self._log)
        checkpoint = Checkpoint(self.done, state, self.health, log, self.seconds, is_regular)
        with_retries(
            lambda: self.checkpoints.save(checkpoint, self.saved),
            self.run.checkpoints_dir / checkpoint_name(self.done),
            len(log) + sum(value.nbytes for part in state.values() for value in part.values()),
            self.reporter,
            f"the last checkpoint is {self.saved}",
            f"resume with: {self.run.resume_command}",
        )
        self.saved = checkpoint_name(self.done)
        self.saving_seconds += time.perf_counter() - clock

    def _restore(self, checkpoint: Checkpoint) -> None:
        try:
            self.trainer.load_state(checkpoint.parts)
        except (ValueError, KeyError) as error:
            raise InputError(
                f"checkpoint {checkpoint_name(checkpoint.iterations)} of {self.run.folder} does not fit: {error}",
                "resume it with the version of rapm and its libraries that made it",
            ) from error
        self.done, self.saved = checkpoint.iterations, checkpoint_name(checkpoint.iterations)
        self._log, self.health = bytearray(checkpoint.log), checkpoint.health
        self.seconds = max(self.seconds, checkpoint.seconds)
        self.trainer.rate_scale = self.health.rate_scale

    def _go_back(self, bar: Bar) -> None:
        """Go back to the regular checkpoint before the first skip, with a smaller rate; the log keeps its lines.

        Checkpoints that a signal caused do not count, because where training goes back to must not be chance.
        """
        failed, health, log = self.done, self.health, self._log
        last = json.loads(log.splitlines()[-1])["skipped"]
        if health.must_stop:
            is_half = self.settings.teacher.precision == "fp16"
            raise DivergedError(
                f"training diverged: the {last} is not finite at iteration {failed - 1}, after going back "
                f"{health.returns} times; the trajectories are in {self.run.folder / OFFENDING}",
                f"start again with a lower --learning-rate{', or --precision bf16 or fp32' if is_half else ''}",
            )
        checkpoint, damage = self.checkpoints.load_regular(at_most=failed - health.skips)
        self._warn_of_damage(damage, checkpoint)
        if checkpoint is None:
            raise DivergedError(f"training diverged at iteration {failed}, and no checkpoint is left", "start again")
        self.checkpoints.set_aside(damage)
        self.checkpoints.remove_after(checkpoint.iterations)
        self._restore(checkpoint)
        self._log, self.health = log, health.returned()
        self.trainer.rate_scale = self.health.rate_scale
        self._append({"went_back": {"from": failed, "to": self.done, "skipped": last, "returns": self.health.returns}})
        times = f" {health.skips} times in a row" if health.skips > 1 else ""
        self.reporter.warn(
            f"the {last} was not finite{times}: going back from iteration {failed} to {self.done}, "
            f"with rates times {self.health.rate_scale:g}"
        )
        bar.advance(self.done - failed)

    def _warn_of_damage(self, damage: list[DamagedError], found: Checkpoint | None) -> None:
        """Warn of damaged checkpoints and of the iterations that will be repeated."""
        if damage and self.is_strict:
            raise damage[0]
        for error in damage[:-1]:
            self.reporter.warn(error.message)
        if damage:
            use = f"using {checkpoint_name(found.iterations)} instead" if found else "beginning training again"
            repeated = int(damage[0].place.name) - (found.iterations if found else 0)
            self.reporter.warn(f"{damage[-1].message}; {use}, {repeated} iterations will be repeated")

    def _append(self, record: dict[str, Any]) -> None:
        """Append a line to the log. The file is for people to follow; the checkpoints hold its true text."""
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
        self._log += line
        with contextlib.suppress(OSError):
            append_to_file(self.run.log, line)

    def _show_log(self) -> None:
        with contextlib.suppress(OSError):
            replace_file(self.run.log, bytes(self._log))

    def _keep_offending(self, progress: Progress) -> None:
        from safetensors.torch import save

        fate = "" if progress.skipped == NETWORK else ": update skipped"
        self.reporter.warn(f"the {progress.skipped} is not finite at iteration {progress.iteration}{fate}")
        target = self.run.folder / OFFENDING / checkpoint_name(progress.iteration)
        if target.exists() or len(list(target.parent.glob("[0-9]*"))) >= MAX_OFFENDING:
            return
        tensors = self.trajectories[torch.tensor(progress.trajectories)].tensors()
        prompts = [self.settings.prompts[k] for k in progress.trajectories]
        about = {"skipped": progress.skipped, "trajectories": progress.trajectories, "prompts": prompts}
        files = {"trajectories.safetensors": save(tensors)}
        try:
            commit(target, files, fingerprint=self.settings.fingerprint, about=about)
        except (OSError, VerificationError) as error:  # training goes on
            self.reporter.warn(f"its trajectories are not kept: {DiskError.of(error, target).message}")


def log_line(progress: Progress) -> dict[str, Any]:
    """Return an iteration as JSON values; values that are not finite become null."""
    slots = [_finite(dataclasses.asdict(slot)) for slot in progress.slots]
    passes = dataclasses.asdict(progress.passes)
    about = {"iteration": progress.iteration, "learning_rate": progress.learning_rate, "passes": passes, "slots": slots}
    return about | ({"skipped": progress.skipped, "trajectories": progress.trajectories} if progress.skipped else {})


def note(slots: list[StepMetrics]) -> str:
    """Return the bar's note: distances to each target by slot, the noisiest first, and the mean discriminator loss."""
    distances: dict[str, list[str]] = {}
    for slot in slots:
        for name, value in sorted(slot.distance.items(), reverse=True):
            distances.setdefault(f"{name[:3]}.", []).append(f"{value:.3f}")
    losses = [value for slot in slots for value in slot.discriminator.values()]
    end = [f"disc. {math.fsum(losses) / len(losses):.2f}"] if losses else []
    return "  ".join([*(" ".join([name, *values]) for name, values in distances.items()), *end])


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
