"""A distillation by several processes, as torchrun and accelerate start them: the first leads, the others follow.

The cache has to lie where all processes see it. The first process does all that one alone would; the others make their
share of the trajectories, take their rows of every batch, and neither talk nor write anything else.
"""

import contextlib
import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed

from rapm_cli.bases import find_base
from rapm_cli.bases.device import be_deterministic, find_device
from rapm_cli.core.errors import ConfigError, RapmError, Stopped, is_out_of_memory
from rapm_cli.core.parallel import Ranks, Verdict
from rapm_cli.core.replicas import take_state
from rapm_cli.core.train import Trainer, train
from rapm_cli.core.watch import Watcher
from rapm_cli.workflows import stop
from rapm_cli.workflows.collect import help_collect
from rapm_cli.workflows.memory import adopt, plan_for, stand_by
from rapm_cli.workflows.settings import Settings
from rapm_cli.workflows.training import loaded_base, trainer_of

PATIENCE = datetime.timedelta(days=1)  # for the first process, which alone loads, examines and saves


def world_size() -> int:
    """How many processes were started together.

    Raises:
        ConfigError: The environment does not say it as torchrun does.
    """
    try:
        return max(1, int(os.environ.get("WORLD_SIZE", "1")))
    except ValueError as error:
        raise ConfigError(f"WORLD_SIZE {os.environ['WORLD_SIZE']!r} is no number", "start with torchrun") from error


def device_of(name: str) -> str:
    """The device that `--device` means in this process: of several, each takes the GPU of its number."""
    if world_size() > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return name


@contextmanager
def joined(device_name: str) -> Iterator[Ranks]:
    """This process among those that were started with it; alone where there are none.

    Raises:
        ConfigError: The others cannot be reached.
    """
    world = world_size()
    if world == 1:
        yield Ranks()
        return
    device = find_device(device_of(device_name))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        if device.type == "cuda":
            distributed.init_process_group("nccl", timeout=PATIENCE, device_id=device)
        else:
            distributed.init_process_group("gloo", timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"WORLD_SIZE is {world} and the other processes cannot be reached", "use torchrun") from error
    ranks = Ranks(distributed.get_rank(), world, device)
    try:
        yield ranks
    finally:
        if ranks.is_first and not ranks.has_shared:
            with contextlib.suppress(RuntimeError):  # of those that are gone; what ends this process goes before
                ranks.share(b"")  # there is nothing to do
        distributed.destroy_process_group()


def follow(ranks: Ranks, device_name: str, watcher: Watcher) -> None:
    """Do this process's share of what the first one leads, to its end.

    Raises:
        Stopped: The first process was stopped by a signal.
        RapmError: The first process is gone.
        torch.OutOfMemoryError: This one has too little memory.
    """
    try:
        with stop.patient("what the first process decides"):
            _follow(ranks, device_name, watcher)
    except RuntimeError as error:
        if isinstance(error, NotImplementedError) or is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0][:120]
        raise RapmError(
            f"process {ranks.rank} has lost the first one: {reason}", "look at what that one says"
        ) from error


def _follow(ranks: Ranks, device_name: str, watcher: Watcher) -> None:
    told, device = ranks.share(), find_device(device_of(device_name))
    if not told:
        return
    settings = Settings.from_bytes(told)
    if settings.deterministic:
        be_deterministic()
    base = find_base(settings.source, watcher)
    loaded = loaded_base(base, settings, device, watcher)
    trajectories = help_collect(ranks, loaded, settings, base.defaults.rollout_batch, watcher)
    loaded.rest()
    plan = plan_for(base.architecture(watcher), settings, device, ranks.world, watcher, loaded.backbone)
    adopt(plan, loaded.backbone)
    trainer = trainer_of(loaded, settings, ranks)
    stand_by(plan, trainer, watcher)
    done = _obey(trainer, 0)
    while done < settings.training.iterations:
        for progress in train(trainer, trajectories, done):
            done = _obey(trainer, progress.iteration + 1)
            if done != progress.iteration + 1:
                break


def _obey(trainer: Trainer, done: int) -> int:
    """Hear what the first process decides after `done` iterations; after how many to go on."""
    verdict, value = trainer.ranks.decide()
    if verdict is Verdict.STOP:
        raise Stopped(value, "the first process says what is saved")
    if verdict is Verdict.RESTORE:
        take_state(trainer)
        return value
    return done
