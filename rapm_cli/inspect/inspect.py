"""What a thing is, from manifests and headers alone: neither torch nor any weight is loaded."""

import contextlib
import json
import shlex
from pathlib import Path
from typing import Any

from rapm_cli.bases.places import runs_dir
from rapm_cli.core.common.errors import DamagedError, InputError
from rapm_cli.core.storage.commit import MANIFEST, verify
from rapm_cli.formats.describe import describe_lora, describe_model, is_lora
from rapm_cli.formats.header import is_stranger, read_header
from rapm_cli.formats.pickled import SAFE, imports_of, is_pickle
from rapm_cli.formats.png import MAGIC, read_png
from rapm_cli.formats.recipe import RECIPE_FILE
from rapm_cli.inspect.disk_usage import trajectories_at
from rapm_cli.runs.run import LORA, Run, find_lora, find_run

INDEX, SCHEDULER = "model_index.json", "scheduler/scheduler_config.json"
ENDING, HEADER_BYTES, ENOUGH = ".safetensors", 8, 32  # of a file whose JSON header follows its own length
PICTURE_KEY = "rapm"  # of a PNG's text
LOADERS = ["diffusers (from_pretrained)", "rapm (--base)"]


def inspect(name: str) -> dict[str, Any]:
    """Facts of a run, a LoRA, a model in a file or a folder, trajectories, a picture or a pickle.

    Args:
        name: Path, or name of a run.

    Returns:
        JSON values; `kind` says which it is.

    Raises:
        InputError: There is no such thing, or it is damaged.
    """
    if (run := inspect_run(name)) is not None:
        return run
    path, is_there = Path(name), False
    with contextlib.suppress(OSError, ValueError):  # no file has such a name
        if name and path.is_dir():
            return _folder(path)
        is_there = bool(name) and path.exists()
    if not is_there and find_run(name) is None:
        raise InputError(f"there is no {name!r}", f"give a file, a folder, or a run's name; runs are in {runs_dir()}")
    path = find_lora(name)
    start = _start(path)
    if start.startswith(MAGIC):
        return _picture(path)
    if is_pickle(start):
        return _pickle(path)
    is_plausible = path.suffix == ENDING or start[HEADER_BYTES : HEADER_BYTES + 1] == b"{" or is_stranger(start)
    if not is_plausible:
        raise InputError(f"{path} is nothing that rapm can show", "rapm inspect --help says what it shows")
    return _safetensors(path)


def inspect_run(name: str) -> dict[str, Any] | None:
    """Facts of a run: its folder, how far it is, its commits, and those of its LoRA where it has one.

    Every commit is read whole and verified; the damaged ones are listed. None where the name is no run's.
    """
    run = find_run(name)
    if run is None or not run.is_begun:
        return None
    commits = []
    for commit, manifest, damage in run.verify_all():
        facts: dict[str, Any] = {"name": commit, "verifies": not damage, "damage": damage}
        if manifest:
            about = {key: str(manifest.about.get(key, "")) for key in ("written", "rapm")}
            files = {file: entry["bytes"] for file, entry in manifest.files.items()}
            facts |= about | {"parent": manifest.parent, "bytes": manifest.total_bytes, "files": files}
        commits.append(facts)
    facts_of_lora, damage_of_lora = None, ""
    if run.has_lora:
        try:
            facts_of_lora = _safetensors(run.verified_lora())
        except InputError as error:
            damage_of_lora = f"{error.message}; {error.remedy}"
    damaged = [facts["name"] for facts in commits if not facts["verifies"]] + ([LORA] if damage_of_lora else [])
    again, whole = run.resume_command, "its LoRA is whole; more --iterations would go on from the newest good one"
    good = [int(facts["name"]) for facts in commits if facts["verifies"] and facts["name"].isdecimal()]
    return {
        "kind": "run",
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


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(ENOUGH) if path.is_file() else b""
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", "check the path") from error


def _safetensors(path: Path) -> dict[str, Any]:
    header = read_header(path)
    facts = describe_lora(path, header) if is_lora(header.tensors) else describe_model(path, header)
    run = Run(path.parent)
    if run.lora == path and (comparison := run.result().get("comparison")):
        facts["comparison"] = comparison
    return facts


def _picture(path: Path) -> dict[str, Any]:
    png = read_png(path)
    recipe: Any = {}
    with contextlib.suppress(ValueError, RecursionError):
        recipe = json.loads(png.texts.get(PICTURE_KEY, "{}"))
    is_ours = isinstance(recipe, dict) and bool(recipe)
    is_one = is_ours and isinstance(recipe.get("seed"), int)  # not a grid of several
    return {
        "kind": "picture",
        "file": str(path),
        "bytes": path.stat().st_size,
        "width": png.width,
        "height": png.height,
        "recipe": recipe if is_ours else {},
        "parameters": png.texts.get("parameters", ""),
        "again": _again(path, recipe) if is_one else "",
    }


def _again(path: Path, recipe: dict[str, Any]) -> str:
    """The command that makes a picture again; one of a model with its LoRA in it names the model."""
    base = "" if recipe.get("lora_sha256", "?") else f" --base {shlex.quote(str(recipe.get('base')))}"
    return f"rapm generate --from {shlex.quote(str(path))}{base}"


def _pickle(path: Path) -> dict[str, Any]:
    names = imports_of(path)
    return {
        "kind": "pickle",
        "file": str(path),
        "bytes": path.stat().st_size,
        "imports": names,
        "unusual": [name for name in names if name not in SAFE],
    }


def _folder(path: Path) -> dict[str, Any]:
    facts = {"folder": str(path), **_sealed(path)}
    if (path / INDEX).is_file():
        return facts | _model(path)
    if store := trajectories_at(path):
        return facts | {"kind": "trajectories", **store}
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise InputError(f"{path} is no run, no model and no export", "see rapm inspect --help")
    return facts | {"kind": "files that lie together", "files": [_safetensors(file) for file in files]}


def _sealed(path: Path) -> dict[str, Any]:
    """Whether a folder of ours is what was written; empty for one of others."""
    if not (path / MANIFEST).is_file():
        return {}
    try:
        manifest = verify(path, is_movable=True)
        said = {"verified": f"{len(manifest.files)} files, each is what was written"}
        return {"bytes": manifest.total_bytes, "damage": "", "said": said}
    except DamagedError as error:
        return {"damage": error.damage}


def _model(path: Path) -> dict[str, Any]:
    index, scheduler, recipe = (_json(path / name) for name in (INDEX, SCHEDULER, RECIPE_FILE))
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
        "programs": LOADERS,
        "recipe": recipe,
    }


def _json(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        record = json.loads(path.read_text(encoding="utf-8"))
        return record if isinstance(record, dict) else {}
    return {}


def size_in_words(count: int) -> str:
    """Bytes in words, decimal units as file managers use."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"
