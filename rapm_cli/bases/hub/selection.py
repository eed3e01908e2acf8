"""Choose the files of a repository that rapm needs: safetensors and configurations, never code or pickles."""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from rapm_cli.bases.weights import read_json
from rapm_cli.core.common.errors import InputError

INDEX = "model_index.json"  # every pipeline of diffusers has one
NETWORKS = ("text_encoder", "text_encoder_2", "unet", "vae")
TOKENIZERS = ("tokenizer", "tokenizer_2")
PARTS = ("scheduler", *TOKENIZERS, *NETWORKS)
REQUIRED = ("scheduler", "tokenizer", "text_encoder", "unet", "vae")  # the other parts belong to some pipelines only
VARIANTS = ("fp16", "")  # half precision first: half the bytes, and a GPU uses no more
TOKENIZER_FILES = (
    *("tokenizer_config.json", "tokenizer.json", "vocab.json", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json"),
)
LIBRARIES = ("diffusers", "transformers", "stable_diffusion")  # any other name can be a module of the repository
_WEIGHTS = re.compile(  # the variant stands before the shard number, or after it in older repositories
    r"(?P<stem>\w+)(?:\.(?P<early>\w+))?(?:-(?P<shard>\d{5})-of-(?P<shards>\d{5}))?(?:\.(?P<late>\w+))?\.safetensors"
)


class LackingError(Exception):
    """A required file or part is missing; the message names it."""


@dataclass(frozen=True)
class Selection:
    """A choice of files.

    Args:
        choose: Function (all names in a repository, cached names) -> needed names, in the order of download. Raises
            `LackingError`.
        globs: Patterns for `hf download --include` that choose the same files in a repository that was never listed.
    """

    choose: Callable[[Collection[str], Collection[str]], list[str]]
    globs: tuple[str, ...]

    @property
    def wider_globs(self) -> tuple[str, ...]:
        """Patterns that also match weights in full precision, for a repository without half precision."""
        return tuple(glob.replace("*fp16*", "*").replace(".fp16.", "*.") for glob in self.globs)


def one_file(name: str) -> Selection:
    """Choose one file."""

    def choose(names: Collection[str], cached: Collection[str]) -> list[str]:
        if name not in names:
            raise LackingError(name)
        return [name]

    return Selection(choose, (name,))


def pipeline_files(names: Collection[str], cached: Collection[str]) -> list[str]:
    """Choose the files of a diffusers pipeline that rapm reads, with each network's weights in one precision.

    Never Python, pickles, other frameworks' weights or single-file checkpoints.

    Args:
        names: All names in the repository.
        cached: Names that need no download. Cached weights are preferred, whatever their precision.

    Raises:
        LackingError: A part, or a required file of a part, is missing.
    """
    chosen = config_files(names, cached)
    for part in _parts(names):
        if part in NETWORKS:
            chosen += _weights(part, names, cached)
    return chosen


def config_files(names: Collection[str], cached: Collection[str]) -> list[str]:
    """Choose the configurations and tokenizers alone; arguments and errors as in `pipeline_files`."""
    chosen = [_needed(INDEX, names)]
    for part in _parts(names):
        if part == "scheduler":
            chosen.append(_needed("scheduler/scheduler_config.json", names))
        elif part in NETWORKS:
            chosen.append(_needed(f"{part}/config.json", names))
        else:
            chosen += _tokenizer(part, names)
    return chosen


_CONFIG_GLOBS = (
    *(INDEX, "scheduler/scheduler_config.json", "text_encoder*/config.json", "unet/config.json", "vae/config.json"),
    *("tokenizer*/*.json", "tokenizer*/merges.txt"),
)
_WEIGHT_GLOBS = (
    *("text_encoder*/model*fp16*.safetensors", "unet/diffusion_pytorch_model*fp16*.safetensors"),
    *("vae/diffusion_pytorch_model*fp16*.safetensors", "*/*.safetensors.index.fp16.json"),
)
CONFIGS = Selection(config_files, _CONFIG_GLOBS)
OUTLINE = Selection(config_files, _CONFIG_GLOBS + _WEIGHT_GLOBS)  # the `hf download` command fetches the weights too
PIPELINE = Selection(pipeline_files, _CONFIG_GLOBS + _WEIGHT_GLOBS)


def check_index(repo: str, path: Path, names: Collection[str]) -> None:
    """Refuse a pipeline that needs Python code of its own.

    Args:
        repo: `ORG/NAME`.
        path: The repository's model_index.json.
        names: Chosen files.

    Raises:
        InputError: The pipeline or one of its parts is code of the repository, or the file is damaged.
        LackingError: The index names a part that has no chosen file.
    """
    index = read_json(path)
    asked = {part: value[0] for part, value in index.items() if isinstance(value, list) and value and value[0]}
    if foreign := [part for part, library in asked.items() if library not in LIBRARIES]:
        part = foreign[0].strip("_")
        raise InputError(
            f"{INDEX} of {repo} asks to run the repository's own Python for its {part}, and rapm never does",
            "use another repository",
        )
    for part in PARTS:
        if part in asked and not any(name.startswith(f"{part}/") for name in names):
            raise LackingError(part)


def _parts(names: Collection[str]) -> list[str]:
    there = {name.partition("/")[0] for name in names if "/" in name}
    for part in REQUIRED:
        if part not in there:
            raise LackingError(part)
    return [part for part in PARTS if part in there]


def _needed(name: str, names: Collection[str]) -> str:
    if name not in names:
        raise LackingError(name)
    return name


def _tokenizer(part: str, names: Collection[str]) -> list[str]:
    _needed(f"{part}/tokenizer_config.json", names)
    if f"{part}/tokenizer.json" not in names:
        _needed(f"{part}/vocab.json", names)
        _needed(f"{part}/merges.txt", names)
    return [f"{part}/{name}" for name in TOKENIZER_FILES if f"{part}/{name}" in names]


def _weights(part: str, names: Collection[str], cached: Collection[str]) -> list[str]:
    for known in (cached, names):
        for variant in VARIANTS:
            if files := _whole(part, known, variant):
                return files
    raise LackingError(f"the safetensors weights of {part}")


def _whole(part: str, names: Collection[str], variant: str) -> list[str]:
    """Choose a part's weights in one precision: one file, or an index and all its shards; none if one is missing."""
    stem = "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"
    shards: dict[int, str] = {}
    total = 0
    for name in names:
        folder, _, file = name.rpartition("/")
        match = _WEIGHTS.fullmatch(file) if folder == part else None
        if match is None or match["stem"] != stem or (match["early"] or match["late"] or "") != variant:
            continue
        if match["shard"] is None:
            return [name]
        shards[int(match["shard"])], total = name, int(match["shards"])
    index = f"{part}/" + ".".join(filter(None, (stem, "safetensors.index", variant, "json")))
    if total and index in names and set(shards) == set(range(1, total + 1)):
        return [index, *(shards[k] for k in sorted(shards))]
    return []
