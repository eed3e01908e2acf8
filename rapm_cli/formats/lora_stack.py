"""Several LoRAs as one: their ranks stand side by side, so that the sum of their updates is exact up to rounding."""

from collections.abc import Sequence
from typing import Any

import torch

from rapm_cli.formats.lora import LoraFile, load_lora
from rapm_cli.formats.lora_ref import LoraRef
from rapm_cli.formats.lora_scale import to_rank


def stack_loras(loras: Sequence[tuple[LoraFile, float]], recipe: dict[str, Any] | None = None) -> LoraFile:
    """Return one LoRA whose update is the weighted sum of some LoRAs' updates.

    The rows of all A and the columns of all B of a layer stand side by side: [B1 B2] [A1; A2] = B1 A1 + B2 A2. Scale
    and weight of each are in its B. A layer that has fewer ranks than others is padded with zeros.

    Args:
        loras: LoRAs, each with its weight.
        recipe: Recipe of the result; None for an empty one.

    Returns:
        A float32 LoRA whose alpha equals its rank.
    """
    parts: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for lora, weight in loras:
        for module in lora.modules:
            down, up = lora.factors(module)
            parts.setdefault(module, []).append((down.float(), up.float() * (weight * lora.alpha / lora.rank)))
    rank, state = max(sum(len(down) for down, _ in pairs) for pairs in parts.values()), {}
    for module, pairs in parts.items():
        downs, ups = zip(*pairs, strict=True)
        state[f"{module}.lora_A.weight"] = to_rank(torch.cat(downs), 0, rank)
        state[f"{module}.lora_B.weight"] = to_rank(torch.cat(ups, 1), 1, rank)
    return LoraFile(state, rank, float(rank), recipe or {})


def load_stacked(refs: Sequence[LoraRef]) -> LoraFile:
    """Read LoRA files and return their weighted sum as one LoRA.

    Raises:
        InputError: A file is not a plain LoRA of a UNet.
    """
    return stack_loras([(load_lora(ref.path), ref.weight) for ref in refs])
