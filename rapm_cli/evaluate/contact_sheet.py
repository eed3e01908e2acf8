"""Contact sheets: a row of pictures for each contestant, the same prompts and noise in every row."""

import torch
from torch import Tensor

from rapm_cli.bases import Base, LoadedBase
from rapm_cli.core.method.trajectories import initial_noise
from rapm_cli.core.network.backbone import Conditioning
from rapm_cli.evaluate.models import EvalModel
from rapm_cli.runs.images import contact_sheet, png_bytes

COLUMNS = 8


def fixed_scenes(
    base: Base, loaded: LoadedBase, seed: int, prompts: list[str], count: int
) -> tuple[Tensor, Conditioning]:
    """Noise and conditioning of the first `count` pictures that every sheet of a run shows, on the CPU.

    A base with an exam shows prompts that no training saw.
    """
    shown = base.set_exam(0, count, seed, True).prompts if base.set_exam else prompts[:count]
    noise = initial_noise(seed, "sheet", list(range(len(shown))), loaded.latent_shape)
    return noise, loaded.encode(shown)


def sheet_rows(
    contestants: list[EvalModel], base: Base, loaded: LoadedBase, seed: int, prompts: list[str]
) -> dict[str, Tensor]:
    """The rows of a contact sheet by title, one for each contestant, the same prompts and noise in every row."""
    scenes = fixed_scenes(base, loaded, seed, prompts, COLUMNS)
    size = base.defaults.picture_batch
    return {
        f"{contestant.title}, {contestant.evaluations} evaluations": draw_row(contestant, loaded, scenes, size)
        for contestant in contestants
    }


def draw_sheet(rows: dict[str, Tensor]) -> bytes:
    """A contact sheet of such rows as PNG."""
    return png_bytes(contact_sheet(rows))


def draw_row(contestant: EvalModel, loaded: LoadedBase, scenes: tuple[Tensor, Conditioning], size: int) -> Tensor:
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
