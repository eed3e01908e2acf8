"""An optimizer's state by the names of its parameters, so that a file of it can be read without the optimizer."""

import torch
from torch import Tensor


def optimizer_state(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """State tensors on the CPU, by name, such as `exp_avg.mid_block.resnets.0.conv1.lora_A.weight`.

    Args:
        optimizer: With one group of parameters.
        names: Of its parameters, in its order.
    """
    state = optimizer.state_dict()["state"]
    return {f"{kind}.{names[k]}": value.detach().cpu() for k, entry in state.items() for kind, value in entry.items()}


def load_optimizer_state(optimizer: torch.optim.Optimizer, names: list[str], state: dict[str, Tensor]) -> None:
    """Go back to what `optimizer_state` returned; settings such as the rate stay as they are.

    Raises:
        ValueError: A name or a shape is not this optimizer's.
    """
    place = {name: k for k, name in enumerate(names)}
    parameters = optimizer.param_groups[0]["params"]
    entries: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        kind, _, name = key.partition(".")
        if name not in place:
            raise ValueError(f"the optimizer has no parameter {name}")
        if value.dim() and value.shape != parameters[place[name]].shape:
            raise ValueError(f"the shape of {key} differs from its parameter's")
        entries.setdefault(place[name], {})[kind] = value.clone()
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
