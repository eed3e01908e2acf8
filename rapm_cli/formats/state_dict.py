"""Read a state dict from a pickle of `torch.save`, without running code that the pickle names."""

import warnings
from pathlib import Path

import torch
from torch import Tensor

from rapm_cli.core.common.errors import InputError

SAFE_TORCH = (2, 10)


def read_pickled(source: Path, remedy: str) -> dict[str, Tensor]:
    """Read a state dict that `torch.save` wrote.

    Args:
        source: Pickle to read.
        remedy: Remedy of the error for a refused file.

    Raises:
        InputError: The file holds anything but dense tensors by name, is damaged, or torch is too old to be safe.
    """
    if tuple(map(int, torch.__version__.split(".")[:2])) < SAFE_TORCH:
        raise InputError(
            f"{source} is a pickle, and a pickle can run code in torch {torch.__version__} (CVE-2026-24747)",
            "install torch 2.10 or newer",
        )
    try:
        with warnings.catch_warnings(action="ignore"):  # torch warns of pickles that it would not write itself
            state = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"{source} holds more than tensors, or is damaged", remedy) from error
    if not isinstance(state, dict) or not state:
        raise InputError(f"{source} is not a state dict", remedy)
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
            raise InputError(f"{source} has {name!r}, which is not a dense tensor", remedy)
    return state
