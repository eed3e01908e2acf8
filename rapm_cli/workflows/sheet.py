"""Contact sheets: a row of pictures for each contestant, the same prompts and noise in every row."""

import torch
from torch import Tensor

from rapm_cli.bases import Base, LoadedBase
from rapm_cli.core.backbone import Conditioning
from rapm_cli.workflows.contestants import Contestant
from rapm_cli.workflows.pictures import contact_sheet, png_bytes
from rapm_cli.workflows.previews import fixed_scenes

COLUMNS = 8


def draw_sheet(contestants: list[Contestant], base: Base, loaded: LoadedBase, seed: int, prompts: list[str]) -> bytes:
    """A contact sheet as PNG: one row for each contestant, the same prompts and noise in every row."""
    scenes = fixed_scenes(base, loaded, seed, prompts, COLUMNS)
    size = base.defaults.picture_batch
    rows = {
        f"{contestant.title}, {contestant.evaluations} evaluations": draw_row(contestant, loaded, scenes, size)
        for contestant in contestants
    }
    return png_bytes(contact_sheet(rows))


def draw_row(contestant: Contestant, loaded: LoadedBase, scenes: tuple[Tensor, Conditioning], size: int) -> Tensor:
    """One contestant's pictures.

    Args:
        contestant: Who draws.
        loaded: The base that it draws with.
        scenes: Noise and conditioning, as `fixed_scenes` makes them.
        size: Pictures at once.

    Returns:
        (B, 3, H, W) in [0, 1], on the CPU.
    """
    noise, cond = scenes[0].to(loaded.device), scenes[1].to(loaded.device)
    drawn = [contestant.draw(noise[k : k + size], cond[k : k + size]) for k in range(0, len(noise), size)]
    return torch.cat([loaded.decode(part) for part in drawn])
