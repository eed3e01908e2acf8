"""Copy tensors from the CPU to the network's device."""

import torch
from torch import Tensor


def upload(value: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; from the CPU to a GPU the copy does not wait for the GPU's earlier work.

    Args:
        value: Tensor of any shape and dtype.
        device: Device to copy to.

    Returns:
        The copy; `value` itself if it is on the device already.
    """
    if value.device.type == "cpu" and device.type == "cuda":
        return value.contiguous().pin_memory().to(device, non_blocking=True)
    return value.to(device)
