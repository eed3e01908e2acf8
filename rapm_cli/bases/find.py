"""Find the base that `--base` names: a registered one, a folder, a single file, or a repository of the hub."""

import contextlib
import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from rapm_cli.bases.architectures import architecture_of
from rapm_cli.bases.base import BASES, Base, Defaults
from rapm_cli.bases.checkpoint import CheckpointKind, checkpoint_kind
from rapm_cli.bases.families import FAMILIES
from rapm_cli.bases.photographic import photographic_prompts
from rapm_cli.bases.published import PUBLISHED, Published, published_name
from rapm_cli.bases.support import EPSILON, V_PREDICTION, Judged, judge
from rapm_cli.bases.weights import Weights
from rapm_cli.core.common.errors import ConfigError, InputError, WeightsError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.formats.header import read_header
from rapm_cli.formats.original_layout import V_TENSOR

CHOICES = "give a model's folder, a .safetensors checkpoint, or ORG/NAME of the hub"
PATH_STARTS = ("./", "../", "/", "~", ".\\")  # a name that begins like this means a path, even if it does not exist
HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>\w[\w./-]*))?")
CHECKPOINTS = (".safetensors", ".ckpt")  # a name that ends like this means a file, even if it does not exist
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
        InputError: The model is not supported, or there is no such file.
        WeightsError: The configurations are not cached and cannot be downloaded.
    """
    if name in BASES.names():
        return BASES[name]
    is_folder = is_file = False
    with contextlib.suppress(OSError):  # the name is not valid as a path
        is_folder, is_file = bool(name) and Path(name).is_dir(), Path(name).is_file()
    if is_folder:
        return _folder_base(Path(name).resolve())
    if is_file:
        return _checkpoint_base(Path(name).resolve())
    if name.endswith(CHECKPOINTS) or name.startswith(PATH_STARTS):
        raise InputError(f"there is no file or folder {name!r}", "check the path; " + CHOICES)
    if match := HUB_ID.fullmatch(name):
        return _hub_base(Published(match["repo"], match["revision"]), name, reporter)
    try:
        return BASES[name]
    except ConfigError as error:
        error.remedy += f"; or {CHOICES}"
        raise


def find_again(source: str, reporter: Reporter) -> Base:
    """Return the base of a run by its stored source.

    Raises:
        InputError: A folder or file is not there any more; else as `find_base`.
    """
    if Path(source).is_absolute() and not Path(source).exists():
        raise InputError(f"the base of the run is not at {source} any more", "give --base, its new place")
    return find_base(source, reporter)


def _folder_base(folder: Path) -> Base:
    configs = Weights(folder, "")
    judged = judge(configs)
    defaults = FAMILIES[judged.family].defaults

    def identity(reporter: Reporter) -> str:
        return folder_identity(folder)

    def locate(reporter: Reporter) -> Weights:
        return Weights(folder, identity(reporter))

    return _base(folder.name, str(folder), defaults, locate, identity, lambda _: configs, judged)


def _hub_base(published: Published, name: str, reporter: Reporter) -> Base:
    if known := published_name(published):  # SDXL by its name on the hub is SDXL
        return BASES[known]
    try:
        judged = judge(published.outline(reporter))
    except WeightsError as error:
        error.message += f"; and there is no folder {name} here"
        raise
    except InputError as error:  # the folder in the cache means nothing to the user
        error.message = f"{name} cannot be distilled: {error.message}"
        raise
    if known := published_name(published):  # the hub has told its commit
        return BASES[known]
    defaults, outline = FAMILIES[judged.family].defaults, published.outline
    return _base(published.repo, name, defaults, published.weights, published.identity, outline, judged)


def _checkpoint_base(path: Path) -> Base:
    kind = checkpoint_kind(path)

    def identity(reporter: Reporter) -> str:
        return checkpoint_identity(path)

    def locate(reporter: Reporter) -> Weights:
        folder = PUBLISHED[kind.family].configs(reporter).folder
        return Weights(folder, identity(reporter), (), path, kind.prediction_type, has_zero_snr=kind.has_zero_snr)

    defaults, configs = BASES[kind.family].defaults, PUBLISHED[kind.family].configs
    return _base(path.stem, str(path), defaults, locate, identity, configs, kind)


def _base(
    name: str,
    source: str,
    defaults: Defaults,
    locate: Callable[[Reporter], Weights],
    identity: Callable[[Reporter], str],
    configs: Callable[[Reporter], Weights],
    kind: Judged | CheckpointKind,
) -> Base:
    return Base(
        name=name,
        source=source,
        defaults=defaults,
        locate=locate,
        identity=identity,
        architecture=lambda reporter: architecture_of(configs(reporter)),
        training_prompts=photographic_prompts,
        prediction_type=kind.prediction_type or EPSILON,
        has_zero_snr=kind.has_zero_snr,
    )


def folder_identity(folder: Path) -> str:
    """Return a hash of a folder's configurations and of samples of its weights, the same wherever the folder is.

    Configurations count because the same weights with another prediction type give other trajectories.
    """
    files = sorted(path for pattern in MODEL_FILES for path in folder.glob(pattern))
    about = repr([(path.relative_to(folder).as_posix(), _samples_sha256(path)) for path in files])
    return hashlib.sha256(about.encode()).hexdigest()[:16]


def checkpoint_identity(path: Path) -> str:
    """Return a hash of samples of a checkpoint, the same wherever the file is.

    v-prediction that the header alone names counts too, and zero signal: versions that did not read them recorded wrong
    trajectories.
    """
    about: tuple[str, ...] = ("file", _samples_sha256(path))
    kind = checkpoint_kind(path)
    if kind.prediction_type == V_PREDICTION and V_TENSOR not in read_header(path).tensors:
        about += (V_PREDICTION,)
    about += ("zero signal",) if kind.has_zero_snr else ()
    return hashlib.sha256(repr(about).encode()).hexdigest()[:16]


def _samples_sha256(path: Path) -> str:
    """Hash a file's size and evenly spread pieces, dense enough to notice one changed large layer."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for start in range(0, size, max(PIECE_BYTES, size // PIECES)):
            file.seek(start)
            digest.update(file.read(PIECE_BYTES))
    return digest.hexdigest()
