"""The small models, written once for all tests, each by diffusers' own pipeline as the authors use it; and a hub."""

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from huggingface_hub import constants

from rapm_cli.bases import LoadedBase, Weights
from rapm_cli.bases.architectures import Architecture
from rapm_cli.core.network.student import attach_lora, lora_weights
from rapm_cli.formats.header import read_header
from rapm_cli.formats.original_layout import UNET_PARAMETERS
from tests.bases.hub_pipeline import REPO, a_pipeline
from tests.bases.hub_server import in_this_process
from tests.bases.small_models import write_sd15, write_sdxl
from tests.conftest import authors_scheduler
from tests.runs.test_authors_lora import as_kohya, with_alphas

WRITERS = {"sdxl": write_sdxl, "sd15": write_sd15}
CPU = torch.device("cpu")


def pipeline(folder: Path, dtype: torch.dtype = torch.float32):
    """The authors' README, on a folder that may be of another family and predict velocities."""
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    said = {"prediction_type": "epsilon", "rescale_betas_zero_snr": False}
    said |= {name: config[name] for name in said if name in config}
    authors = authors_scheduler().config
    kind = getattr(diffusers, json.loads((folder / "model_index.json").read_text())["_class_name"])
    # The offset is of other spacings; SD 1.5's pipeline warns of any but 1.
    scheduler = diffusers.DDIMScheduler.from_config(authors, **said, steps_offset=1)
    variant = "fp16" if not (folder / "unet" / "diffusion_pytorch_model.safetensors").exists() else None
    pipe = kind.from_pretrained(folder, scheduler=scheduler, dtype=dtype, variant=variant)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load(folder: Path, dtype: torch.dtype = torch.float32) -> LoadedBase:
    """A folder as rapm loads it."""
    return LoadedBase(Weights(folder, "small"), CPU, dtype)


def random_lora(folder):
    """A LoRA on all our modules in kohya's form, strong enough to be seen."""
    loaded = load(folder)
    attach_lora(loaded.backbone, 2, 2.0)
    generator = torch.Generator().manual_seed(1)
    weights = lora_weights(loaded.backbone)
    for master in weights.masters.values():
        master.data.copy_(0.1 * torch.randn(master.shape, generator=generator))
    return with_alphas(as_kohya(weights.state()))


@pytest.fixture(autouse=True, scope="session")
def _quiet_libraries():
    """As `main` has it in a process of its own."""
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    """A folder of each family, which no test may change."""
    place = tmp_path_factory.mktemp("bases")
    return {family: write(place / f"small-{family}") for family, write in WRITERS.items()}


@pytest.fixture
def copy_of(originals, tmp_path):
    """Copies a family's folder, which a test may spoil."""
    return lambda family: Path(shutil.copytree(originals[family], tmp_path / f"small-{family}"))


@pytest.fixture
def usual_shapes(originals, monkeypatch):
    """Let the small models pass for published ones, by whose shapes rapm and other programs know a single file."""
    monkeypatch.setattr(Architecture, "has_usual_shapes", True)
    for family, folder in originals.items():
        unet = read_header(folder / "unet" / "diffusion_pytorch_model.safetensors").tensors
        monkeypatch.setitem(UNET_PARAMETERS, family, sum(one.count for one in unet.values()))


@pytest.fixture
def hub(tmp_path):
    """A hub with a pipeline, in place of the one that this process knows."""
    with in_this_process(tmp_path / "hf" / "hub") as hub:
        hub.repos[REPO] = a_pipeline()
        yield hub


@pytest.fixture
def offline(hub, monkeypatch):
    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
