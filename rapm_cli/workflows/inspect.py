"""What a run or a LoRA is, from the header of its file alone: neither torch nor any weight is loaded."""

from typing import Any

from rapm_cli.formats.header import DTYPE_BYTES, read_header
from rapm_cli.formats.recipe import lora_facts
from rapm_cli.workflows.rundir import Run, find_lora


def inspect_lora(name: str) -> dict[str, Any]:
    """Facts of a LoRA file, a run folder or a run's name.

    Returns:
        JSON values: path, bytes, dtype, rank, alpha, scale, modules, parameters, where they are, and the recipe.

    Raises:
        InputError: There is none, or the file is damaged.
    """
    path = find_lora(name)
    header = read_header(path)
    rank, alpha, recipe = lora_facts(path, header)
    modules = [key.removesuffix(".lora_A.weight") for key in header.tensors if key.endswith(".lora_A.weight")]
    facts: dict[str, Any] = {
        "file": str(path),
        "bytes": header.file_bytes,
        "dtype": "/".join(sorted({tensor.dtype for tensor in header.tensors.values()} & DTYPE_BYTES.keys())),
        "rank": rank,
        "alpha": alpha,
        "scale": alpha / rank,
        "modules": len(modules),
        "parameters": sum(tensor.count for tensor in header.tensors.values()),
        "blocks": _count_by_block(modules),
        "recipe": recipe,
    }
    run = Run(path.parent)
    if run.lora == path and (comparison := run.result().get("comparison")):
        facts["comparison"] = comparison
    return facts


def _count_by_block(modules: list[str]) -> dict[str, int]:
    """Adapted modules in each block, such as `down_blocks.1`."""
    counts: dict[str, int] = {}
    for module in modules:
        parts = module.removeprefix("unet.").split(".")
        block = ".".join(parts[:2]) if parts[1:2] and parts[1].isdigit() else parts[0]
        counts[block] = counts.get(block, 0) + 1
    return counts


def size_in_words(count: int) -> str:
    """Bytes in words, decimal units as file managers use."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"
