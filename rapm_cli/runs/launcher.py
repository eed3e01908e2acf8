"""The environment that torchrun and accelerate give to each process that they start, read without torch."""

import os

from rapm_cli.core.common.errors import ConfigError

# What MPI's and Slurm's own launchers say instead of WORLD_SIZE; their processes do not know of each other.
FOREIGN_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")


def world_size() -> int:
    """Return the number of processes that were started together.

    Raises:
        ConfigError: WORLD_SIZE is not a number.
    """
    try:
        return max(1, int(os.environ.get("WORLD_SIZE", "1")))
    except ValueError as error:
        raise ConfigError(f"WORLD_SIZE {os.environ['WORLD_SIZE']!r} is not a number", "start with torchrun") from error


def speaker() -> str:
    """Return the prefix of this process's warnings; empty for the first process and for a single one."""
    return f"process {os.environ['RANK']}: " if is_follower() else ""


def is_follower() -> bool:
    """Return True in every process but the first, which alone reports to the user."""
    return world_size() > 1 and os.environ.get("RANK", "0") != "0"


def lone_process_warning() -> str:
    """Return a warning if a launcher was asked for several processes and this one is alone; else an empty string.

    `accelerate launch` sets MASTER_ADDR exactly where it was asked for more than one process. Without several GPUs, as
    under `--cpu`, it starts a single one all the same, without WORLD_SIZE.
    """
    if "WORLD_SIZE" in os.environ:
        return ""
    remedy = "start them with: torchrun --nproc-per-node N -m rapm_cli"
    if "MASTER_ADDR" in os.environ and "ACCELERATE_MIXED_PRECISION" in os.environ:
        return f"accelerate launch was asked for several processes and has started one; {remedy}"
    for name in FOREIGN_SIZES:
        if os.environ.get(name, "1") not in ("", "0", "1"):
            return f"{name} is {os.environ[name]} and WORLD_SIZE is not set: each process works alone; {remedy}"
    return ""
