"""Real pictures to reference statistics: of a folder, of COCO, or from a file of statistics."""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from rapm_cli.bases.places import galleries_dir
from rapm_cli.core.common.errors import ConfigError, InputError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.storage.files import file_sha256
from rapm_cli.evaluate.coco import coco_pairs
from rapm_cli.extractors import Extractor
from rapm_cli.extractors.preparation import Picture, Preparation, pictures_in, read_picture
from rapm_cli.extractors.statistics import Statistics, read_statistics, write_statistics
from rapm_cli.metrics.frechet import RunningMoments
from rapm_cli.runs import signals
from rapm_cli.runs.versions import versions

COCO = "coco:"
STATISTICS = (".safetensors", ".npz")


@dataclass(frozen=True)
class Reference:
    """Real pictures, or statistics of some.

    Args:
        source: What they are, in words.
        paths: Files of pictures.
        statistics: In place of pictures.
    """

    source: str
    paths: tuple[Path, ...] = ()
    statistics: Statistics | None = None

    @property
    def count(self) -> int:
        """Of pictures; 0 where statistics do not say it."""
        return self.statistics.moments.count if self.statistics else len(self.paths)


def find_reference(given: str, count: int | None = None) -> Reference:
    """What `--reference` means.

    Args:
        given: A folder, `coco:DIR`, or a file of statistics.
        count: Pictures of COCO; None takes every one in the folder.

    Raises:
        ConfigError: It is none of these.
        InputError: What it names is not what it should be.
    """
    if given.startswith(COCO):
        folder = Path(given.removeprefix(COCO))
        if count is None:
            return Reference(f"all of {folder}/val2014", tuple(pictures_in(folder / "val2014")))
        paths = tuple(pair.path for pair in coco_pairs(folder, count))
        return Reference(f"{count:,} captioned images of {folder}", paths)
    path = Path(given)
    if path.is_dir():
        return Reference(f"folder {path}", tuple(pictures_in(path)))
    if path.suffix in STATISTICS:
        return Reference(f"file {path}", statistics=read_statistics(path))
    raise ConfigError(f"--reference {given} is no folder of pictures", "give a folder, coco:DIR or statistics of rapm")


def statistics_of(
    reference: Reference, preparation: Preparation, extractor: Extractor, reporter: Reporter, *, keep: bool
) -> Statistics:
    """What one network sees in real pictures; it is remembered for as long as the files do not change.

    Args:
        reference: With pictures.
        preparation: Of each.
        extractor: The network.
        reporter: Sees the bar.
        keep: Keep the features too, which KID needs.

    Raises:
        InputError: A file is no picture, or there is only one.
        Stopped: A signal came.
    """
    if len(reference.paths) < 2:
        raise InputError(f"{reference.source} is one picture, which has no statistics", "give a folder of more")
    place = _place(reference, preparation, extractor, keep)
    if place.exists():
        with contextlib.suppress(InputError):  # a damaged one is made again
            return replace(read_statistics(place), source=reference.source)
    made = _looked(reference, preparation, extractor, reporter, keep=keep)
    write_statistics(place, made, versions())
    return made


def _place(reference: Reference, preparation: Preparation, extractor: Extractor, keep: bool) -> Path:
    """Where the statistics of these very files are remembered, by name, size and time."""
    states = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in reference.paths]
    key = json.dumps([states, preparation.spec, extractor.identity, keep])
    return galleries_dir() / hashlib.sha256(key.encode()).hexdigest()[:24] / "statistics.safetensors"


def _looked(
    reference: Reference, preparation: Preparation, extractor: Extractor, reporter: Reporter, *, keep: bool
) -> Statistics:
    readers = [partial(_prepared, path, preparation) for path in reference.paths]
    running, kept = RunningMoments(extractor.width), []
    bar = reporter.bar(f"reading {reference.source}", len(readers), "picture", extractor.device)
    with bar as shown, signals.deferred("these pictures"):
        for features in extractor.features(readers):
            running.add(features)
            kept += [features] if keep else []
            shown.advance(len(features))
            signals.check("nothing is lost", "give the same command again")
    return Statistics(
        moments=running.result(),
        extractor=extractor.identity,
        preparation=preparation.spec,
        source=reference.source,
        files=files_digest(reference.paths),
        features=torch.cat(kept) if keep else None,
    )


def files_digest(paths: Sequence[Path]) -> str:
    """The sha256 over the names and contents of files, in their order."""
    lines = "".join(f"{file_sha256(path)}  {path.name}\n" for path in paths)
    return hashlib.sha256(lines.encode()).hexdigest()


def _prepared(path: Path, preparation: Preparation) -> Picture:
    return preparation(read_picture(path))
