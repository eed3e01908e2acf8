"""Which files of a repository are needed, told from their names alone."""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

INDEX = "model_index.json"  # what makes a repository a pipeline of diffusers
NETWORKS = ("text_encoder", "text_encoder_2", "unet", "vae")
TOKENIZERS = ("tokenizer", "tokenizer_2")
PARTS = ("scheduler", *TOKENIZERS, *NETWORKS)
FIRSTS = ("scheduler", "tokenizer", "text_encoder", "unet", "vae")  # the others belong to some pipelines only
VARIANTS = ("fp16", "")  # the better first: half the bytes, and no more is read of them on a GPU
TOKENIZER_FILES = (
    *("tokenizer_config.json", "tokenizer.json", "vocab.json", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json"),
)
_WEIGHTS = re.compile(  # a variant stands before the number of a shard, or, in older repositories, after it
    r"(?P<stem>\w+)(?:\.(?P<early>\w+))?(?:-(?P<shard>\d{5})-of-(?P<shards>\d{5}))?(?:\.(?P<late>\w+))?\.safetensors"
)


class LackingError(Exception):
    """The names lack a file without which the rest is of no use; the message names it."""


@dataclass(frozen=True)
class Selection:
    """Which files are needed.

    Args:
        choose: (names in a repository, those of them that are cached) to the needed names, the first to be fetched
            first. Raises `LackingError`.
        globs: Patterns for `hf download --include` that mean the same, for a repository that was never listed.
    """

    choose: Callable[[Collection[str], Collection[str]], list[str]]
    globs: tuple[str, ...]

    @property
    def wider_globs(self) -> tuple[str, ...]:
        """The patterns for where those have not brought all: of the weights, every precision."""
        return tuple(glob.replace("*fp16*", "*").replace(".fp16.", "*.") for glob in self.globs)


def one_file(name: str) -> Selection:
    """That file and no other."""

    def choose(names: Collection[str], cached: Collection[str]) -> list[str]:
        if name not in names:
            raise LackingError(name)
        return [name]

    return Selection(choose, (name,))


def pipeline_files(names: Collection[str], cached: Collection[str]) -> list[str]:
    """The files of a diffusers pipeline that rapm reads; of each network the weights in one precision.

    Never Python, pickles, other frameworks' weights or checkpoints in one file.

    Args:
        names: All names in the repository.
        cached: Those that need no download. Cached weights in any precision go before others that are not.

    Raises:
        LackingError: A part, or what a part cannot do without, is not among the names.
    """
    chosen = config_files(names, cached)
    for part in _parts(names):
        if part in NETWORKS:
            chosen += _weights(part, names, cached)
    return chosen


def config_files(names: Collection[str], cached: Collection[str]) -> list[str]:
    """The same without weights: configurations and tokenizers; arguments and errors as above."""
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
OUTLINE = Selection(config_files, _CONFIG_GLOBS + _WEIGHT_GLOBS)  # whoever must fetch it by hand wants the rest too
PIPELINE = Selection(pipeline_files, _CONFIG_GLOBS + _WEIGHT_GLOBS)


def _parts(names: Collection[str]) -> list[str]:
    there = {name.partition("/")[0] for name in names if "/" in name}
    for part in FIRSTS:
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
    """The weights of a part in one precision: one file, or an index and all its shards; empty if one is missing."""
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
