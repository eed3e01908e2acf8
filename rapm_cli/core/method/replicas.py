"""The same training state in every process: the first one tells it, the others take it."""

import torch

from rapm_cli.core.method.trainer import Trainer
from rapm_cli.core.training.distributed import Verdict

RATE_SCALE = "rate_scale"


def tell_state(trainer: Trainer, done: int) -> None:
    """Let the other processes go on from the first one's state after `done` iterations."""
    from safetensors.torch import save

    if trainer.world.size > 1:
        trainer.world.broadcast_verdict(Verdict.RESTORE, done)
        parts = {f"{part}/{name}": value for part, named in trainer.state().items() for name, value in named.items()}
        trainer.world.broadcast(save(parts | {RATE_SCALE: torch.tensor(trainer.rate_scale, dtype=torch.float64)}))


def take_state(trainer: Trainer) -> None:
    """Go on from the state that the first process tells."""
    from safetensors.torch import load

    told = load(trainer.world.broadcast())
    trainer.rate_scale = float(told.pop(RATE_SCALE))
    parts: dict[str, dict[str, torch.Tensor]] = {part: {} for part in trainer.state()}
    for key, value in told.items():
        part, _, name = key.partition("/")
        parts[part][name] = value
    trainer.load_state(parts)
