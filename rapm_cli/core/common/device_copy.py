"""From the CPU to where the network is."""

import torch
from torch import Tensor


def upload(value: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; from the CPU to a GPU without waiting there for the work before it."""
    if value.device.type == "cpu" and device.type == "cuda":
        return value.contiguous().pin_memory().to(device, non_blocking=True)
    return value.to(device)
