"""A distillation by several processes, as torchrun and accelerate start them: the first leads, the others follow.

The cache has to lie where all processes see it. The first process does all that one alone would; the others make their
share of the trajectories, take their rows of every batch, and neither talk nor write anything else, but for warnings.
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
from rapm_cli.core.common.errors import ConfigError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.method.replicas import take_state
from rapm_cli.core.method.trainer import Trainer, train
from rapm_cli.core.training.distributed import Verdict, World
from rapm_cli.core.training.job_store import JobStore
from rapm_cli.distill.failure import ending_together
from rapm_cli.distill.loop import loaded_base, offload_unused, trainer_of
from rapm_cli.distill.memory_plan import adopt, install_oom_fallback, plan_for
from rapm_cli.distill.trajectories import collect_share
from rapm_cli.runs import signals
from rapm_cli.runs.launcher import world_size
from rapm_cli.runs.settings import Settings

PATIENCE = datetime.timedelta(days=1)  # for the first process, which alone loads, examines and saves
GATHERING = datetime.timedelta(minutes=10)  # until all processes have been started


def device_of(name: str) -> str:
    """The device that `--device` means in this process: each takes the GPU of its number, or the only one."""
    if world_size() > 1 and name in ("auto", "cuda") and torch.cuda.device_count() > 1:
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return name


@contextmanager
def joined(device_name: str, reporter: Reporter) -> Iterator[World]:
    """This process among those that were started with it; alone where there are none.

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
    """The jobs of all processes, which can be reached from here on."""
    gpu = device if device.type == "cuda" else None
    # Whoever imports this later has its functions' defaults hold the group, whose connections then cannot be closed.
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
    """Do this process's share of what the first one leads, to its end.

    Raises:
        PeerEnded: All signals.
        RapmError: This process cannot go on.
        torch.OutOfMemoryError: It has too little memory.
    """
    with signals.shown_by_caller(), signals.deferred("what the first process decides"):
        _follow(world, device_name, reporter)


def _follow(world: World, device_name: str, reporter: Reporter) -> None:
    settings, device = Settings.from_bytes(world.broadcast()), find_device(device_of(device_name))
    if settings.deterministic:
        be_deterministic()
    base = find_base(settings.source, reporter)
    loaded = loaded_base(base, settings, device, reporter)
    trajectories = collect_share(world, loaded, settings, base.defaults.rollout_batch, reporter)
    offload_unused(loaded, settings)
    plan = plan_for(base.architecture(reporter), settings, device, world.size, reporter, loaded.backbone)
    adopt(plan, loaded.backbone)
    trainer = trainer_of(loaded, settings, world)
    install_oom_fallback(plan, trainer, reporter)
    done = _obey(trainer, 0)
    while done < settings.training.iterations:
        for progress in train(trainer, trajectories, done):
            done = _obey(trainer, progress.iteration + 1)
            if done != progress.iteration + 1:
                break


def _obey(trainer: Trainer, done: int) -> int:
    """Hear what the first process decides after `done` iterations; after how many to go on.

    It is told first of a signal that this one was sent.
    """
    trainer.world.request_stop(signals.pending())
    verdict, value = trainer.world.broadcast_verdict()
    if verdict is Verdict.RESTORE:
        take_state(trainer)
        return value
    return done
