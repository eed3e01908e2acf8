"""Inception 2015-12-05, the network of FID and KID, in torch-fidelity's implementation."""

import io
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rapm_cli.core.common.errors import ConfigError, InputError, WeightsError
from rapm_cli.core.storage.files import file_sha256
from rapm_cli.extractors.extractor import EXTRACTORS, Extractor, Opening
from rapm_cli.extractors.preparation import resized_without_rounding
from rapm_cli.formats.state_dict import read_pickled

FILE = "weights-inception-2015-12-05-6726825d.pth"
NAMES = (FILE, "pt_inception-2015-12-05-6726825d.pth")  # pytorch-fid publishes the same bytes
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
SIDE_PX, WIDTH = 299, 2048


@EXTRACTORS.add("inception")
def open_inception(opening: Opening) -> Extractor:
    """Open Inception: the 2048 features of its last pooling, for images resized to 299 pixels without rounding.

    Raises:
        ConfigError: torch-fidelity is not installed.
        WeightsError: The weights are missing.
        InputError: The weights are not the published ones.
    """
    network = load_inception(find_inception(opening.inception)).to(opening.device)
    return Extractor(
        identity=f"inception-2015-12-05 {SHA256[:8]}, Pillow bicubic to {SIDE_PX} not rounded, float32",
        width=WIDTH,
        prepare=resized_without_rounding(SIDE_PX),
        network=lambda images: network((images - 128) / 128),
        device=opening.device,
    )


def find_inception(named: Path | None) -> Path:
    """Return the path of the weights: the named file, or a file in `RAPM_WEIGHTS_DIR` or in torch hub's cache.

    Raises:
        WeightsError: The weights are in none of these places.
    """
    if named is not None:
        if not named.is_file():
            raise WeightsError(f"--inception {named} is no file", _how_to_get(named))
        return named
    own, hub = os.environ.get("RAPM_WEIGHTS_DIR"), Path(torch.hub.get_dir()) / "checkpoints"
    folders = [Path(own), hub] if own else [hub]
    for folder in folders:
        for name in NAMES:
            if (folder / name).is_file():
                return folder / name
    places = " or ".join(map(str, folders))
    raise WeightsError(
        f"FID and KID need the weights of Inception, which are not in {places}", _how_to_get(folders[0] / FILE)
    )


def load_inception(path: Path) -> nn.Module:
    """Return the network up to its last pooling, on the CPU, in float32.

    The file's sha256 is compared with the published one first, and no code in the file is run.

    Args:
        path: File of the published weights.

    Returns:
        Module from (B, 3, 299, 299) images in [-1, 1] to (B, 2048) features.

    Raises:
        ConfigError: torch-fidelity is not installed.
        InputError: The file is not the published one.
    """
    if (found := file_sha256(path)) != SHA256:
        raise InputError(f"{path} is not the published Inception: sha256 {found}, not {SHA256}", _how_to_get(path))
    made = _network_class()("rapm", ["2048"], feature_extractor_weights_path=_copy_of(path))
    stages = [stage for name, stage in made.named_children() if name != "fc"]  # in the order in which they run
    return nn.Sequential(*stages, nn.Flatten()).requires_grad_(False).eval()


def _copy_of(path: Path) -> io.BytesIO:
    """Return the file's tensors in a form that torch-fidelity reads; it would run code in the file itself."""
    copy = io.BytesIO()
    torch.save(read_pickled(path, _how_to_get(path)), copy)
    copy.seek(0)
    return copy


def _network_class() -> Any:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise ConfigError(
            f"FID and KID need torch-fidelity: {error}",
            "pip install torch-fidelity, or leave them out: --metrics clip,fidelity,position",
        ) from error
    return FeatureExtractorInceptionV3


def _how_to_get(target: Path) -> str:
    return f"fetch {URL} to {target} (sha256 {SHA256}), or name it: --inception PATH"
