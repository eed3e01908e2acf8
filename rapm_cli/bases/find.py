"""Find the base that `--base` names: a registered one, a folder, a single file, or a repository of the hub."""

import contextlib
import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from rapm_cli.bases.architectures import architecture_of
from rapm_cli.bases.base import BASES, Base, Defaults
from rapm_cli.bases.families import family_of
from rapm_cli.bases.photographic import photographic_prompts
from rapm_cli.bases.published import PUBLISHED, Published
from rapm_cli.bases.weights import Weights
from rapm_cli.core.common.errors import ConfigError, InputError
from rapm_cli.core.common.progress import Reporter

HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>\w[\w./-]*))?")
CHECKPOINTS = (".safetensors", ".ckpt")  # a name that ends like this means a file, even if it does not exist
# Prefixes of tensor names in a complete checkpoint in the original layout, and of each family's text encoders.
MARKS = ("model.diffusion_model.", "first_stage_model.")
ENCODERS = {
    "sdxl": ("conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."),
    "sd15": ("cond_stage_model.transformer.text_model.",),
}
LATENT_CHANNELS, FIRST_LAYER = 4, "model.diffusion_model.input_blocks.0.0.weight"
MODEL_FILES = ("model_index.json", "*/*.json", "*/*.txt", "**/*.safetensors")
PIECES, PIECE_BYTES = 2**12, 2**12  # hashed of each weight file: 4 KiB of every 1.3 MB of SDXL's UNet


def find_base(name: str, reporter: Reporter) -> Base:
    """Return the base that a name means; of a repository only the configurations are downloaded.

    Args:
        name: Registered name, folder in diffusers layout, `.safetensors` checkpoint, or `ORG/NAME` or
            `ORG/NAME@REVISION` on the hub.
        reporter: Shows downloads.

    Raises:
        ConfigError: There is no such base.
        InputError: The model is not supported.
        WeightsError: The configurations are not cached and cannot be downloaded.
    """
    if name in BASES.names():
        return BASES[name]
    with contextlib.suppress(OSError):  # the name is not valid as a path
        if name and Path(name).is_dir():
            return _folder_base(Path(name).resolve())
        if name and Path(name).is_file():
            return _checkpoint_base(Path(name).resolve())
    match = HUB_ID.fullmatch(name)
    if match and not name.endswith(CHECKPOINTS):
        return _hub_base(Published(match["repo"], match["revision"]), name, reporter)
    try:
        return BASES[name]
    except ConfigError as error:
        error.remedy += "; or give a model's folder, a .safetensors checkpoint, or ORG/NAME of the hub"
        raise


def _folder_base(folder: Path) -> Base:
    configs = Weights(folder, "")
    defaults = family_of(configs).defaults
    return _base(
        folder.name, str(folder), defaults, lambda _: Weights(folder, folder_identity(folder)), lambda _: configs
    )


def _hub_base(published: Published, name: str, reporter: Reporter) -> Base:
    family = family_of(published.outline(reporter))
    return _base(published.repo, name, family.defaults, published.weights, published.outline)


def _checkpoint_base(path: Path) -> Base:
    family, prediction_type = checkpoint_kind(path)

    def locate(reporter: Reporter) -> Weights:
        folder = PUBLISHED[family].configs(reporter).folder
        identity = hashlib.sha256(repr(("file", _samples_sha256(path))).encode()).hexdigest()[:16]
        return Weights(folder, identity, checkpoint=path, prediction_type=prediction_type)

    return _base(path.stem, str(path), BASES[family].defaults, locate, PUBLISHED[family].configs)


def _base(
    name: str,
    source: str,
    defaults: Defaults,
    locate: Callable[[Reporter], Weights],
    configs: Callable[[Reporter], Weights],
) -> Base:
    return Base(
        name=name,
        source=source,
        defaults=defaults,
        locate=locate,
        architecture=lambda reporter: architecture_of(configs(reporter)),
        training_prompts=photographic_prompts,
    )


def checkpoint_kind(path: Path) -> tuple[str, str | None]:
    """Return the family of a checkpoint in the original layout, and its prediction type if it names one.

    Raises:
        InputError: The file is no such checkpoint, or its family is not supported.
    """
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        raise InputError(f"{path} is no safetensors file, and others can run code", "give a .safetensors checkpoint")
    try:
        with safe_open(path, "pt") as file:
            names = set(file.keys())
            channels = file.get_slice(FIRST_LAYER).get_shape()[1] if FIRST_LAYER in names else 0
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is not a whole safetensors file: {error}", "copy or download it again") from error
    families = [family for family, starts in ENCODERS.items() if all(_has(names, start) for start in MARKS + starts)]
    if not families:
        raise InputError(
            f"{path} is no checkpoint of a whole Stable Diffusion XL or 1.5", "give one with text encoders and VAE"
        )
    if channels != LATENT_CHANNELS:
        raise InputError(
            f"{path} takes {channels} channels, not {LATENT_CHANNELS}: it is for inpainting or editing",
            "give a text-to-image model",
        )
    if "ztsnr" in names:
        raise InputError(f"{path} was trained down to zero signal, which rapm cannot distil", "give another base")
    return families[0], "v_prediction" if "v_pred" in names else None


def _has(names: set[str], start: str) -> bool:
    return any(name.startswith(start) for name in names)


def folder_identity(folder: Path) -> str:
    """Return a hash of a folder's configurations and of samples of its weights, the same wherever the folder is.

    Configurations count because the same weights with another prediction type give other trajectories.
    """
    files = sorted(path for pattern in MODEL_FILES for path in folder.glob(pattern))
    about = repr([(path.relative_to(folder).as_posix(), _samples_sha256(path)) for path in files])
    return hashlib.sha256(about.encode()).hexdigest()[:16]


def _samples_sha256(path: Path) -> str:
    """Hash a file's size and evenly spread pieces, dense enough to notice one changed large layer."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for start in range(0, size, max(PIECE_BYTES, size // PIECES)):
            file.seek(start)
            digest.update(file.read(PIECE_BYTES))
    return digest.hexdigest()
