"""Faults of a process that runs `rapm` on the small demo base."""

import os
import signal
from pathlib import Path

import torch

from rapm_cli.bases import BASES
from rapm_cli.core.common.errors import InputError
from rapm_cli.core.method.store import TrajectoryStore
from rapm_cli.core.method.trainer import Trainer
from rapm_cli.distill import distill
from tests.small_demo import use_small_demo


def out_of_memory_in_training():
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    Trainer.train_step = fail


def bad_weights():
    def fail(*_):
        raise InputError("the weights are bad", "bring others")

    distill.loaded_base = fail


def signal_in_first_write():
    write = TrajectoryStore.write

    def write_and_hear(self, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        write(self, *arguments)

    TrajectoryStore.write = write_and_hear


def signal_in_first_iteration():
    step = Trainer.train_step

    def step_and_hear(self, batch, iteration):
        if iteration == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, iteration)

    Trainer.train_step = step_and_hear


def nothing():
    pass


def prepare(fault: str, folder: Path) -> None:
    """Have this process meet a fault of this module, and take small batches of trajectories.

    Args:
        fault: Function of this module.
        folder: Folder of the small demo base.
    """
    globals()[fault]()
    use_small_demo(folder)
    object.__setattr__(BASES["demo"].defaults, "rollout_batch", 2)
