"""Stub until the real one lands."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rapm_cli.core.watch import Watcher


@dataclass(frozen=True)
class Snapshot:
    repo: str
    commit: str
    folder: Path
    files: tuple[str, ...]


def fetch(repo: str, revision: str | None, choose: Callable[[list[str]], list[str]], watcher: Watcher) -> Snapshot:
    raise NotImplementedError


def pipeline_files(names: list[str]) -> list[str]:
    return names


def config_files(names: list[str]) -> list[str]:
    return names
