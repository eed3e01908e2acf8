"""Bring a LoRA to another rank: exactly where it fits, else by the nearest update of that rank."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rapm_cli.formats.lora import LoraFile


@dataclass(frozen=True)
class Refactored:
    """A LoRA at another rank.

    Args:
        state: Float32 tensors by peft key.
        lost: Share of the energy, the sum over layers of |update|², that the result lacks; 0 to 1.
        left_out: Layers of the LoRA that the result does not have.
    """

    state: dict[str, Tensor]
    lost: float
    left_out: list[str]


@torch.no_grad()
def refactor_lora(lora: LoraFile, fresh: dict[str, Tensor], scale: float) -> Refactored:
    """Return the update of a LoRA in the shapes of a fresh one.

    A rank that the LoRA does not use keeps the fresh A and a B of zero, so that training can use it.

    Args:
        lora: LoRA of any rank.
        fresh: Tensors of a fresh LoRA by peft key, whose B is zero. They decide layers and rank.
        scale: alpha / rank of the fresh one.
    """
    state, lost, total = {name: value.float().clone() for name, value in fresh.items()}, 0.0, 0.0
    for module in lora.modules:
        name, (down, up) = f"{module}.lora_A.weight", lora.factors(module)
        rank = len(state[name]) if name in state else 0
        factors = nearest_factors(down, up * (lora.alpha / lora.rank), rank)
        lost, total = lost + factors.lost, total + factors.total
        if rank:
            _fill(state[name], state[f"{module}.lora_B.weight"], factors.down, factors.up / scale)
    left_out = [module for module in lora.modules if f"{module}.lora_A.weight" not in state]
    return Refactored(state, lost / total if total else 0.0, left_out)


def _fill(down: Tensor, up: Tensor, new_down: Tensor, new_up: Tensor) -> None:
    """Put factors into a fresh A and B in place; ranks without an update stay fresh."""
    used = new_down.flatten(1).any(1) & new_up.flatten(1).any(0)
    for k in used.nonzero().flatten().tolist():
        down[k], up[:, k] = new_down[k], new_up[:, k]


@dataclass(frozen=True)
class Factors:
    """Factors of an update, or of the nearest one of their rank.

    Args:
        down: A, in the shape of the given one but for the rank.
        up: B, likewise.
        lost: |update - B A|², Frobenius norm.
        total: |update|².
    """

    down: Tensor
    up: Tensor
    lost: float
    total: float


def nearest_factors(down: Tensor, up: Tensor, rank: int) -> Factors:
    """Return factors of the update B A, or of the nearest update of a rank, in the Frobenius norm.

    The update itself, which can be large, is never formed: with B = Q R and A^T = P S, the singular values of B A are
    those of the small matrix R S^T. A and B get equal shares of each singular value.

    Args:
        down: A, (r, in) or for a convolution (r, in, k, k).
        up: B with the scale in it, (out, r) or (out, r, 1, 1).
        rank: Highest rank of the result. Factors that have no more are returned as they are.

    Source: Eckart and Young, 1936: the truncated singular value decomposition is nearest.
    """
    q, r = torch.linalg.qr(up.double().flatten(1))
    p, s = torch.linalg.qr(down.double().flatten(1).t())
    left, values, right = torch.linalg.svd(r @ s.t())
    total = float(values.square().sum())
    if len(down) <= rank:
        return Factors(down.float(), up.float(), 0.0, total)
    root, lost = values[:rank].sqrt(), float(values[rank:].square().sum())
    new_down, new_up = root[:, None] * (right[:rank] @ p.t()), (q @ left[:, :rank]) * root
    shapes = (rank, *down.shape[1:]), (len(up), rank, *up.shape[2:])
    return Factors(new_down.float().reshape(shapes[0]), new_up.float().reshape(shapes[1]), lost, total)
