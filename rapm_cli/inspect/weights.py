"""What the numbers of files say, added to the facts of their headers; torch is needed."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rapm_cli.formats.describe import block_of
from rapm_cli.formats.fuse import stored
from rapm_cli.formats.lora import LoraFile, load_lora
from rapm_cli.formats.values import compare, norms, surveyed


def add_values(found: list[dict[str, Any]]) -> None:
    """Add norms by block and the count of values that are not finite; to the first of two LoRAs, how they compare."""
    loras = [_lora(facts) for facts in found]
    for facts, lora in zip(found, loras, strict=True):
        target = facts["lora"] if facts["kind"] == "run" and facts["lora"] else facts
        if lora:
            target["values"] = {"norms": norms(lora), "not_finite": 0}  # the reader refuses others
        elif files := _files(facts):
            target["values"] = _surveyed(files)
    if len(loras) == 2 and loras[0] and loras[1]:
        found[0]["compared"] = asdict(compare(loras[0], loras[1]))


def _lora(facts: dict[str, Any]) -> LoraFile | None:
    facts = facts["lora"] or {} if facts["kind"] == "run" else facts
    return load_lora(Path(facts["file"])) if facts.get("kind") == "LoRA" else None


def _files(facts: dict[str, Any]) -> list[Path]:
    if "file" in facts and facts["kind"] not in ("picture", "pickle"):
        return [Path(facts["file"])]
    return sorted(Path(facts["folder"]).glob("*/*.safetensors")) if "parts" in facts else []


def _surveyed(files: list[Path]) -> dict[str, Any]:
    squares: dict[str, float] = {}
    bad = 0
    for file in files:
        for name, norm, count in surveyed(stored([file])):
            place = f"{file.parent.name}/{block_of(name)}" if len(files) > 1 else block_of(name)
            squares[place] = squares.get(place, 0.0) + norm**2
            bad += count
    return {"norms": {place: value**0.5 for place, value in sorted(squares.items())}, "not_finite": bad}
