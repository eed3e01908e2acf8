"""The user's LoRAs that a base is merged with: from options, from a run, and from headers that name them."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rapm_cli.core.common.errors import ConfigError, InputError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.storage.files import file_sha256
from rapm_cli.formats.lora_ref import LoraRef, split_weight
from rapm_cli.runs.hub_lora import named_lora
from rapm_cli.runs.run import Run, all_runs

HERE = Path()


def read_refs(texts: Sequence[str] | None, reporter: Reporter, option: str = "--base-lora") -> tuple[LoraRef, ...]:
    """Return the LoRAs of a repeated option `FILE[:WEIGHT]`.

    Args:
        texts: Values of the option; None where it is not given.
        reporter: Shows downloads from the hub.
        option: Name of the option with its dashes, for messages.

    Raises:
        ConfigError: A weight is 0 or not finite.
        InputError: There is no such LoRA.
    """
    return tuple(_read_ref(text, option, reporter) for text in texts or ())


def _read_ref(text: str, option: str, reporter: Reporter) -> LoraRef:
    try:
        name, weight = (text, 1.0) if Path(text).is_file() else split_weight(text)
    except (ValueError, OSError) as error:
        remedy = "give FILE or FILE:WEIGHT, such as style.safetensors:0.8"
        raise ConfigError(f"{option} {text!r}: {error}", remedy) from error
    path = named_lora(name, reporter).absolute()
    return LoraRef(str(path), file_sha256(path), weight)


def refs_of_run(run: Run) -> tuple[LoraRef, ...]:
    """Return the LoRAs that a run's base is merged with, where they were when it was begun."""
    return tuple(LoraRef(**one) for one in run.raw_settings().get("base_loras", []))


def find_refs(
    records: Sequence[Mapping[str, Any]], near: Sequence[Path], origin: Path, given: Sequence[LoraRef] = ()
) -> tuple[LoraRef, ...]:
    """Return where the LoRAs are that a header, a run or an image names.

    A name alone is never trusted: the checksum decides.

    Args:
        records: What `LoraRef.record` gave.
        near: Folders, and files, to look at first; then come the current folder and the places that runs remember.
        origin: File or folder that names them, for messages.
        given: LoRAs that the user names instead; they must be the same.

    Raises:
        ConfigError: The user names others.
        InputError: A file is not found.
    """
    if given:
        wanted, named = (sorted((one["sha256"], one["weight"]) for one in some) for some in (records, _records(given)))
        if wanted != named:
            raise ConfigError(
                f"{origin} was made with {_words(records)}, not with {_words(_records(given))}",
                "leave --base-lora out, or give those",
            )
        return tuple(given)
    return tuple(_find(record, near, origin) for record in records)


def _find(record: Mapping[str, Any], near: Sequence[Path], origin: Path) -> LoraRef:
    for place in _places(record, near):
        if place.is_file() and file_sha256(place) == record["sha256"]:
            return LoraRef(str(place.absolute()), record["sha256"], float(record["weight"]))
    raise InputError(
        f"{origin} was made with the LoRA {record['name']}, which is not found",
        f"copy it to {shlex.quote(str(near[0]))}, or name it again; its sha256 is {record['sha256']}",
    )


def _places(record: Mapping[str, Any], near: Sequence[Path]) -> Iterator[Path]:
    """Yield the places where a LoRA can be, the likely ones first."""
    yield from (place / record["name"] if place.is_dir() else place for place in (*near, HERE))
    for run in all_runs():
        yield from (ref.path for ref in refs_of_run(run) if ref.sha256 == record["sha256"])


def _records(refs: Sequence[LoraRef]) -> list[dict[str, Any]]:
    return [ref.record for ref in refs]


def _words(records: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{one['name']} at {one['weight']:g}" for one in records) or "no LoRA"
