"""The same training state in every process: the first one sends it, the others load it."""

import torch

from rapm_cli.core.method.trainer import Trainer
from rapm_cli.core.training.distributed import Verdict

RATE_SCALE = "rate_scale"


def send_state(trainer: Trainer, done: int) -> None:
    """Send the first process's state after `done` iterations to the others, which continue from it."""
    from safetensors.torch import save

    if trainer.world.size > 1:
        trainer.world.broadcast_verdict(Verdict.RESTORE, done)
        parts = {f"{part}/{name}": value for part, named in trainer.state().items() for name, value in named.items()}
        trainer.world.broadcast(save(parts | {RATE_SCALE: torch.tensor(trainer.rate_scale, dtype=torch.float64)}))


def receive_state(trainer: Trainer) -> None:
    """Load the state that the first process sends."""
    from safetensors.torch import load

    received = load(trainer.world.broadcast())
    trainer.rate_scale = float(received.pop(RATE_SCALE))
    parts: dict[str, dict[str, torch.Tensor]] = {part: {} for part in trainer.state()}
    for key, value in received.items():
        part, _, name = key.partition("/")
        parts[part][name] = value
    trainer.load_state(parts)
