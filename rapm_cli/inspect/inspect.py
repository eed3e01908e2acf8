"""Describe runs, models, LoRAs, images and pickles from manifests and headers, without torch and without weights."""

import contextlib
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rapm_cli.bases.checkpoint import CheckpointKind, checkpoint_kind
from rapm_cli.bases.places import runs_dir
from rapm_cli.bases.support import Judged, judge
from rapm_cli.bases.weights import Weights
from rapm_cli.core.common.errors import DamagedError, InputError
from rapm_cli.core.storage.commit import MANIFEST, Manifest, verify
from rapm_cli.formats.describe import RAPM, describe_lora, describe_model, is_lora
from rapm_cli.formats.header import SUFFIX, has_header, is_lookalike, read_header
from rapm_cli.formats.pickle_scan import SAFE_IMPORTS, is_pickle, pickle_imports
from rapm_cli.formats.png import MAGIC, RECIPE_KEY, read_png
from rapm_cli.formats.recipe import MODEL_INDEX, RECIPE_FILE, SCHEDULER_CONFIG
from rapm_cli.inspect.disk_usage import trajectories_at
from rapm_cli.runs.lock import holder
from rapm_cli.runs.run import LORA, Run, find_lora, find_run

START_BYTES = 32  # enough to tell the kinds of files apart
FOLDER_PROGRAMS = ["diffusers (from_pretrained)", RAPM]


def inspect(name: str) -> dict[str, Any]:
    """Return facts about a run, a LoRA, a model (file or folder), trajectories, an image or a pickle.

    Args:
        name: Path, or name of a run.

    Returns:
        Facts as JSON values; the key "kind" says which kind of thing it is.

    Raises:
        InputError: Nothing has this name, or the thing is damaged.
    """
    if (run := inspect_run(name)) is not None:
        return run
    path, is_there = Path(name), False
    with contextlib.suppress(OSError, ValueError):  # the operating system rejects the name
        if name and path.is_dir():
            return _folder(path)
        is_there = bool(name) and path.exists()
    if not is_there and find_run(name) is None:
        raise InputError(f"there is no {name!r}", f"give a file, a folder, or a run's name; runs are in {runs_dir()}")
    path = find_lora(name)
    start = _first_bytes(path)
    if start.startswith(MAGIC):
        return _image(path)
    if has_header(start):  # before pickles, whose first byte can be the lowest of a header's length
        return _safetensors(path)
    if is_pickle(start):
        return _pickle(path)
    if not (path.suffix == SUFFIX or is_lookalike(start)):
        raise InputError(f"{path} is not a kind of file that rapm shows", "rapm inspect --help says what it shows")
    return _safetensors(path)


def inspect_run(name: str) -> dict[str, Any] | None:
    """Return facts about a run: its folder, progress, checkpoints, and its LoRA where it has one.

    Every checkpoint is read completely and verified, and the damaged ones are listed.

    Args:
        name: Path, or name of a run.

    Returns:
        Facts as JSON values; None where no run has this name.
    """
    run = find_run(name)
    if run is None or not run.is_begun:
        return None
    checkpoints = [_checkpoint(*found) for found in run.verify_all()]
    facts_of_lora, damage_of_lora = None, ""
    if run.has_lora:
        try:
            facts_of_lora = _safetensors(run.verified_lora())
        except InputError as error:
            damage_of_lora = f"{error.message}; {error.remedy}"
    damaged = [facts["name"] for facts in checkpoints if not facts["verifies"]] + ([LORA] if damage_of_lora else [])
    resume = f"resume from the newest good checkpoint: {run.resume_command}"
    whole = "its LoRA is complete; with more --iterations the run resumes from the newest good checkpoint"
    is_open, trainer = not (run.is_finished or run.has_diverged), holder(run.folder)
    good = [int(facts["name"]) for facts in checkpoints if facts["verifies"] and facts["name"].isdecimal()]
    return {
        "kind": "run",
        "run": str(run.folder),
        "state": "finished" if run.is_finished else "diverged" if run.has_diverged else "unfinished",
        "at_work": trainer,
        "iterations": max(good, default=0),
        "verdict": _closing_verdict(run),
        "resume": run.resume_command if is_open and not trainer else "",
        "commits": checkpoints,
        "damaged": damaged,
        "repair": whole if run.is_finished and not damage_of_lora else resume,
        "lora": facts_of_lora,
        "lora_damage": damage_of_lora,
    }


def _closing_verdict(run: Run) -> str:
    """Return the verdict of a finished run's closing evaluation; empty without one, as in older runs."""
    with contextlib.suppress(InputError):  # the LoRA's damage tells of it
        return str(run.result().get("verdict") or "")
    return ""


def _checkpoint(name: str, manifest: Manifest | None, damage: str) -> dict[str, Any]:
    facts: dict[str, Any] = {"name": name, "verifies": not damage, "damage": damage}
    if manifest:
        about = {key: str(manifest.about.get(key, "")) for key in ("written", "rapm")}
        files = {file: entry["bytes"] for file, entry in manifest.files.items()}
        facts |= about | {"parent": manifest.parent, "bytes": manifest.total_bytes, "files": files}
    return facts


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(START_BYTES) if path.is_file() else b""
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", "check the path") from error


def _safetensors(path: Path) -> dict[str, Any]:
    header = read_header(path)
    if not is_lora(header.tensors):
        return _judged(describe_model(path, header), lambda: _predicts(checkpoint_kind(path)))
    facts = describe_lora(path, header)
    run = Run(path.parent)
    if run.lora == path and (comparison := run.result().get("comparison")):
        facts["comparison"] = comparison
    return facts


def _predicts(kind: CheckpointKind | Judged) -> str | None:
    """Return what a base predicts, in words; None where it does not say."""
    return f"{kind.prediction_type}, down to zero signal" if kind.has_zero_snr else kind.prediction_type


def _judged(facts: dict[str, Any], check: Callable[[], str | None]) -> dict[str, Any]:
    """Return facts about a model, with what it predicts, or the reason why it looks like a base and is none.

    Args:
        facts: Facts, with the programs that read a model of this kind.
        check: Function that returns what a base predicts, and raises `InputError` for one that rapm cannot distil.
    """
    if RAPM in facts["programs"]:
        try:
            predicts = check()
        except InputError as error:
            programs = [name for name in facts["programs"] if name != RAPM]
            said = facts.get("said", {}) | {"not a base": f"rapm cannot distil it: {error.message}"}
            return facts | {"programs": programs, "said": said}
        return facts | ({"predicts": predicts} if predicts else {})
    return facts


def _image(path: Path) -> dict[str, Any]:
    png = read_png(path)
    recipe: Any = {}
    with contextlib.suppress(ValueError, RecursionError):
        recipe = json.loads(png.texts.get(RECIPE_KEY, "{}"))
    is_ours = isinstance(recipe, dict) and bool(recipe)
    is_one = is_ours and isinstance(recipe.get("seed"), int)  # a grid of several images has no seed of its own
    return {
        "kind": "picture",
        "file": str(path),
        "bytes": path.stat().st_size,
        "width": png.width,
        "height": png.height,
        "recipe": recipe if is_ours else {},
        "parameters": png.texts.get("parameters", ""),
        "again": _regenerate_command(path, recipe) if is_one else "",
    }


def _regenerate_command(path: Path, recipe: dict[str, Any]) -> str:
    """Return the command that reproduces an image; it names the base where a fused model made the image."""
    base = "" if recipe.get("lora_sha256", "?") else f" --base {shlex.quote(str(recipe.get('base')))}"
    return f"rapm generate --from {shlex.quote(str(path))}{base}"


def _pickle(path: Path) -> dict[str, Any]:
    names = pickle_imports(path)
    return {
        "kind": "pickle",
        "file": str(path),
        "bytes": path.stat().st_size,
        "imports": names,
        "unusual": [name for name in names if name not in SAFE_IMPORTS],
    }


def _folder(path: Path) -> dict[str, Any]:
    facts = {"folder": str(path), **_verified(path)}
    if (path / MODEL_INDEX).is_file():
        return _judged(facts | _model(path), lambda: _predicts(judge(Weights(path, ""))))
    if store := trajectories_at(path):
        return facts | {"kind": "trajectories", **store}
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise InputError(f"{path} is not a run, a model or an export", "see rapm inspect --help")
    return facts | {"kind": "files that lie together", "files": [_safetensors(file) for file in files]}


def _verified(path: Path) -> dict[str, Any]:
    """Return whether all files of a folder equal what rapm wrote; empty for a folder of another program."""
    if not (path / MANIFEST).is_file():
        return {}
    try:
        manifest = verify(path, is_movable=True)
        verified = f"{len(manifest.files)} files, all equal to what rapm wrote"
        return {"bytes": manifest.total_bytes, "damage": "", "said": {"verified": verified}}
    except DamagedError as error:
        return {"damage": error.damage}


def _model(path: Path) -> dict[str, Any]:
    index, scheduler, recipe = (_json(path / name) for name in (MODEL_INDEX, SCHEDULER_CONFIG, RECIPE_FILE))
    parts = {}
    for name, kind in index.items():
        files = sorted((path / name).glob("*.safetensors")) if isinstance(kind, list) else []
        headers = [read_header(file) for file in files]
        if headers:
            tensors = [one for header in headers for one in header.tensors.values()]
            parts[name] = {
                "class": kind[-1],
                "bytes": sum(header.file_bytes for header in headers),
                "dtype": "/".join(sorted({one.dtype for one in tensors})),
                "parameters": sum(one.count for one in tensors),
            }
    return {
        "kind": "model in diffusers layout",
        "class": index.get("_class_name"),
        "parts": parts,
        "scheduler": {"class": scheduler.get("_class_name"), "timestep_spacing": scheduler.get("timestep_spacing")},
        "programs": FOLDER_PROGRAMS,
        "recipe": recipe,
    }


def _json(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        record = json.loads(path.read_text(encoding="utf-8"))
        return record if isinstance(record, dict) else {}
    return {}


def size_in_words(count: int) -> str:
    """Return a size in bytes as text, in decimal units."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"
