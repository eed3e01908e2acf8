"""LoRAs that `--lora` and the options like it name: files, runs, and repositories of the Hugging Face hub."""

import re
from collections.abc import Collection
from pathlib import Path

from rapm_cli.bases.find import HUB_ID, PATH_STARTS
from rapm_cli.bases.hub import Selection, fetch, one_file
from rapm_cli.bases.hub.selection import LackingError
from rapm_cli.core.common.errors import InputError, WeightsError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.formats.header import SUFFIX
from rapm_cli.formats.recipe import ADAPTER_CONFIG, ADAPTER_MODEL
from rapm_cli.runs.run import find_lora, find_run

USUAL_NAMES = ("pytorch_lora_weights.safetensors", ADAPTER_MODEL)  # of diffusers and of peft
HUB_LORA = re.compile(rf"{HUB_ID.pattern}(?::(?P<file>[^:]+\{SUFFIX}))?")
FILES = (SUFFIX, ".ckpt", ".pt", ".pth", ".bin")  # a name that ends like this means a file, unless a colon is in it


def named_lora(name: str, reporter: Reporter) -> Path:
    """Return the path of a LoRA file; one on the hub is downloaded.

    Args:
        name: As `find_lora` takes it, or `ORG/NAME`, `ORG/NAME@REVISION` or `ORG/NAME:FILE.safetensors` on the hub.
        reporter: Shows the download.

    Raises:
        InputError: There is no such LoRA, it is damaged, or the repository has several.
        WeightsError: The file is not cached and cannot be downloaded.
    """
    match = HUB_LORA.fullmatch(name)
    is_file = name.startswith(PATH_STARTS) or (name.endswith(FILES) and ":" not in name)
    if match is None or is_file or Path(name).exists() or find_run(name):
        return find_lora(name)
    try:
        chosen = _file_and_config(match["file"]) if match["file"] else Selection(_only_lora, (f"*{SUFFIX}",))
        found = fetch(match["repo"], match["revision"], chosen, reporter)
    except WeightsError as error:
        error.message += f"; and there is no file or run {name} here"
        raise
    except InputError as error:
        error.remedy = f"give {match['repo']}:FILE{SUFFIX}, a file that the repository has"
        raise
    return found.folder / found.files[0]


def _file_and_config(file: str) -> Selection:
    """Choose one file, and peft's settings beside it, which hold the scale of peft's own."""
    one, beside = one_file(file), f"{file.rpartition('/')[0]}/{ADAPTER_CONFIG}".lstrip("/")

    def choose(names: Collection[str], cached: Collection[str]) -> list[str]:
        return [*one.choose(names, cached), *([beside] if file.endswith(ADAPTER_MODEL) and beside in names else [])]

    return Selection(choose, one.globs)


def _only_lora(names: Collection[str], cached: Collection[str]) -> list[str]:
    """Choose the LoRA of a repository that is not told which: the usual name, or the only safetensors file."""
    files = sorted(name for name in names if name.endswith(SUFFIX) and "/" not in name)
    usual = [name for name in USUAL_NAMES if name in files] or files
    if not usual or (len(files) > 1 and usual == files):
        raise LackingError(f"a single LoRA; its files are {', '.join(files) or 'of other kinds'}")
    return _file_and_config(usual[0]).choose(names, cached)
