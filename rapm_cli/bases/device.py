"""Choose device and precision, describe the machine, and read peak memory."""

import os
import sys
from typing import cast

import psutil
import torch

from rapm_cli.core.common.errors import ConfigError
from rapm_cli.core.method.config import Precision

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DEVICES = "--device auto, cpu, cuda, cuda:1 or mps"
MIB = 2**20


def find_device(name: str) -> torch.device:
    """Return the named device; "auto" is CUDA, then Apple's GPU, then the CPU. A CUDA device always has an index.

    Raises:
        ConfigError: This machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name!r} is no device", f"give {DEVICES}") from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"--device {name} is not supported", f"give {DEVICES}")
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)  # some torch functions refuse a device without an index
        if device.index >= torch.cuda.device_count():
            raise ConfigError(f"--device {name}: there is no such GPU here", "use --device auto or cpu")
        torch.cuda.set_device(device)  # for torch functions that use the current device
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("--device mps: there is no Apple GPU here", "use --device auto or cpu")
    return device


def find_rng(name: str, device: torch.device) -> torch.device:
    """Return the device that makes the noise.

    Args:
        name: "cpu", whose noise is the same on every machine; "device" or its type for the computing device.
        device: Device that computes.

    Raises:
        ConfigError: The name is another device type, for example of an image made elsewhere.
    """
    if name == "cpu":
        return torch.device("cpu")
    if name not in ("device", device.type):
        raise ConfigError(
            f"noise cannot be made on {name!r}: this computes on {device.type}",
            "give --rng cpu or device; to reproduce an image, use the --device it was made on",
        )
    return device


def find_precision(name: str, device: torch.device) -> Precision:
    """Return the named precision; "auto" is fp32 on a CPU, bf16 on a GPU that supports it, else fp16.

    Raises:
        ConfigError: The name is unknown.
    """
    if name in DTYPES:
        return cast(Precision, name)
    if name != "auto":
        raise ConfigError(f"--precision {name} is unknown", f"give auto, {', '.join(DTYPES)}")
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    return "fp32"


def be_deterministic() -> None:
    """Use only deterministic algorithms from now on; call it before the first use of CUDA.

    Memory-efficient attention is disabled because it sums gradients in no fixed order. On a CPU all algorithms in use
    are deterministic anyway.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.enable_mem_efficient_sdp(False)


def describe_machine(device: torch.device, processes: int = 1) -> str:
    """Describe the device, and the number of processes if there are several, for tables of measurements."""
    name = f"{device.type}, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return f"{name}, torch {torch.__version__}" + (f", {processes} processes" if processes > 1 else "")


def peak_memory_mib(device: torch.device) -> float:
    """Return the peak memory since the start in MiB: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    memory = psutil.Process(os.getpid()).memory_info()
    if hasattr(memory, "peak_wset"):  # Windows
        return float(memory.peak_wset) / MIB
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024
