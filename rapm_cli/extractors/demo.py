"""The demo reader: features and attribute answers of images of the demo world."""

import numpy as np
import torch
from numpy.typing import NDArray

from rapm_cli.bases.demo.base import verified
from rapm_cli.bases.demo.reader import FEATURES, load_reader
from rapm_cli.core.storage.files import file_sha256
from rapm_cli.extractors.extractor import EXTRACTORS, Extractor, Opening
from rapm_cli.extractors.preparation import ImageArray


@EXTRACTORS.add("demo")
def open_demo(opening: Opening) -> Extractor:
    """Open the reader that ships with the demo base; it computes on the CPU."""
    path = verified() / "reader.safetensors"
    reader = load_reader(path)
    return Extractor(
        identity=f"demo reader, sha256 {file_sha256(path)[:16]}, float32",
        width=FEATURES,
        prepare=_as_floats,
        network=reader.features,
        device=torch.device("cpu"),
        answers=reader.read,
    )


def _as_floats(image: ImageArray) -> NDArray[np.float32]:
    return np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32) / np.float32(255)
