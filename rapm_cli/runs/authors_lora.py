"""The LoRA that the authors of the method published for SDXL: download it and convert it once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from rapm_cli.bases.hub import fetch, one_file
from rapm_cli.bases.places import converted_dir
from rapm_cli.core.common.errors import DamagedError, WeightsError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.method.samplers import DDIM
from rapm_cli.core.storage.commit import committing, verify
from rapm_cli.core.storage.files import file_sha256, sweep
from rapm_cli.formats.lora import convert_lora, save_lora
from rapm_cli.formats.lora_keys import PLAIN_LORA_REMEDY
from rapm_cli.formats.state_dict import read_pickled
from rapm_cli.runs.lock import locked

BASE, REPO, FILE = "sdxl", "guoqiang-x/RAPM_SDXL", "RAPM_SDXL.pt"
LORA = "lora.safetensors"


def authors_lora(reporter: Reporter) -> tuple[Path, str]:
    """Return the authors' LoRA, converted from their pickle to safetensors, and where it comes from.

    Args:
        reporter: Receives the progress of the download.

    Returns:
        Path of the converted file, and its origin for messages.

    Raises:
        WeightsError: The file is not in the Hugging Face cache and cannot be downloaded.
        InputError: The download differs from the hub's file, or is not a plain LoRA.
    """
    try:
        source = fetch(REPO, None, one_file(FILE), reporter).folder / FILE
    except WeightsError as error:
        raise WeightsError(
            f"there is no run of {BASE} yet, and the LoRA of the method's authors is not available: {error.message}",
            f"{error.remedy}; or try the built-in base: --base demo",
        ) from error
    digest = file_sha256(source)
    target, reason = converted_dir() / f"RAPM_SDXL-{digest[:16]}", f"the authors' LoRA, {REPO}"
    with locked(converted_dir(), reporter, "it converts the same file", is_patient=True):
        sweep(converted_dir())
        try:
            verify(target, digest)
        except DamagedError as error:
            reason += f"; {error.message}: converting it again" if target.exists() else ""
            recipe = {"base": BASE, "origin": {"repository": REPO, "file": FILE, "sha256": digest}}
            with committing(target, fingerprint=digest) as folder:
                convert_pickle(source, folder / LORA, recipe | {"sampler": DDIM.recipe(4)})
    return target / LORA, reason


def converted_loras() -> list[Path]:
    """List the converted files of all versions that were downloaded."""
    return sorted(converted_dir().glob(f"[!.]*/{LORA}"))


def convert_pickle(source: Path, target: Path, recipe: dict[str, Any]) -> None:
    """Convert a pickled LoRA of a UNet to a safetensors file in diffusers' form.

    Args:
        source: State dict under any keys that diffusers loads, saved by `torch.save`.
        target: File to write, whole or not at all. The strength is folded into the weights, so that alpha is the rank.
        recipe: Recipe for the header.

    Raises:
        InputError: It is not a plain state dict of finite tensors under a UNet's LoRA keys, or torch is too old.
    """
    save_lora(target, replace(convert_lora(source, read_pickled(source, PLAIN_LORA_REMEDY), {}), recipe=recipe))
