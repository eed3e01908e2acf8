"""What a network sees in a gallery's pictures, kept beside them."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from rapm_cli.bases.hub.digest import NO_BAR
from rapm_cli.core.common.errors import DamagedError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.storage.commit import commit, read_commit
from rapm_cli.evaluate.samples import Gallery
from rapm_cli.extractors import Extractor
from rapm_cli.runs import signals
from rapm_cli.runs.lock import locked
from rapm_cli.runs.retry import with_retries

FEATURES = "features.safetensors"
SHELF = 1024  # pictures whose features are kept together


def look(gallery: Gallery, extractor: Extractor, reporter: Reporter) -> Iterator[Tensor]:
    """(B, D) float32 features of a gallery's pictures, some at a time; it has been drawn.

    Raises:
        Stopped: A signal came; the features of all whole shelves are kept.
    """
    count = len(gallery.plan.prompts)
    pictures = list(gallery.readers())
    shelves = [range(k, min(k + SHELF, count)) for k in range(0, count, SHELF)]
    places = {shelf: _place(gallery, extractor, shelf) for shelf in shelves}
    done = sum(len(shelf) for shelf, place in places.items() if place.exists())
    name = extractor.identity.partition(" ")[0].rpartition("/")[2]
    bar = reporter.bar(f"{name}, {gallery.contestant.role}", count, "picture", extractor.device, done=done)
    with bar if done < count else nullcontext(NO_BAR) as shown, signals.deferred("this batch"):
        for shelf, place in places.items():
            features = _recall(place)
            if features is None:
                seen = []
                for part in extractor.features(pictures[shelf.start : shelf.stop]):
                    seen.append(part)
                    shown.advance(len(part))
                    signals.check("what was seen before is kept", "resume with: the same command")
                features = torch.cat(seen)
                _keep(place, features, reporter)
            yield features


def _place(gallery: Gallery, extractor: Extractor, shelf: range) -> Path:
    """A commit that is known by the pictures and by the network."""
    prompts = [gallery.plan.prompts[k] for k in shelf]
    key = json.dumps([extractor.identity, shelf.start, prompts])
    return gallery.folder / f"seen-{hashlib.sha256(key.encode()).hexdigest()[:24]}"


def _recall(place: Path) -> Tensor | None:
    from safetensors.torch import load

    try:
        features: Tensor = load(read_commit(place, place.name)[1][FEATURES])["features"]
    except DamagedError:  # or absent: it costs a look
        return None
    return features


def _keep(place: Path, features: Tensor, reporter: Reporter) -> None:
    from safetensors.torch import save

    files = {FEATURES: save({"features": features})}

    def write() -> None:
        with locked(place.parent, reporter, "Ctrl-C leaves", is_patient=True):
            if _recall(place) is None:
                commit(place, files, fingerprint=place.name)

    with_retries(write, place, features.nbytes, reporter, "what was seen before is kept", "free space, and go on")
