"""Phase 1: prompts to stored teacher trajectories."""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import torch

from rapm_cli.bases import LoadedBase
from rapm_cli.bases.places import CACHE_FORMAT, trajectories_dir
from rapm_cli.core.common.errors import OutOfMemoryError, Stopped, require_shortage
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.method.config import TeacherConfig
from rapm_cli.core.method.store import StoredTrajectories, TrajectoryStore
from rapm_cli.core.method.trajectories import Trajectories, initial_noise, rollout
from rapm_cli.core.network.backbone import Conditioning
from rapm_cli.core.storage.room import require_room
from rapm_cli.core.training.distributed import ALONE, World
from rapm_cli.distill.memory_plan import free_memory
from rapm_cli.runs import signals
from rapm_cli.runs.lock import locked
from rapm_cli.runs.retry import with_retries
from rapm_cli.runs.settings import Settings

PROMPTS_AHEAD = 2048  # that the text encoders read at a time: 650 MB of SDXL's 16-bit conditioning


def collect(
    base: LoadedBase, settings: Settings, shard_size: int, *, is_strict: bool, reporter: Reporter, world: World = ALONE
) -> StoredTrajectories:
    """The trajectories of a run's prompts, after making those that are not stored.

    Args:
        base: Loaded base model.
        settings: Of the run.
        shard_size: Trajectories that are stored together.
        is_strict: Stop at a damaged shard instead of making it again.
        reporter: Sees the bar.
        world: The processes that share the work, of which this is the first.

    Raises:
        DamagedError: A shard is damaged and `is_strict`.
        DiskError: There is no room.
        Stopped: A signal came; the shards that were made are kept.
    """
    store = store_of(settings, shard_size)
    with locked(store.folder, reporter, "Ctrl-C leaves", is_patient=True):  # runs with one teacher share it
        missing, damage = store.missing()
        if damage and is_strict:
            raise damage[0]
        for error in damage:
            reporter.warn(f"{error.message}; making its trajectories again")
        to_do = sum(map(len, missing))
        if to_do < store.count:
            reporter.say(f"{store.count - to_do} of {store.count} trajectories found in {store.folder}")
        require_room(store.folder, to_do * _bytes_of_one(base, settings), f"storing {to_do} trajectories")
        world.broadcast(json.dumps([rows.start for rows in missing]).encode())
        return _make_all(base, settings, store, missing, world, reporter)


def help_collect(
    world: World, base: LoadedBase, settings: Settings, shard_size: int, reporter: Reporter
) -> StoredTrajectories:
    """Make this process's share of what the first one, in `collect`, has found missing; then all trajectories."""
    store = store_of(settings, shard_size)
    starts = set(json.loads(world.broadcast()))
    missing = [rows for rows in store.shards if rows.start in starts]
    return _make_all(base, settings, store, missing, world, reporter)


def _make_all(
    base: LoadedBase,
    settings: Settings,
    store: TrajectoryStore,
    missing: list[range],
    world: World,
    reporter: Reporter,
) -> StoredTrajectories:
    """All trajectories, after making the missing shards, of several processes each every so many.

    Raises:
        Stopped: A signal came to any of them; each has ended its batch.
    """
    words = f"these {len(missing[0])} trajectories" if missing else "these trajectories"
    with signals.deferred(words):
        if missing:
            _make_mine(base, settings, store, missing, world, reporter)
        number = world.barrier(signals.pending)
    if number is not None:
        raise Stopped(number, f"{store.kept()} of {store.count} trajectories are kept")
    return store.stored()


def _make_mine(
    base: LoadedBase,
    settings: Settings,
    store: TrajectoryStore,
    missing: list[range],
    world: World,
    reporter: Reporter,
) -> None:
    """Make this process's share; the bar supposes that all are equally fast."""
    to_do, mine = sum(map(len, missing)), missing[world.rank :: world.size]
    conds = _conditionings(base, settings.prompts, mine, store.shard_size)
    with reporter.bar("trajectories", store.count, "trajectory", base.device, done=store.count - to_do) as shown:
        for k, (rows, cond) in zip(range(0, len(missing), world.size), conds, strict=False):
            _make(base, settings, store, rows, cond, reporter)
            shown.advance(sum(map(len, missing[k : k + world.size])))
            if world.request_stop(signals.pending()) is not None:
                break


def store_of(settings: Settings, shard_size: int) -> TrajectoryStore:
    """Where the trajectories of a run are, or will be."""
    prompts = list(settings.prompts)
    prompts_hash = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()
    key = settings.teacher.fingerprint(prompts_hash, settings.base_identity, str(shard_size), f"format {CACHE_FORMAT}")
    about = {"teacher": asdict(settings.teacher), "base": settings.base_identity}
    return TrajectoryStore(trajectories_dir() / key, len(prompts), shard_size, about)


def _conditionings(
    base: LoadedBase, prompts: Sequence[str], shards: list[range], shard_size: int
) -> Iterator[tuple[range, Conditioning]]:
    """Every shard with its prompts' conditioning; the text encoders read many shards' prompts at a time, then go."""
    size = max(1, PROMPTS_AHEAD // shard_size)
    for group in (shards[k : k + size] for k in range(0, len(shards), size)):
        # A shard's prompts are read together, as they will be where only this shard is missing: for the same bits.
        cond, start = base.encode([prompts[k] for rows in group for k in rows], at_once=shard_size), 0
        for rows in group:
            yield rows, cond[start : start + len(rows)]
            start += len(rows)


def _make(
    base: LoadedBase,
    settings: Settings,
    store: TrajectoryStore,
    rows: range,
    cond: Conditioning,
    reporter: Reporter,
) -> None:
    made = _roll_out_that_fits(base, settings.teacher, cond, rows)
    size = len(rows) * _bytes_of_one(base, settings)
    if not made.is_finite:
        reporter.warn(f"trajectories {rows.start} to {rows.stop - 1} are not all finite; training will skip those")
    kept = "those before are kept"
    with_retries(lambda: store.write(rows, made), store.folder, size, reporter, kept, "free space, and try again")


def _bytes_of_one(base: LoadedBase, settings: Settings) -> int:
    return bytes_of_one(base.latent_shape, base.unconditional, settings.teacher.num_slots)


def bytes_of_one(latent_shape: tuple[int, int, int], row: Conditioning, num_slots: int) -> int:
    """Size of a stored trajectory.

    Args:
        latent_shape: (C, h, w).
        row: One row of conditioning.
        num_slots: N.
    """
    latents = (2 * num_slots + 1) * math.prod(latent_shape)
    return 4 * latents + sum(part.nbytes for part in row.parts if part is not None)


def _roll_out_that_fits(base: LoadedBase, config: TeacherConfig, cond: Conditioning, rows: range) -> Trajectories:
    """The trajectories of some rows; where memory runs out, by halves."""
    try:
        return _roll_out(base, config, cond, rows)
    except RuntimeError as error:
        failure = require_shortage(error)
    if len(rows) == 1:
        raise OutOfMemoryError(
            f"the teacher of {config.base} is out of memory with a single prompt", "close other programs on the device"
        ) from failure
    free_memory(base.device)
    half = len(rows) // 2
    parts = ((cond[:half], rows[:half]), (cond[half:], rows[half:]))
    return Trajectories.cat([_roll_out_that_fits(base, config, *part) for part in parts])


def _roll_out(base: LoadedBase, config: TeacherConfig, cond: Conditioning, rows: range) -> Trajectories:
    noise = initial_noise(config.seed, "trajectory", list(rows), base.latent_shape).to(base.device)
    made = rollout(
        base.backbone,
        noise,
        cond.to(base.device),
        base.unconditional,
        num_slots=config.num_slots,
        fine_steps=config.fine_steps,
        delta=config.delta,
        guidance_scale=config.guidance_scale,
    )
    return made.to(torch.device("cpu"))
