"""The forward pass of an adapted layer, W x + scale B (A x), with one switch for all layers of a network.

peft makes the layers, names and initialises them. Its own forward pass casts every input to the adapter's dtype, which
on 16-bit networks keeps a second, twice as large copy of the activations, launches more kernels, and costs the teacher
most of that again while the adapters are off.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, addmm, nn
from torch.nn import functional

ADAPTER = "default"


@dataclass
class Switch:
    """Whether the adapters of a network are on, which makes it the student."""

    is_student: bool = False


def install(layer: Any, switch: Switch) -> None:
    """Give a peft layer on a linear or convolutional one our forward pass, under a switch.

    Args:
        layer: With its adapter's weights in the dtype of the layer's inputs.
        switch: Of the network.
    """
    base, down, up = layer.base_layer, layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
    scale: float = layer.scaling[ADAPTER]

    def linear(x: Tensor) -> Tensor:
        out: Tensor = base(x)
        if not switch.is_student:
            return out
        inner = functional.linear(x, down.weight)
        return addmm(out.flatten(0, -2), inner.flatten(0, -2), up.weight.t(), alpha=scale).view(out.shape)

    def convolution(x: Tensor) -> Tensor:
        out: Tensor = base(x)
        return out.add(up(down(x)), alpha=scale) if switch.is_student else out

    layer.forward = linear if isinstance(base, nn.Linear) else convolution
