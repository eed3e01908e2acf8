"""The forward pass of an adapted layer, W x + scale B (A x), with one switch for all layers of a network.

peft makes the layers, names and initialises them. Its own forward pass casts every input to the adapter's dtype, which
on 16-bit networks keeps a second, twice as large copy of the activations, launches more kernels, and costs the teacher
most of that again while the adapters are off.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, addmm, nn

TEACHER, STUDENT, FAKE_SCORE = "teacher", "student", "fake"  # roles of a network
ADAPTERS = {STUDENT: "default", FAKE_SCORE: "fake"}  # peft's name of each role's adapter; the teacher has none


@dataclass
class Switch:
    """The role that a network is in; it decides which adapter is on."""

    role: str = TEACHER


class _LowRank(torch.autograd.Function):
    """out + scale (x A^T) B^T, and its gradients.

    A slot of SDXL is 44,500 operations with it, 53,200 in autograd's own way; all else is equal in the two. What it
    spares are views: they cost nothing on a device but time of the CPU, which a fast device waits for.
    """

    @staticmethod
    def forward(ctx: Any, out: Tensor, x: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
        rows = x.flatten(0, -2)
        inner = _scaled(rows @ down.t(), scale)
        ctx.save_for_backward(rows, inner, down, up)
        ctx.scale, ctx.shape = scale, x.shape
        return addmm(out.flatten(0, -2), inner, up.t()).view(out.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, inner, down, up = ctx.saved_tensors
        gradient = gradients[0].flatten(0, -2)
        back = _scaled(gradient @ up, ctx.scale)
        to_x = (back @ down).view(ctx.shape) if ctx.needs_input_grad[1] else None
        return gradients[0], to_x, back.t() @ rows, gradient.t() @ inner, None


def _scaled(inner: Tensor, scale: float) -> Tensor:
    return inner if scale == 1 else inner * scale


def install(layer: Any, switch: Switch) -> None:
    """Give a peft layer on a linear or convolutional one our forward pass, under a switch.

    Args:
        layer: With all its adapters' weights in the dtype of the layer's inputs.
        switch: Of the network.
    """
    base = layer.base_layer
    adapters = {
        role: (layer.lora_A[name], layer.lora_B[name], float(layer.scaling[name]))
        for role, name in ADAPTERS.items()
        if name in layer.lora_A
    }

    def linear(x: Tensor) -> Tensor:
        out: Tensor = base(x)
        if switch.role in adapters:
            down, up, scale = adapters[switch.role]
            out = _LowRank.apply(out, x, down.weight, up.weight, scale)  # type: ignore[no-untyped-call]
        return out

    def convolution(x: Tensor) -> Tensor:
        out: Tensor = base(x)
        if switch.role in adapters:
            down, up, scale = adapters[switch.role]
            out = out.add(up(down(x)), alpha=scale)
        return out

    layer.forward = linear if isinstance(base, nn.Linear) else convolution
