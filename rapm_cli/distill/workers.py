"""Distillation by several processes, as torchrun and accelerate start them: the first leads, the others follow.

All processes must see the same cache folder. The first process does everything that a single one would. The others
compute their share of the trajectories and their rows of every batch. They write nothing else and report only warnings.
"""

import datetime
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed
from torch.distributed.rendezvous import rendezvous

from rapm_cli.bases import find_base
from rapm_cli.bases.device import be_deterministic, find_device
from rapm_cli.bases.merged import with_loras
from rapm_cli.core.common.errors import ConfigError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.method.trainer import Trainer, train
from rapm_cli.core.training.distributed import Verdict, World
from rapm_cli.core.training.job_store import JobStore
from rapm_cli.distill.failure import ending_together
from rapm_cli.distill.prepare import loaded_base, prepare_trainer
from rapm_cli.distill.replicas import receive_state
from rapm_cli.distill.trajectories import collect_share
from rapm_cli.runs import signals
from rapm_cli.runs.launcher import world_size
from rapm_cli.runs.settings import Settings

PATIENCE = datetime.timedelta(days=1)  # wait for the first process, which alone evaluates and saves
GATHERING = datetime.timedelta(minutes=10)  # wait for all processes to start


def device_of(name: str) -> str:
    """Return the device of this process: with several GPUs, the one of its local rank."""
    if world_size() > 1 and name in ("auto", "cuda") and torch.cuda.device_count() > 1:
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return name


@contextmanager
def joined(device_name: str, reporter: Reporter) -> Iterator[World]:
    """Join the processes that were started together; without others, this process is alone.

    Raises:
        ConfigError: The others cannot be reached.
        PeerEnded: Another process cannot go on.
    """
    if world_size() == 1:
        yield World()
        return
    device = find_device(device_of(device_name))
    jobs = _gathered(device)
    with ending_together(jobs, reporter):
        yield World(jobs, device)
    distributed.destroy_process_group()


def _gathered(device: torch.device) -> JobStore:
    """Connect to all processes and return their store."""
    gpu = device if device.type == "cuda" else None
    # Imported later, its functions' defaults would hold the group, and its connections could not be closed.
    importlib.import_module("torch.distributed.nn.functional")
    try:
        store, rank, size = next(rendezvous("env://", timeout=GATHERING))
        store.set_timeout(PATIENCE)
        distributed.init_process_group(
            "nccl" if gpu else "gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE, device_id=gpu
        )
        return JobStore(store, rank, size)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"WORLD_SIZE is {world_size()} and the other processes cannot be reached", "use torchrun"
        ) from error


def follow(world: World, device_name: str, reporter: Reporter) -> None:
    """Do this process's share of a distillation that the first process leads, to its end.

    Raises:
        PeerEnded: All processes stop because of a signal, or another one cannot continue.
        RapmError: This process cannot continue.
        torch.OutOfMemoryError: This process has too little memory.
    """
    with signals.shown_by_caller(), signals.deferred("what the first process decides"):
        _follow(world, device_name, reporter)


def _follow(world: World, device_name: str, reporter: Reporter) -> None:
    settings, device = Settings.from_bytes(world.broadcast()), find_device(device_of(device_name))
    if settings.deterministic:
        be_deterministic()
    base = with_loras(find_base(settings.source, reporter), settings.base_loras, reporter)
    loaded = loaded_base(base, settings, device, reporter)
    trajectories = collect_share(world, loaded, settings, base.defaults.rollout_batch, reporter)
    trainer = prepare_trainer(base, loaded, settings, world, reporter)
    done = _obey(trainer, 0)
    while done < settings.training.iterations:
        for progress in train(trainer, trajectories, done):
            done = _obey(trainer, progress.iteration + 1)
            if done != progress.iteration + 1:
                break


def _obey(trainer: Trainer, done: int) -> int:
    """Report a pending signal, receive the first process's verdict after `done` iterations, and act on it.

    Returns:
        The number of iterations to continue after.
    """
    trainer.world.request_stop(signals.pending())
    verdict, value = trainer.world.broadcast_verdict()
    if verdict is Verdict.RESTORE:
        receive_state(trainer)
        return value
    return done
