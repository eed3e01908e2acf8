"""Copy tensors from the CPU to the network's device."""

import torch
from torch import Tensor


def upload(value: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; from the CPU to a GPU the copy does not wait for the GPU's earlier work."""
    if value.device.type == "cpu" and device.type == "cuda":
        return value.contiguous().pin_memory().to(device, non_blocking=True)
    return value.to(device)
