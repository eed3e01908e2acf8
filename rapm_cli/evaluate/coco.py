"""COCO's pictures with one caption each, always the same ones in the same order."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from rapm_cli.core.common.errors import InputError
from rapm_cli.runs.prompts import captions_of_images, check_prompt, read_json

ANNOTATIONS = ("annotations/captions_val2014.json", "captions_val2014.json")
IMAGES = "val2014"
SALT = "rapm coco30k"  # of the order; with another one, other images would be the first 30,000
REMEDY = f"give the folder that has {IMAGES}/ and {ANNOTATIONS[0]}, as COCO's zips unpack"


@dataclass(frozen=True)
class Captioned:
    """An image of COCO: its id, file, and caption of smallest annotation id."""

    image: int
    path: Path
    caption: str


def coco_pairs(folder: Path, count: int) -> list[Captioned]:
    """The first `count` of val2014's images, in the order of the sha256 of their ids.

    So every shorter list begins the longer ones, and is as good as drawn by lot.

    Raises:
        InputError: The folder is not COCO's, an image is missing, or there are fewer with a caption.
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
    """What tells this list of images and captions from others: the sha256 of its lines, id, tab, caption."""
    lines = "".join(f"{pair.image}\t{pair.caption}\n" for pair in pairs)
    return hashlib.sha256(lines.encode()).hexdigest()


def _rank(image: int) -> str:
    return hashlib.sha256(f"{SALT} {image}".encode()).hexdigest()
