"""Phase 1: compute and store the teacher's trajectories of all prompts."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from rapm_cli.bases import LoadedBase
from rapm_cli.bases.places import CACHE_FORMAT, trajectories_dir
from rapm_cli.core.common.errors import DamagedError, OutOfMemoryError, Stopped, require_shortage
from rapm_cli.core.common.progress import Pace, Reporter
from rapm_cli.core.method.config import TeacherConfig, to_json
from rapm_cli.core.method.sizes import largest
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

PROMPTS_AHEAD = 2048  # prompts encoded at a time: 650 MB of SDXL's 16-bit conditioning


def collect_trajectories(
    base: LoadedBase, settings: Settings, shard_size: int, *, is_strict: bool, reporter: Reporter, world: World = ALONE
) -> StoredTrajectories:
    """Return the trajectories of a run's prompts; those that are not stored are computed.

    Args:
        base: Loaded base model.
        settings: Settings of the run.
        shard_size: Number of trajectories in a file.
        is_strict: Raise at a damaged shard instead of computing it again.
        reporter: Receives progress.
        world: The processes that share the work; this is the first.

    Raises:
        DamagedError: A shard is damaged, and `is_strict` is true.
        DiskError: There is too little space.
        Stopped: A signal came; the shards computed so far are kept.
    """
    store = trajectory_store(settings, shard_size)
    found = store.missing() if store.kept() == store.count else None
    if found is None or found[0]:
        with locked(store.folder, reporter, "Ctrl-C leaves", is_patient=True):  # runs with one teacher share it
            found = store.missing()
            return _collect(base, settings, store, found, world, reporter, is_strict=is_strict)
    return _collect(base, settings, store, found, world, reporter, is_strict=is_strict)  # perhaps another user's


def _collect(
    base: LoadedBase,
    settings: Settings,
    store: TrajectoryStore,
    found: tuple[list[range], list[DamagedError]],
    world: World,
    reporter: Reporter,
    *,
    is_strict: bool,
) -> StoredTrajectories:
    """Compute what was found to be missing or damaged, and return all trajectories."""
    missing, damage = found
    if damage and is_strict:
        raise damage[0]
    for error in damage:
        reporter.warn(f"{error.message}; making its trajectories again")
    to_do, teacher = sum(map(len, missing)), settings.teacher
    if to_do < store.count:
        reporter.say(f"{store.count - to_do} of {store.count} trajectories found in {store.folder}")
    if to_do:
        require_room(store.folder, to_do * _bytes_each(base, settings), f"storing {to_do} trajectories")
        steps = teacher.num_slots * teacher.fine_steps
        reporter.say(f"computing {to_do} trajectories of {steps} teacher steps, {len(missing[0])} at a time")
    world.broadcast(json.dumps([rows.start for rows in missing]).encode())
    return _compute_all(base, settings, store, missing, world, reporter)


def collect_share(
    world: World, base: LoadedBase, settings: Settings, shard_size: int, reporter: Reporter
) -> StoredTrajectories:
    """Compute this process's share of the shards that the first process found missing; return all trajectories.

    Arguments as in `collect_trajectories`, which the first process calls.
    """
    store = trajectory_store(settings, shard_size)
    starts = set(json.loads(world.broadcast()))
    missing = [rows for rows in store.shards if rows.start in starts]
    return _compute_all(base, settings, store, missing, world, reporter)


def _compute_all(
    base: LoadedBase,
    settings: Settings,
    store: TrajectoryStore,
    missing: list[range],
    world: World,
    reporter: Reporter,
) -> StoredTrajectories:
    """Compute the missing shards, this process its share, and return all trajectories.

    Raises:
        Stopped: A signal came to a process; each has finished its shard.
    """
    words = f"these {len(missing[0])} trajectories" if missing else "these trajectories"
    pace = Pace()
    with signals.deferred(words, pace.seconds_left):
        if missing:
            _compute_share(base, settings, store, missing, world, reporter, pace)
        number = world.barrier(signals.pending)
    if number is not None:
        raise Stopped(number, f"{store.kept()} of {store.count} trajectories are kept")
    return store.stored()


def _compute_share(
    base: LoadedBase,
    settings: Settings,
    store: TrajectoryStore,
    missing: list[range],
    world: World,
    reporter: Reporter,
    pace: Pace,
) -> None:
    """Compute this process's share; the progress bar assumes that all processes are equally fast."""
    to_do, mine = sum(map(len, missing)), missing[world.rank :: world.size]
    conds = _conditionings(base, settings.prompts, mine, store.shard_size)
    with reporter.bar("trajectories", store.count, "trajectory", base.device, done=store.count - to_do) as bar:
        for k, (rows, cond) in zip(range(0, len(missing), world.size), conds, strict=False):
            pace.begin(settings.teacher.num_slots * settings.teacher.fine_steps)
            walk = partial(_rollout_in_memory, pace=pace, of=len(rows), on_step=lambda note: bar.advance(0, note))
            _make(base, settings, store, rows, cond, reporter, walk)
            pace.end()
            bar.advance(sum(map(len, missing[k : k + world.size])))
            if world.request_stop(signals.pending()) is not None:
                break


def trajectory_store(settings: Settings, shard_size: int) -> TrajectoryStore:
    """Return the store of a run's trajectories, which need not exist yet.

    Args:
        settings: Settings of the run.
        shard_size: Number of trajectories in a file.
    """
    prompts = list(settings.prompts)
    prompts_hash = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()
    key = settings.teacher.fingerprint(prompts_hash, settings.base_identity, str(shard_size), f"format {CACHE_FORMAT}")
    about = {"teacher": to_json(settings.teacher), "base": settings.base_identity}
    return TrajectoryStore(trajectories_dir() / key, len(prompts), shard_size, about, settings.teacher.stride)


def _conditionings(
    base: LoadedBase, prompts: Sequence[str], shards: list[range], shard_size: int
) -> Iterator[tuple[range, Conditioning]]:
    """Yield each shard with its prompts' conditioning; the text encoders read many shards at a time."""
    for group in _groups(shards, shard_size):
        # A shard's prompts are encoded together, as when only this shard is missing, so that the bits are the same.
        cond, start = base.encode([prompts[k] for rows in group for k in rows], at_once=shard_size), 0
        for rows in group:
            yield rows, cond[start : start + len(rows)]
            start += len(rows)


def _groups(shards: list[range], shard_size: int) -> Iterator[list[range]]:
    """Yield groups of shards for the text encoders, in which only the last may hold fewer than `shard_size`."""
    group: list[range] = []
    for rows in shards:
        group.append(rows)
        if len(rows) < shard_size or len(group) * shard_size >= PROMPTS_AHEAD:
            yield group
            group = []
    if group:
        yield group


def _make(
    base: LoadedBase,
    settings: Settings,
    store: TrajectoryStore,
    rows: range,
    cond: Conditioning,
    reporter: Reporter,
    walk: Callable[[LoadedBase, TeacherConfig, Conditioning, range], Trajectories],
) -> None:
    made = walk(base, settings.teacher, base.sized(cond, settings.teacher.size_of(rows.start)), rows)
    size = len(rows) * _bytes_each(base, settings)
    if not made.is_finite:
        reporter.warn(f"trajectories {rows.start} to {rows.stop - 1} are not all finite; training will skip those")
    kept = "those before are kept"
    with_retries(lambda: store.write(rows, made), store.folder, size, reporter, kept, "run the same command again")


def _bytes_each(base: LoadedBase, settings: Settings) -> int:
    shape = base.latent_shape_of(largest(settings.teacher.sizes))
    return bytes_per_trajectory(shape, base.unconditional, settings.teacher.num_slots)


def bytes_per_trajectory(latent_shape: tuple[int, int, int], row: Conditioning, num_slots: int) -> int:
    """Return the bytes of a stored trajectory.

    Args:
        latent_shape: (C, h, w) of a latent.
        row: One row of conditioning.
        num_slots: Number of slots N.
    """
    latents = (2 * num_slots + 1) * math.prod(latent_shape)
    return 4 * latents + sum(part.nbytes for part in row.parts if part is not None)


def _rollout_in_memory(
    base: LoadedBase,
    config: TeacherConfig,
    cond: Conditioning,
    rows: range,
    *,
    pace: Pace,
    of: int,
    on_step: Callable[[str], object],
) -> Trajectories:
    """Compute the trajectories of some rows; if memory runs out, in two halves.

    Args:
        base: Loaded base model.
        config: Settings of the trajectories.
        cond: Conditioning of the rows.
        rows: Indices of the trajectories.
        pace: Counts the steps of the shard. A step of fewer rows counts as a share of one.
        of: Number of trajectories of the shard.
        on_step: Receives the number of steps done, in words.
    """
    kept = pace.done
    try:
        return _rollout(base, config, cond, rows, lambda: on_step(f"step {pace.advance(len(rows) / of)}"))
    except RuntimeError as error:
        failure = require_shortage(error)
    if len(rows) == 1:
        raise OutOfMemoryError(
            f"the teacher of {config.base} is out of memory with a single prompt", "close other programs on the device"
        ) from failure
    free_memory(base.device)
    pace.lose(kept)
    half = len(rows) // 2
    parts = ((cond[:half], rows[:half]), (cond[half:], rows[half:]))
    return Trajectories.cat(
        [_rollout_in_memory(base, config, *part, pace=pace, of=of, on_step=on_step) for part in parts]
    )


def _rollout(
    base: LoadedBase, config: TeacherConfig, cond: Conditioning, rows: range, on_step: Callable[[], object]
) -> Trajectories:
    shape = base.latent_shape_of(config.size_of(rows.start))
    noise = initial_noise(config.seed, "trajectory", list(rows), shape).to(base.device)
    made = rollout(
        base.backbone.teacher,
        noise,
        cond.to(base.device),
        base.unconditional,
        num_slots=config.num_slots,
        fine_steps=config.fine_steps,
        delta=config.delta,
        guidance_scale=config.guidance_scale,
        on_step=on_step,
    )
    return made.to(torch.device("cpu"))
