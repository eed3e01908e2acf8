"""Reference statistics: moments of images under one network, with a record of how they were computed."""

import json
import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rapm_cli.core.common.errors import InputError
from rapm_cli.core.storage.files import file_sha256, regular_file
from rapm_cli.formats.header import read_header
from rapm_cli.formats.safetensors_writer import write_tensors
from rapm_cli.metrics.frechet import frechet_distance
from rapm_cli.metrics.moments import Moments

KEY, FORMAT = "rapm_statistics", 1
WORDS = ("extractor", "preparation", "source", "files")  # texts on how they were computed
MAX_WIDTH = 8192  # largest number of values in a feature
UNREADABLE = (
    *(OSError, KeyError, ValueError, TypeError, EOFError, RecursionError),
    *(zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError),  # the last three come from members of a zip
)
MAX_HEADER = 10_000  # largest header of an array in another project's file, in bytes
REMEDY = "make them anew: rapm eval --save-reference FILE"


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of one set of images under one network.

    Args:
        moments: Mean and covariance of the features, float64.
        extractor: Identity of the network; None if the file does not say it.
        preparation: Description of the images' preparation; None if the file does not say it.
        source: Description of the images.
        files: sha256 over the names and bytes of all images; for another project's file, the sha256 of the file.
        features: (N, D) float32 features; None if they were not kept.
    """

    moments: Moments
    extractor: str | None
    preparation: str | None
    source: str
    files: str | None = None
    features: Tensor | None = None

    @property
    def description(self) -> str:
        """Text on how the statistics were computed."""
        made = f"{self.extractor or 'of an unknown network'}; {self.preparation or 'of unknown preparation'}"
        count = f"{self.moments.count:,}" if self.moments.count else "an unknown number of"
        return f"{count} images, {made}"


def require_same(theirs: Statistics, extractor: str, width: int, preparation: str) -> None:
    """Check that features can be compared with statistics.

    Args:
        theirs: The statistics.
        extractor: Identity of the network that computes the features.
        width: Number of values in a feature.
        preparation: Description of the images' preparation.

    Raises:
        InputError: The statistics were computed in another way.
    """
    pairs = ((extractor, theirs.extractor), (preparation, theirs.preparation))
    their_width = len(theirs.moments.mean)
    if any(recorded is not None and ours != recorded for ours, recorded in pairs) or width != their_width:
        raise InputError(
            f"the statistics of {theirs.source} were made differently ({theirs.description}, {their_width} features) "
            f"from the samples' features ({extractor}; {preparation}, {width} features) and cannot be compared",
            f"give images instead of statistics, or {REMEDY}",
        )


def write_statistics(path: Path, made: Statistics, versions: dict[str, str]) -> None:
    """Write a file in rapm's own format, whole or not at all.

    Args:
        path: File to write; its name ends in `.safetensors`.
        made: Statistics to write.
        versions: Library versions to record.

    Raises:
        DiskError: The file cannot be written.
    """
    width = len(made.moments.mean)
    rows, columns = torch.triu_indices(width, width)
    tensors = {"mean": made.moments.mean, "covariance": made.moments.covariance[rows, columns]}
    if made.features is not None:
        tensors["features"] = made.features
    about = {"format": FORMAT, "count": made.moments.count, "versions": versions}
    about |= {name: getattr(made, name) for name in WORDS}
    write_tensors(path, tensors, {KEY: json.dumps(about)})


def read_statistics(path: Path) -> Statistics:
    """Return the statistics in a file of rapm, or in another project's `.npz` with `mu` and `sigma`.

    No pickle is opened.

    Raises:
        InputError: The file is neither of these, or holds no mean and covariance.
    """
    regular_file(path, REMEDY)
    try:
        made = _read_npz(path) if path.suffix == ".npz" else _read_own(path)
    except InputError as error:
        raise InputError(error.message, REMEDY) from error
    except UNREADABLE as error:
        reason = f": {error}" if type(error) is ValueError else ""
        raise InputError(f"{path} holds no statistics that rapm reads{reason}", REMEDY) from error
    _check(path, made)
    return made


def _read_own(path: Path) -> Statistics:
    from safetensors.torch import load_file

    header = read_header(path)
    about = json.loads(header.metadata[KEY])
    width = header.tensors["mean"].count
    if about["format"] != FORMAT or header.tensors["covariance"].shape != (width * (width + 1) // 2,):
        raise ValueError("it has another format")
    if width > MAX_WIDTH:
        raise ValueError(f"it has {width:,} features")
    words = {name: about[name] for name in WORDS}
    if not all(isinstance(word, str | None) for word in words.values()):
        raise ValueError("it does not say how it was made")
    tensors = load_file(path)
    rows, columns = torch.triu_indices(width, width)
    covariance = torch.empty(width, width, dtype=torch.float64)
    covariance[rows, columns] = covariance[columns, rows] = tensors["covariance"].double()
    moments = Moments(tensors["mean"].double(), covariance, int(about["count"]))
    return Statistics(moments, features=tensors.get("features"), **words)


def _read_npz(path: Path) -> Statistics:
    """Return the statistics in another project's file, which says neither the number of images nor their origin."""
    with zipfile.ZipFile(path) as archive:
        mean, covariance = (torch.from_numpy(_array(archive, f"{name}.npy")) for name in ("mu", "sigma"))
    source = f"the file {path.name}"
    return Statistics(Moments(mean, covariance, 0), None, None, source, file_sha256(path))


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[np.float64]:
    """Return an array of floating point; its shape is checked before memory is allocated."""
    from numpy.lib import format as npy

    with archive.open(name) as file:
        read_head = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(file)]
        shape, is_fortran, dtype = read_head(file, max_header_size=MAX_HEADER)
        if dtype.kind != "f" or not 1 <= len(shape) <= 2 or not all(1 <= size <= MAX_WIDTH for size in shape):
            raise ValueError(f"{name} has the shape {shape} and the type {dtype}")
        data = file.read(math.prod(shape) * dtype.itemsize)
    values = np.frombuffer(data, dtype).reshape(shape, order="F" if is_fortran else "C")
    return values.astype(np.float64)


def _check(path: Path, made: Statistics) -> None:
    mean, covariance, features = made.moments.mean, made.moments.covariance, made.features
    is_finite = bool(torch.isfinite(mean).all() and torch.isfinite(covariance).all())
    if mean.dim() != 1 or covariance.shape != (*mean.shape, *mean.shape) or not is_finite:
        raise InputError(f"{path} has no finite mean and covariance of one width", REMEDY)
    try:
        frechet_distance(made.moments, made.moments)
    except ValueError as error:
        raise InputError(f"{path} has {error}", REMEDY) from error
    if features is not None and features.shape != (made.moments.count, len(mean)):
        raise InputError(f"{path} has features of another shape than its moments", REMEDY)
