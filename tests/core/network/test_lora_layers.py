"""An adapted layer and its gradients."""

import pytest
import torch
from torch import nn

from rapm_cli.core.network.lora_layers import STUDENT, TEACHER, Switch, install


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("needs_input_gradient", [True, False])
def test_an_adapted_linear_layer_has_the_gradients_of_its_formula(scale, needs_input_gradient):
    generator = torch.Generator().manual_seed(0)
    x, down, up = (torch.randn(size, generator=generator, dtype=torch.float64) for size in ((2, 3, 5), (2, 5), (4, 2)))
    layer, switch = nn.Module(), Switch(STUDENT)
    layer.base_layer = nn.Linear(5, 4).double().requires_grad_(False)
    layer.lora_A, layer.lora_B = (
        nn.ModuleDict({"default": nn.Linear(*weight.shape[::-1], bias=False).double()}) for weight in (down, up)
    )
    layer.scaling = {"default": scale}
    install(layer, switch)
    x.requires_grad_(needs_input_gradient)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    with torch.no_grad():
        a.copy_(down)
        b.copy_(up)
    out = layer.forward(x)
    expected = layer.base_layer(x) + scale * (x @ a.t()) @ b.t()
    torch.testing.assert_close(out, expected)
    wanted = [*([x] if needs_input_gradient else []), a, b]
    gradient = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    mine, theirs = (torch.autograd.grad(made, wanted, gradient) for made in (out, expected))
    torch.testing.assert_close(mine, theirs)
    switch.role = TEACHER
    torch.testing.assert_close(layer.forward(x), layer.base_layer(x), rtol=0, atol=0)
