"""From the CPU to where the network is."""

import torch
from torch import Tensor


def upload(value: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; to a GPU without waiting there for the work before it."""
    return value.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else value.to(device)
