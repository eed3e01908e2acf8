"""The forward pass of an adapted layer, W x + scale B (A x), with one switch for all layers of a network.

peft makes, names and initialises the layers. Its own forward pass casts every input to the adapter's dtype. On 16-bit
networks this keeps a second copy of the activations, twice as large, and launches more kernels; the teacher pays most
of it too, while the adapters are off.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, addmm, nn

TEACHER, STUDENT, FAKE_SCORE = "teacher", "student", "fake"  # roles of a network
ADAPTERS = {STUDENT: "default", FAKE_SCORE: "fake"}  # peft's name of each role's adapter; the teacher has none


@dataclass
class Switch:
    """The role that a network is in; it decides which adapter is on."""

    role: str = TEACHER


def add_low_rank(out: Tensor, x: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """Return out + scale (x A^T) B^T; product and sum are one operation, which rounds once.

    Args:
        out: (..., out) output of the adapted layer.
        x: (..., in) input of the layer.
        down: (rank, in) matrix A.
        up: (out, rank) matrix B.
        scale: alpha / rank.
    """
    inner = x.flatten(0, -2) @ down.t()
    inner = inner if scale == 1 else inner * scale
    return addmm(out.flatten(0, -2), inner, up.t()).view(out.shape)


def install(layer: Any, switch: Switch) -> None:
    """Replace the forward pass of a peft layer by ours.

    Args:
        layer: peft's layer on a linear or convolutional one. Its adapters' weights have the dtype of its inputs.
        switch: The role of the network.
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
            out = add_low_rank(out, x, down.weight, up.weight, scale)
        return out

    def convolution(x: Tensor) -> Tensor:
        out: Tensor = base(x)
        if switch.role in adapters:
            down, up, scale = adapters[switch.role]
            out = out.add(up(down(x)), alpha=scale)
        return out

    layer.forward = linear if isinstance(base, nn.Linear) else convolution
