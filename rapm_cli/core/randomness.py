"""Randomness as a function of what it is for, so that resuming and batching need no saved state."""

import hashlib

import torch


def generator_for(*key: int | str) -> torch.Generator:
    """A CPU generator that depends on its key alone, such as `(seed, "rollout", index)`."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
