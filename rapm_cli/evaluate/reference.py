"""Reference images and their statistics: a folder, COCO with its captions, or a file of statistics."""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from rapm_cli.bases.places import samples_dir
from rapm_cli.core.common.errors import ConfigError, InputError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.storage.files import file_sha256
from rapm_cli.extractors import Extractor
from rapm_cli.extractors.preparation import ImageArray, Preparation, image_files, read_image
from rapm_cli.extractors.statistics import Statistics, read_statistics, write_statistics
from rapm_cli.metrics.moments import RunningMoments
from rapm_cli.runs import signals
from rapm_cli.runs.prompts import captions_of_images, check_prompt, read_json
from rapm_cli.runs.versions import versions

COCO = "coco:"
STATISTICS = (".safetensors", ".npz")
ANNOTATIONS = ("annotations/captions_val2014.json", "captions_val2014.json")
IMAGES = "val2014"
SALT = "rapm coco30k"  # salt of the order; with another salt, other images would be the first 30,000
READING = 2  # changes with the values that `read_image` returns, so that statistics of other values are not used
REMEDY = f"give the folder that has {IMAGES}/ and {ANNOTATIONS[0]}, as COCO's zips unpack"


@dataclass(frozen=True)
class Captioned:
    """An image of COCO with one caption.

    Args:
        image: Id of the image.
        path: File of the image.
        caption: The image's caption with the smallest annotation id.
    """

    image: int
    path: Path
    caption: str


def coco_pairs(folder: Path, count: int) -> list[Captioned]:
    """Return the first `count` images of val2014 in the order of the sha256 of their ids.

    Every shorter list begins the longer ones, and is as good as a random choice.

    Raises:
        InputError: The folder is not COCO's, an image is missing, or fewer images have a caption.
    """
    source = next((folder / name for name in ANNOTATIONS if (folder / name).is_file()), None)
    if source is None or not (folder / IMAGES).is_dir():
        raise InputError(f"{folder} is no COCO 2014", REMEDY)
    record = read_json(source)
    try:
        files = {int(entry["id"]): str(entry["file_name"]) for entry in record["images"]}
        captions = captions_of_images(str(source), record["annotations"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{source} has no images and annotations", REMEDY) from error
    chosen = sorted(captions.keys() & files.keys(), key=_rank)[:count]
    if len(chosen) < count:
        raise InputError(f"{source} has captions for {len(chosen):,} images, not {count:,}", "give --samples")
    pairs = []
    for image in chosen:
        path = folder / IMAGES / Path(files[image]).name
        if not path.is_file():
            raise InputError(f"{path} is missing", REMEDY)
        pairs.append(Captioned(image, path, check_prompt(captions[image].text, captions[image].place)))
    return pairs


def list_digest(pairs: list[Captioned]) -> str:
    """Return the sha256 of a list of images and captions: one line each, id, tab, caption."""
    lines = "".join(f"{pair.image}\t{pair.caption}\n" for pair in pairs)
    return hashlib.sha256(lines.encode()).hexdigest()


def _rank(image: int) -> str:
    return hashlib.sha256(f"{SALT} {image}".encode()).hexdigest()


@dataclass(frozen=True)
class Reference:
    """Reference images, or their statistics.

    Args:
        source: Description of the images.
        paths: Files of the images.
        statistics: Statistics instead of images.
    """

    source: str
    paths: tuple[Path, ...] = ()
    statistics: Statistics | None = None

    @property
    def count(self) -> int:
        """Number of images; 0 if the statistics do not say it."""
        return self.statistics.moments.count if self.statistics else len(self.paths)


def find_reference(given: str, count: int | None = None) -> Reference:
    """Return the reference that `--reference` names.

    Args:
        given: A folder, `coco:DIR`, or a file of statistics.
        count: Number of COCO's images; None for every image in the folder.

    Raises:
        ConfigError: It is none of these.
        InputError: The folder or file cannot be used.
    """
    if given.startswith(COCO):
        folder = Path(given.removeprefix(COCO))
        if count is None:
            return _folder(f"all of {folder}/val2014", folder / "val2014")
        paths = tuple(pair.path for pair in coco_pairs(folder, count))
        return Reference(f"{count:,} captioned images of {folder}", paths)
    path = Path(given)
    if path.is_dir():
        return _folder(f"folder {path}", path)
    if path.suffix in STATISTICS:
        return Reference(f"file {path}", statistics=read_statistics(path))
    raise ConfigError(f"--reference {given} is no folder of images", "give a folder, coco:DIR or statistics of rapm")


def _folder(source: str, folder: Path) -> Reference:
    found = image_files(folder)
    left_out = f" ({found.left_out:,} other files left out)" if found.left_out else ""
    return Reference(source + left_out, found.paths)


def statistics_of(
    reference: Reference, preparation: Preparation, extractor: Extractor, reporter: Reporter, *, keep: bool
) -> Statistics:
    """Return the statistics of reference images under one extractor; they are cached while the files do not change.

    Args:
        reference: Reference with images.
        preparation: Preparation of every image.
        extractor: Extractor of the features.
        reporter: Reporter of progress.
        keep: Whether to keep the features too, which KID needs.

    Raises:
        InputError: A file is no image, or there is only one image.
        Stopped: A signal came.
    """
    if len(reference.paths) < 2:
        raise InputError(f"{reference.source} is one image, which has no statistics", "give a folder of more")
    place = _place(reference, preparation, extractor, keep)
    if place.exists():
        with contextlib.suppress(InputError):  # a damaged file is made again
            return replace(read_statistics(place), source=reference.source)
    made = _extracted(reference, preparation, extractor, reporter, keep=keep)
    write_statistics(place, made, versions())
    return made


def _place(reference: Reference, preparation: Preparation, extractor: Extractor, keep: bool) -> Path:
    """Return the cached file for these images, identified by name, size and time.

    It is a file like that of `--save-reference`, not a chunk of the `ChunkCache`, so that one reader checks both. It
    needs no lock: it is written whole or not at all, and processes that compute it together write the same statistics.
    """
    states = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in reference.paths]
    key = json.dumps([states, preparation.spec, extractor.identity, keep, READING])
    return samples_dir() / hashlib.sha256(key.encode()).hexdigest()[:24] / "statistics.safetensors"


def _extracted(
    reference: Reference, preparation: Preparation, extractor: Extractor, reporter: Reporter, *, keep: bool
) -> Statistics:
    readers = [partial(_prepared, path, preparation) for path in reference.paths]
    running, kept = RunningMoments(extractor.width), []
    bar = reporter.bar(f"reading {reference.source}", len(readers), "image", extractor.device)
    with bar as shown, signals.deferred("these images"):
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
    """Return the sha256 over the names and contents of files, in their order."""
    lines = "".join(f"{file_sha256(path)}  {path.name}\n" for path in paths)
    return hashlib.sha256(lines.encode()).hexdigest()


def _prepared(path: Path, preparation: Preparation) -> ImageArray:
    return preparation(read_image(path))
