"""Reference statistics: what a set of pictures looks like to one network, and exactly how they were made."""

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
WORDS = ("extractor", "preparation", "source", "files")  # what is said of how they were made
MAX_WIDTH = 8192  # of features
UNREADABLE = (
    *(OSError, KeyError, ValueError, TypeError, EOFError, RecursionError),
    *(zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError),  # the last three of members of a zip
)
MAX_HEADER = 10_000  # bytes of an array's header in a peer's file
REMEDY = "make them anew: rapm eval --save-reference FILE"


@dataclass(frozen=True)
class Statistics:
    """Of one set of pictures, for one network.

    Args:
        moments: Mean and covariance of the features, float64.
        extractor: The network's identity; None where the file does not say.
        preparation: What was done to every picture before; None where the file does not say.
        source: What the pictures were, in words.
        files: sha256 over the names and bytes of all pictures; of a peer's file, of the file.
        features: (N, D) float32, where they were kept.
    """

    moments: Moments
    extractor: str | None
    preparation: str | None
    source: str
    files: str | None = None
    features: Tensor | None = None

    @property
    def description(self) -> str:
        """How they were made."""
        made = f"{self.extractor or 'of an unknown network'}; {self.preparation or 'of unknown preparation'}"
        count = f"{self.moments.count:,}" if self.moments.count else "an unknown number of"
        return f"{count} pictures, {made}"


def require_same(theirs: Statistics, extractor: str, width: int, preparation: str) -> None:
    """See that features of a network and of pictures so prepared can be compared with statistics.

    Args:
        theirs: The statistics.
        extractor: The network's identity.
        width: Of its features.
        preparation: Of the pictures.

    Raises:
        InputError: The statistics were made in another way.
    """
    pairs = ((extractor, theirs.extractor), (preparation, theirs.preparation))
    their_width = len(theirs.moments.mean)
    if any(said is not None and ours != said for ours, said in pairs) or width != their_width:
        raise InputError(
            f"the statistics of {theirs.source} were made differently ({theirs.description}, {their_width} features) "
            f"from what is compared with them ({extractor}; {preparation}, {width} features): a distance "
            "between them would mean nothing",
            f"give pictures instead of statistics, or {REMEDY}",
        )


def write_statistics(path: Path, made: Statistics, versions: dict[str, str]) -> None:
    """Write a file of ours, whole or not at all.

    Args:
        path: Whose name ends in `.safetensors`.
        made: What to write.
        versions: Of the libraries that made them.

    Raises:
        DiskError: It cannot be written.
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
    """Statistics from a file of ours, or from a peer's `.npz` with `mu` and `sigma`; no pickle is opened.

    Raises:
        InputError: It is neither, or what it holds is no mean and covariance.
    """
    regular_file(path, REMEDY)
    try:
        made = _of_peers(path) if path.suffix == ".npz" else _of_ours(path)
    except InputError as error:
        raise InputError(error.message, REMEDY) from error
    except UNREADABLE as error:
        said = f": {error}" if type(error) is ValueError else ""
        raise InputError(f"{path} holds no statistics that rapm reads{said}", REMEDY) from error
    _check(path, made)
    return made


def _of_ours(path: Path) -> Statistics:
    from safetensors.torch import load_file

    header = read_header(path)
    about = json.loads(header.metadata[KEY])
    width = header.tensors["mean"].count
    if about["format"] != FORMAT or header.tensors["covariance"].shape != (width * (width + 1) // 2,):
        raise ValueError("it is of another format")
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


def _of_peers(path: Path) -> Statistics:
    """Their files do not say how many pictures there were, nor how they were made."""
    with zipfile.ZipFile(path) as archive:
        mean, covariance = (torch.from_numpy(_array(archive, f"{name}.npy")) for name in ("mu", "sigma"))
    source = f"the peers' file {path.name}"
    return Statistics(Moments(mean, covariance, 0), None, None, source, file_sha256(path))


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[np.float64]:
    """An array of floating point; its shape is looked at before room is made for it."""
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
