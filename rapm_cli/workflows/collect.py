"""Phase 1: prompts to stored teacher trajectories."""

import hashlib
import json
from dataclasses import asdict

import torch

from rapm_cli.bases import Base, LoadedBase
from rapm_cli.core.config import TeacherConfig
from rapm_cli.core.errors import ConfigError
from rapm_cli.core.store import TrajectoryStore
from rapm_cli.core.trajectories import Trajectories, initial_noise, rollout
from rapm_cli.workflows.places import cache_dir
from rapm_cli.workflows.watch import Watcher


def training_prompts(base: Base, config: TeacherConfig, given: list[str] | None) -> list[str]:
    """As many prompts as the distillation wants: the user's, repeated if they are few, or the base's own.

    Raises:
        ConfigError: The base has none of its own and the user gave none.
    """
    if given:
        return [given[k % len(given)] for k in range(config.trajectories)]
    if base.training_prompts is None:
        raise ConfigError(f"base {base.name} has no prompts of its own yet", "give a text file: --prompts FILE")
    return base.training_prompts(config.trajectories, config.seed)


def collect(
    base: LoadedBase, config: TeacherConfig, prompts: list[str], shard_size: int, identity: str, watcher: Watcher
) -> Trajectories:
    """Load the trajectories of these prompts, after making those that are not stored.

    Args:
        base: Loaded base model.
        config: What identifies the trajectories.
        prompts: `config.trajectories` of them.
        shard_size: Prompts that the teacher draws at once.
        identity: What identifies the base's weights.
        watcher: Sees the bar.
    """
    prompts_hash = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()
    key = config.fingerprint(prompts_hash, identity, str(shard_size))
    about = {"teacher": asdict(config), "base": identity, "prompts": prompts}
    store = TrajectoryStore(cache_dir() / "trajectories" / key, len(prompts), shard_size, about)
    missing = store.missing()
    device = base.backbone.device
    kept = len(prompts) - sum(map(len, missing))
    if kept:
        watcher.say(f"{kept} of {len(prompts)} trajectories found in {store.folder}")
    if missing:
        with watcher.bar("trajectories", sum(map(len, missing)), "trajectory", device) as bar:
            for rows in missing:
                store.write(rows, _roll_out(base, config, prompts, rows))
                bar.advance(len(rows))
    return store.load()


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
