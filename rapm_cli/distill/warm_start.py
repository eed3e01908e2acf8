"""Let the student of a new run start from a LoRA that the user gives."""

from typing import Any

import torch

from rapm_cli.bases import Base
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.method.trainer import Trainer
from rapm_cli.formats.fuse import check_lora_fits
from rapm_cli.formats.lora import load_lora
from rapm_cli.formats.lora_refactor import refactor_lora
from rapm_cli.runs.base_loras import find_refs
from rapm_cli.runs.run import Run
from rapm_cli.runs.settings import Settings


def check_init_lora(base: Base, given: dict[str, Any], reporter: Reporter) -> None:
    """Check that the LoRA of `--init-lora`, if the user gave one, is for the base.

    Raises:
        InputError: The file is not a plain LoRA of a UNet, or was made for another base.
    """
    if ref := given.get("init_lora"):
        network = base.architecture(reporter).network(torch.device("meta"), torch.float32)
        check_lora_fits(network, load_lora(ref.path), ref.path)


def warm_start(trainer: Trainer, run: Run, settings: Settings, reporter: Reporter) -> None:
    """Put the LoRA of `--init-lora` into a fresh student, at the student's rank, and say what is lost.

    Args:
        trainer: Trainer before its first iteration.
        run: The run, for messages.
        settings: Settings of the run; without such a LoRA nothing changes.
        reporter: Receives what is lost.

    Raises:
        InputError: The file is not found any more.
    """
    if settings.init_lora is None:
        return
    (ref,) = find_refs([settings.init_lora.record], [settings.init_lora.path], run.folder)
    lora, training = load_lora(ref.path), settings.training
    made = refactor_lora(lora, trainer.lora.state(), training.alpha / training.rank)
    trainer.start_at({name: ref.weight * value if ".lora_B." in name else value for name, value in made.state.items()})
    kept = f"rank {lora.rank} to {training.rank}, {100 * made.lost:.3g} % of its update's energy is lost"
    others = f", some with {len(made.left_out)} layers that rapm does not train" if made.left_out else ""
    reporter.say(f"starting from {ref.words}: {kept}{others}")
