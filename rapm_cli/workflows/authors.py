"""The LoRA that the authors of the method published for SDXL, fetched and converted once."""

from pathlib import Path

from rapm_cli.core.checksum import file_sha256
from rapm_cli.core.errors import WeightsError
from rapm_cli.core.schedule import sampler_recipe
from rapm_cli.formats.convert import convert_pickle
from rapm_cli.workflows.places import cache_dir

BASE, REPO, FILE = "sdxl", "guoqiang-x/RAPM_SDXL", "RAPM_SDXL.pt"


def authors_lora() -> Path:
    """The authors' LoRA as a file of ours; what they published is a pickle.

    Raises:
        WeightsError: It is not in the Hugging Face cache and cannot be fetched.
        InputError: What was fetched is not a plain LoRA.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        source = Path(hf_hub_download(REPO, FILE))
    except (OSError, EntryNotFoundError) as error:
        raise WeightsError(
            f"there is no run of {BASE} yet, and the authors' LoRA for {BASE}, {REPO}, cannot be fetched",
            'try the embedded base: rapm generate "a red cube left of a blue sphere" --base demo',
        ) from error
    digest = file_sha256(source)
    target = _folder() / f"RAPM_SDXL-{digest[:16]}.safetensors"
    if not target.is_file():
        recipe = {"base": BASE, "origin": {"repository": REPO, "file": FILE, "sha256": digest}}
        convert_pickle(source, target, recipe | {"sampler": sampler_recipe(4)})
    return target


def converted_loras() -> list[Path]:
    """The files that were converted so far."""
    return sorted(_folder().glob("[!.]*.safetensors"))


def _folder() -> Path:
    return cache_dir() / "converted"
