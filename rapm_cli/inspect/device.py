"""Describe the device that rapm computes on."""

import platform
from typing import Any

import torch

from rapm_cli.bases.device import describe_machine, find_device
from rapm_cli.inspect.inspect import size_in_words


def device_facts() -> dict[str, Any]:
    """Return facts about the device that `--device auto` takes, as JSON values."""
    device = find_device("auto")
    facts: dict[str, Any] = {
        "device": describe_machine(device),
        "torch": torch.__version__,
        "CUDA": torch.version.cuda or "not in this torch",
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        major, minor = torch.cuda.get_device_capability(device)
        facts |= {
            "memory": f"{size_in_words(free)} of {size_in_words(total)} free",
            "capability": f"{major}.{minor}",
            "bf16": torch.cuda.is_bf16_supported(),
        }
    return facts
