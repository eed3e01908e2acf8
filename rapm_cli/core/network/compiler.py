"""torch.compile for the blocks that make up most of a network."""

from typing import Any

import torch

from rapm_cli.core.common.errors import ConfigError

GRAPHS = 64  # of a block's code: for each of its widths, batch sizes and roles, with gradients and without


def compile_blocks(unet: Any) -> None:
    """Compile the transformer blocks, each when it first runs; equal ones share their graphs.

    Every shape gets a graph of its own, so that what is computed does not depend on what was computed before.

    Args:
        unet: A diffusers network, on its device.

    Raises:
        ConfigError: torch cannot compile on this machine.
    """
    try:
        torch.compile(torch.neg)(torch.zeros(2, device=unet.device))
    except RuntimeError as error:
        reason = next(line for line in str(error).splitlines() if line.strip())
        raise ConfigError(
            f"--compile: torch cannot compile here: {reason[:200]}", "install a C++ compiler, or leave it out"
        ) from error
    torch._dynamo.config.recompile_limit = GRAPHS
    unet.compile_repeated_blocks(dynamic=False)
