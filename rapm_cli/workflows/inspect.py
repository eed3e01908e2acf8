"""What a run or a LoRA is, from manifests and headers alone: neither torch nor any weight is loaded."""

from pathlib import Path
from typing import Any

from rapm_cli.core.errors import InputError
from rapm_cli.formats.header import DTYPE_BYTES, read_header
from rapm_cli.formats.recipe import lora_facts
from rapm_cli.workflows.rundir import LORA, Run, find_lora, find_run


def inspect_lora(name: str) -> dict[str, Any]:
    """Facts of a LoRA file, or of that of a run.

    Returns:
        JSON values: path, bytes, dtype, rank, alpha, scale, modules, parameters, where they are, and the recipe.

    Raises:
        InputError: There is none, or the file is damaged.
    """
    return _lora_facts(find_lora(name))


def inspect_run(name: str) -> dict[str, Any] | None:
    """Facts of a run: its folder, how far it is, its commits, and those of its LoRA where it has one.

    Every commit is read whole and verified; the damaged ones are listed. None where the name is no run's.
    """
    run = find_run(name)
    if run is None or not run.is_begun:
        return None
    commits = []
    for commit, manifest, damage in run.survey():
        facts: dict[str, Any] = {"name": commit, "verifies": not damage, "damage": damage}
        if manifest:
            about = {key: str(manifest.about.get(key, "")) for key in ("written", "rapm")}
            files = {file: entry["bytes"] for file, entry in manifest.files.items()}
            facts |= about | {"parent": manifest.parent, "bytes": manifest.total_bytes, "files": files}
        commits.append(facts)
    facts_of_lora, damage_of_lora = None, ""
    if run.has_lora:
        try:
            facts_of_lora = _lora_facts(run.sound_lora())
        except InputError as error:
            damage_of_lora = f"{error.message}; {error.remedy}"
    damaged = [facts["name"] for facts in commits if not facts["verifies"]] + ([LORA] if damage_of_lora else [])
    again, whole = run.resume_command, "its LoRA is whole; more --iterations would go on from the newest good one"
    good = [int(facts["name"]) for facts in commits if facts["verifies"] and facts["name"].isdecimal()]
    return {
        "run": str(run.folder),
        "state": "finished" if run.is_finished else "diverged" if run.has_diverged else "unfinished",
        "iterations": max(good, default=0),
        "resume": "" if run.is_finished or run.has_diverged else again,
        "commits": commits,
        "damaged": damaged,
        "repair": whole if run.is_finished and not damage_of_lora else f"go on from the newest good one: {again}",
        "lora": facts_of_lora,
        "lora_damage": damage_of_lora,
    }


def _lora_facts(path: Path) -> dict[str, Any]:
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
