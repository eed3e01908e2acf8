"""A frozen linear layer with 8-bit weights, through which gradients go."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class _Int8Product(torch.autograd.Function):
    """x W + b with W = scale q, made in the dtype of x for this product alone, and again backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, quantised: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(quantised, scale)
        return functional.linear(x, (quantised * scale).to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        quantised, scale = ctx.saved_tensors
        gradient = gradients[0]
        return gradient @ (quantised * scale).to(gradient.dtype), None, None, None


class Int8Linear(nn.Linear):
    """A linear layer with its weight rounded to 8 bits, one scale for each output.

    Args:
        linear: Frozen; its bias is kept as it is.
    """

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().float().abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
        quantised = (linear.weight.detach().float() / scale).round().to(torch.int8)
        self.weight = nn.Parameter(quantised, requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), in the dtype of `x`."""
        out: Tensor = _Int8Product.apply(x, self.weight, self.scale, self.bias)  # type: ignore[no-untyped-call]
        return out


@torch.no_grad()
def quantise(network: nn.Module) -> int:
    """Replace every linear layer of a frozen network, one by one, so that memory never holds both; how many.

    Convolutions and norms stay as they are.
    """
    count = 0
    for module in [module for module in network.modules() if type(module) is not nn.Linear]:  # a list would keep those
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, Int8Linear(child))
                count += 1
    return count
