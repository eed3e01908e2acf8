"""Measure the disk space of rapm and its models. Nothing is verified, and neither torch nor weights are loaded.

Links below the cache folder are not followed, and files there that rapm did not name are left alone.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from rapm_cli.bases.places import (
    cache_dir,
    converted_dir,
    features_dir,
    runs_dir,
    samples_dir,
    studies_dir,
    study_runs_dir,
    trajectories_dir,
)
from rapm_cli.core.common.errors import DamagedError
from rapm_cli.core.storage.commit import MANIFEST, Manifest, try_manifest, verify
from rapm_cli.core.storage.files import is_marked, leftovers
from rapm_cli.runs.lock import CLAIM, HOLDER, LOCK, holder
from rapm_cli.runs.run import Run, all_runs, base_of

# Kinds of entries. Their values are keys of `--json` and names of folders, which stay.
MODELS, OTHERS = "models", "other_models"
TRAJECTORIES, FEATURES, SAMPLES, CONVERTED = "trajectories", "readings", "galleries", "converted"
LEFTOVERS, REST = "leftovers", "rest"
RUNS, STUDIES = "runs", "studies"
PIPELINES = ("StableDiffusionXLPipeline", "StableDiffusionPipeline")  # a test compares these with the families
_STORE, _SHARD, _SAMPLE_SET = (re.compile(pattern) for pattern in (r"[0-9a-f]{12}", r"[0-9]{6,}", r"[0-9a-f]{24}"))


@dataclass(frozen=True)
class Entry:
    """Files or folders that are counted as one.

    Args:
        kind: Kind of the entry, one of this module's constants.
        path: File or folder.
        total_bytes: Size of all files, in bytes.
        used: Time of the last write (for trajectories and models also of the last read), in seconds since the epoch;
            0 for never.
        facts: Further facts, as JSON values.
        parts: Files or folders that pruning removes.
    """

    kind: str
    path: Path
    total_bytes: int
    used: float
    facts: dict[str, Any] = field(default_factory=dict)
    parts: tuple[Path, ...] = ()

    def record(self) -> dict[str, Any]:
        """Return the entry as JSON values."""
        used = datetime.fromtimestamp(self.used).astimezone().isoformat(timespec="seconds") if self.used else None
        return {"path": str(self.path), "bytes": self.total_bytes, "last_used": used, **self.facts}


@dataclass(frozen=True)
class DiskUsage:
    """Disk space of rapm and its models.

    Args:
        folders: Folder of each kind.
        entries: All entries.
        left_alone: Paths in the cache folder that are links, or that rapm did not make.
    """

    folders: dict[str, Path]
    entries: list[Entry]
    left_alone: list[Path]

    def of(self, *kinds: str) -> list[Entry]:
        """Return the entries of some kinds, the largest first."""
        return sorted((entry for entry in self.entries if entry.kind in kinds), key=lambda entry: -entry.total_bytes)

    def total(self, *kinds: str) -> int:
        """Return the size of all entries of some kinds, in bytes."""
        return sum(entry.total_bytes for entry in self.of(*kinds))

    def record(self) -> dict[str, Any]:
        """Return all entries as JSON values, with sizes in bytes."""
        kinds = (MODELS, OTHERS, TRAJECTORIES, FEATURES, SAMPLES, CONVERTED, LEFTOVERS, REST, RUNS, STUDIES)
        return {
            "folders": {kind: str(folder) for kind, folder in self.folders.items()},
            **{kind: [entry.record() for entry in self.of(kind)] for kind in kinds},
            "bytes": {kind: self.total(kind) for kind in kinds},
            "left_alone": list(map(str, self.left_alone)),
        }


def measure() -> DiskUsage:
    """Measure the caches of rapm and of huggingface_hub, all runs and all studies."""
    hub, models = _models()
    folders = {TRAJECTORIES: trajectories_dir(), FEATURES: features_dir(), CONVERTED: converted_dir(), RUNS: runs_dir()}
    folders |= {SAMPLES: samples_dir(), STUDIES: studies_dir()}
    stores = [path for path in _children(trajectories_dir()) if _is_store(path)]
    features = [path for path in _children(features_dir()) if _is_commit(path) and _SAMPLE_SET.fullmatch(path.name)]
    converted = [path for path in _children(converted_dir()) if _is_commit(path)]
    samples = [path for path in _children(samples_dir()) if _is_real(path) and _SAMPLE_SET.fullmatch(path.name)]
    places = (trajectories_dir(), features_dir(), converted_dir(), samples_dir())
    known = {*stores, *features, *converted, *samples, *(place / name for place in places for name in (LOCK, HOLDER))}
    unknown = [path for place in places for path in _children(place) if path not in known and path.suffix != CLAIM]
    foreign = [path for path in unknown if not is_marked(path)]
    foreign += [place for place in places if place.is_symlink()]
    needs = trajectory_needs()
    entries = [*models, *(_store(path, needs) for path in stores)]
    if features:
        entries.append(_entry_of(FEATURES, features_dir(), features))
    entries += [_entry_of(CONVERTED, path, [path]) for path in converted]
    entries += [_entry_of(SAMPLES, path, [path]) for path in samples]
    if litter := [
        path for place in (cache_dir(), *_children(cache_dir()), *stores, *samples) for path in _leftovers(place)
    ]:
        entries.append(_entry_of(LEFTOVERS, cache_dir(), litter))
    if rest := [path for path in _children(cache_dir()) if path not in places and not is_marked(path)]:
        entries.append(_entry_of(REST, cache_dir(), rest))
    entries += [_run(run) for run in all_runs() if run.is_begun or run.has_lora]
    if studies_dir().is_dir():
        entries.append(_entry_of(STUDIES, studies_dir(), [studies_dir()]))
    return DiskUsage({MODELS: hub, **folders}, entries, foreign)


@dataclass(frozen=True)
class TrajectoryNeed:
    """Trajectories that a run needs now, or when it is resumed.

    Args:
        run: Run that needs them.
        teacher: Settings of the run's teacher, as JSON values.
        identity: Identity of the weights of the run's base.
        is_running: True while a process trains the run.
    """

    run: Run
    teacher: Any
    identity: Any
    is_running: bool

    def is_for(self, facts: dict[str, Any]) -> bool:
        """Return True where the run may need a store; stores that differ only in their prompts all match."""
        return bool(facts["teacher"]) and (facts["teacher"], facts["identity"]) == (self.teacher, self.identity)


def trajectory_needs() -> list[TrajectoryNeed]:
    """Return the trajectories that unfinished and running runs need."""
    needs = []
    for run in (*all_runs(), *all_runs(study_runs_dir())):
        is_running = bool(holder(run.folder))
        if run.is_begun and (is_running or not (run.is_finished or run.has_diverged)):
            settings = run.raw_settings()
            needs.append(TrajectoryNeed(run, settings.get("teacher"), settings.get("base_identity"), is_running))
    return needs


def trajectories_at(path: Path) -> dict[str, Any]:
    """Return facts about a folder of trajectories, with every shard verified; empty for any other folder."""
    if not _is_store(path):
        return {}
    damaged = []
    for shard in _children(path):
        if _SHARD.fullmatch(shard.name):
            try:
                verify(shard)
            except DamagedError as error:
                damaged.append(f"{shard.name}: {error.damage}")
    return _store(path, trajectory_needs()).record() | {"damaged": damaged}


def _store(path: Path, needs: list[TrajectoryNeed]) -> Entry:
    """Return the entry of a store of trajectories. Reading counts as use: its lock file changes the folder's time."""
    shards = [shard for shard in _children(path) if _SHARD.fullmatch(shard.name)]
    manifests = [manifest for shard in shards if (manifest := try_manifest(shard))]
    about = manifests[0].about if manifests else {}
    teacher: dict[str, Any] = stated if isinstance(stated := about.get("teacher"), dict) else {}
    facts: dict[str, Any] = {
        "base": teacher.get("base"),
        "identity": about.get("base"),
        "made": sum(_rows(manifest) for manifest in manifests),
        "of": teacher.get("trajectories"),
        "teacher": teacher,
        "in_use": holder(path),
    }
    facts["needed_by"] = [str(need.run.folder) for need in needs if need.is_for(facts)]
    total_bytes, written = _measure(shards)
    return Entry(TRAJECTORIES, path, total_bytes, max(written, path.stat().st_mtime), facts, (path,))


def _rows(manifest: Manifest) -> int:
    rows = manifest.about.get("rows")
    if not isinstance(rows, list) or len(rows) not in (2, 3) or any(type(row) is not int for row in rows):
        return 0
    start, stop, step = [*rows, 1][:3]
    return max(0, -((start - stop) // step)) if step > 0 else 0


def _entry_of(kind: str, place: Path, paths: list[Path]) -> Entry:
    """Return one entry for several files or folders."""
    total_bytes, written = _measure(paths)
    return Entry(kind, place, total_bytes, written, {"count": len(paths)}, tuple(paths))


def _run(run: Run) -> Entry:
    written = run.raw_settings()
    base = written.get("base_name") or (base_of(run.lora) if run.has_lora else None)
    training = written.get("training")
    state = "finished" if run.is_finished else "diverged" if run.has_diverged else "unfinished"
    facts = {
        "name": run.folder.name,
        "base": base,
        "state": "at work" if holder(run.folder) else state,
        "iterations": run.iterations_saved,
        "of": training.get("iterations") if isinstance(training, dict) else None,
    }
    total_bytes, used = _measure([run.folder])
    return Entry(RUNS, run.folder, total_bytes, used, facts)


def _models() -> tuple[Path, list[Entry]]:
    """Return the folder of huggingface_hub, one entry for each model that rapm can distil, and one for all others."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import CacheNotFound

    entries, rest = [], []
    try:
        repos = scan_cache_dir(HF_HUB_CACHE).repos
    except (CacheNotFound, OSError, ValueError):  # the folder is missing, or is a file
        repos = frozenset()
    for repo in repos:
        files = {file.file_name: file.file_path for revision in repo.revisions for file in revision.files}
        pipeline = _pipeline(files["model_index.json"]) if "model_index.json" in files else None
        if pipeline in PIPELINES:
            facts = {"repo": repo.repo_id, "pipeline": pipeline}
            entries.append(Entry(MODELS, repo.repo_path, repo.size_on_disk, repo.last_accessed, facts))
        else:
            rest.append(repo)
    if rest:
        total_bytes, used = sum(repo.size_on_disk for repo in rest), max(repo.last_accessed for repo in rest)
        entries.append(Entry(OTHERS, Path(HF_HUB_CACHE), total_bytes, used, {"count": len(rest)}))
    return Path(HF_HUB_CACHE), entries


def _pipeline(path: Path) -> str | None:
    with contextlib.suppress(OSError, ValueError, RecursionError, AttributeError):
        return str(json.loads(path.read_text(encoding="utf-8")).get("_class_name"))
    return None


def _children(folder: Path) -> list[Path]:
    """Return the sorted content of a folder; empty for a link that is not followed, or an unreadable folder."""
    with contextlib.suppress(OSError):
        if _is_followed(folder):
            return sorted(folder.iterdir())
    return []


def _leftovers(place: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        if _is_followed(place):
            yield from leftovers(place)


def _is_followed(folder: Path) -> bool:
    """Return True for the cache folder, which may be a link, and for any folder that is not a link."""
    return folder == cache_dir() or not folder.is_symlink()


def _is_real(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_commit(path: Path) -> bool:
    return _is_real(path) and (path / MANIFEST).exists() and not is_marked(path)


def _is_store(path: Path) -> bool:
    """Return True for a store of trajectories that contains only files of rapm."""
    if not _is_real(path) or not _STORE.fullmatch(path.name):
        return False
    shards = [there for there in _children(path) if there.name not in (LOCK, HOLDER) and not is_marked(there)]
    return all(_is_real(there) and _SHARD.fullmatch(there.name) for there in shards)


def _measure(paths: list[Path]) -> tuple[int, float]:
    """Return the size of all files, and the time of the last write; files that vanish meanwhile are not counted."""
    total_bytes, newest = 0, 0.0
    for path in paths:
        inner = (os.path.join(place, name) for place, _, names in os.walk(path) for name in names)
        for file in inner if _is_real(path) else (path,):
            with contextlib.suppress(OSError):
                state = os.lstat(file)
                total_bytes, newest = total_bytes + state.st_size, max(newest, state.st_mtime)
    return total_bytes, newest
