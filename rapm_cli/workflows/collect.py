"""Phase 1: prompts to stored teacher trajectories."""

import hashlib
import json
import math
from dataclasses import asdict

import torch

from rapm_cli.bases import LoadedBase
from rapm_cli.bases.places import CACHE_FORMAT, cache_dir
from rapm_cli.core.config import TeacherConfig
from rapm_cli.core.room import require_room
from rapm_cli.core.store import StoredTrajectories, TrajectoryStore
from rapm_cli.core.trajectories import Trajectories, initial_noise, rollout
from rapm_cli.core.watch import Watcher
from rapm_cli.workflows import stop
from rapm_cli.workflows.disk import with_retries
from rapm_cli.workflows.lock import locked
from rapm_cli.workflows.settings import Settings


def collect(
    base: LoadedBase, settings: Settings, shard_size: int, *, is_strict: bool, watcher: Watcher
) -> StoredTrajectories:
    """The trajectories of a run's prompts, after making those that are not stored.

    Args:
        base: Loaded base model.
        settings: Of the run.
        shard_size: Prompts that the teacher draws at once.
        is_strict: Stop at a damaged shard instead of making it again.
        watcher: Sees the bar.

    Raises:
        DamagedError: A shard is damaged and `is_strict`.
        DiskError: There is no room.
        Stopped: A signal came; the shards that were made are kept.
    """
    store = store_of(settings, shard_size)
    with locked(store.folder, watcher, "Ctrl-C leaves", is_patient=True):  # runs with one teacher share it
        return _collect(base, settings, store, is_strict, watcher)


def _collect(
    base: LoadedBase, settings: Settings, store: TrajectoryStore, is_strict: bool, watcher: Watcher
) -> StoredTrajectories:
    missing, damage = store.missing()
    if damage and is_strict:
        raise damage[0]
    for error in damage:
        watcher.warn(f"{error.message}; making its trajectories again")
    count, to_do = store.count, sum(map(len, missing))
    if to_do < count:
        watcher.say(f"{count - to_do} of {count} trajectories found in {store.folder}")
    size = _bytes_of_one(base, settings.teacher)
    require_room(store.folder, to_do * size, f"storing {to_do} trajectories")
    if missing:
        bar = watcher.bar("trajectories", count, "trajectory", base.backbone.device, done=count - to_do)
        with bar as shown, stop.patient("these trajectories"):
            for rows in missing:
                _make(base, settings, store, rows, size * len(rows), watcher)
                shown.advance(len(rows))
                to_do -= len(rows)
                stop.check(f"{count - to_do} of {count} trajectories are kept")
    return store.stored()


def store_of(settings: Settings, shard_size: int) -> TrajectoryStore:
    """Where the trajectories of a run are, or will be."""
    prompts = list(settings.prompts)
    prompts_hash = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()
    key = settings.teacher.fingerprint(prompts_hash, settings.base_identity, str(shard_size), f"format {CACHE_FORMAT}")
    about = {"teacher": asdict(settings.teacher), "base": settings.base_identity}
    return TrajectoryStore(cache_dir() / "trajectories" / key, len(prompts), shard_size, about)


def _make(
    base: LoadedBase, settings: Settings, store: TrajectoryStore, rows: range, size: int, watcher: Watcher
) -> None:
    made = _roll_out(base, settings.teacher, list(settings.prompts), rows)
    if not made.is_finite:
        watcher.warn(f"trajectories {rows.start} to {rows.stop - 1} are not all finite; training will skip those")
    kept = f"{rows.start} trajectories are kept"
    with_retries(lambda: store.write(rows, made), store.folder, size, watcher, kept, "free space, and try again")


def _bytes_of_one(base: LoadedBase, teacher: TeacherConfig) -> int:
    latents = (2 * teacher.num_slots + 1) * math.prod(base.latent_shape)
    return 4 * (latents + sum(part.numel() for part in base.unconditional.parts if part is not None))


def _roll_out(base: LoadedBase, config: TeacherConfig, prompts: list[str], rows: range) -> Trajectories:
    device = base.backbone.device
    noise = initial_noise(config.seed, "trajectory", list(rows), base.latent_shape).to(device)
    made = rollout(
        base.backbone,
        noise,
        base.encode([prompts[k] for k in rows]),
        base.unconditional,
        num_slots=config.num_slots,
        fine_steps=config.fine_steps,
        delta=config.delta,
        guidance_scale=config.guidance_scale,
    )
    return made.to(torch.device("cpu"))
