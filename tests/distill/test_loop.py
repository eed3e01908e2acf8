"""Recovery from values that are not finite, through the command line."""

import errno
import json

from rapm_cli.distill import loop
from tests.messages import names
from tests.resuming import DISTILL, unfinished


def test_what_is_not_finite_is_skipped_then_gone_back_from_then_stopped(rapm, again, monkeypatch):
    unfinished(again, "00000004")
    monkeypatch.setattr("rapm_cli.core.method.rapm.pseudo_huber_mean", lambda a, b: (a - b).sum() * float("nan"))
    code, _, err = rapm("distill", "--resume", "--iterations", "9")
    assert code == 7
    assert names(err, "loss", 3, 5, 2, 0.5)
    assert names(err, 0.25)
    assert names(err.splitlines()[-1], "loss", 4, 2, "--learning-rate")
    assert names(rapm("inspect", again.folder.name)[1], "state", "diverged", 2)
    assert rapm("distill", "--resume")[0] == 3  # there is no unfinished one
    assert again.checkpoint_folders()[0].name == "00000002"
    assert {path.name for path in (again.folder / "offending").iterdir()} == {"00000002", "00000003", "00000004"}
    lines = [json.loads(line) for line in again.log.read_text().splitlines()]
    assert [line["went_back"]["returns"] for line in lines if "went_back" in line] == [1, 2]
    assert [line["skipped"] for line in lines if "skipped" in line] == ["loss"] * 9


def test_a_network_that_is_not_finite_is_never_committed(rapm, again, monkeypatch):
    from rapm_cli.core.training.optimizer import GuardedAdamW
    from rapm_cli.formats.lora import load_lora

    unfinished(again, "00000004")
    real, updates = GuardedAdamW.update, []

    def update(self, *arguments):
        is_made = real(self, *arguments)
        updates.append(is_made)
        if len(updates) == 8:  # the last of the iteration: four slots, each with the student and its discriminators
            self.weights.flat.data[0] = float("inf")
        return is_made

    monkeypatch.setattr(GuardedAdamW, "update", update)
    code, _, err = rapm("distill", "--resume")
    assert code == 0, err
    assert names(err, "network", 3, 2, 0.5)
    assert all(value.isfinite().all() for value in load_lora(again.lora).state.values())
    assert [verdict for *_, verdict in again.verify_all()] == [""] * len(list(again.verify_all()))


def test_after_the_interval_was_changed_training_goes_back_to_what_was_regular_then(rapm, again, monkeypatch):
    unfinished(again)
    monkeypatch.setattr("rapm_cli.core.method.rapm.pseudo_huber_mean", lambda a, b: (a - b).sum() * float("nan"))
    code, _, err = rapm("distill", "--resume", "--iterations", "9", "--checkpoint-every", "100")
    assert code == 7
    assert names(err, 7, 4, 0.5)


def test_training_goes_on_where_the_offending_trajectories_cannot_be_kept(rapm, again, monkeypatch):
    from rapm_cli.core.method.trainer import Trainer

    unfinished(again, "00000004")
    real = Trainer.train_step

    def step(self, batch, iteration):
        if iteration == 2:
            batch.z_teacher[0, 2] = float("inf")
        return real(self, batch, iteration)

    def full(*arguments, **named):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Trainer, "train_step", step)
    monkeypatch.setattr(loop, "commit", full)
    code, _, err = rapm("distill", "--resume")
    assert code == 0
    assert names(err, "warning:", "No space left on device")


def test_one_bad_trajectory_is_skipped_and_the_rest_is_trained(rapm, again, monkeypatch):
    from rapm_cli.core.method.trainer import Trainer

    unfinished(again, "00000002", "00000004")
    real = Trainer.train_step

    def step(self, batch, iteration):
        if iteration == 1:
            batch.z_teacher[0, 2] = float("inf")
        return real(self, batch, iteration)

    monkeypatch.setattr(Trainer, "train_step", step)
    code, _, err = rapm(*DISTILL)
    assert code == 0
    assert names(err, "target", 1)
    lines = [json.loads(line) for line in again.log.read_text().splitlines()]
    assert [line.get("skipped", "") for line in lines] == ["", "target", "", ""]
