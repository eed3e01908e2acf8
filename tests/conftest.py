import os
import signal

os.environ |= {
    "DIFFUSERS_VERBOSITY": "error",  # as main has them, for tests that import the libraries first
    "HF_HUB_OFFLINE": "1",
    "HF_HOME": "/nonexistent",
    "NO_COLOR": "1",
    "OMP_NUM_THREADS": "1",  # small networks: a thread each, and a test process on every core
    "TERMINAL_WIDTH": "100",
    "TRANSFORMERS_VERBOSITY": "error",
    "_TYPER_FORCE_DISABLE_TERMINAL": "1",
}

import pytest
import torch

from rapm_cli.bases.demo.base import WEIGHTS
from rapm_cli.cli.app import main
from rapm_cli.core.network.backbone import Backbone, Conditioning
from rapm_cli.core.network.schedule import NoiseSchedule
from rapm_cli.evaluate import contact_sheet
from rapm_cli.metrics import bootstrap
from rapm_cli.metrics.bootstrap import resampled
from rapm_cli.study import scores, study
from tests.small_demo import use_small_demo, write_small_demo

FEW_RESAMPLES = 20
TINY = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (1, 2),
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 10 + 6 * 4,
}
SDXL_LEVELS = {
    "block_out_channels": (8, 16, 16),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 1, 2),
    "attention_head_dim": (1, 2, 2),
}


@pytest.fixture(autouse=True, scope="session")
def _heard_signals():
    """Signals are heard under nohup too, and in the background of a script."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        signal.signal(number, usual)


@pytest.fixture(autouse=True, scope="session")
def _narrow_sheets():
    """Contact sheets show one prompt: a third of a short run's time, and tests of sheets ask for more."""
    for module in (contact_sheet, study):
        module.COLUMNS = 1


@pytest.fixture(autouse=True, scope="session")
def _few_resamples():
    """Intervals come of a tenth of their resamples, a third of a short evaluation's time; `all_resamples` undoes it."""
    for module in (bootstrap, scores):
        module.resampled = lambda *arguments: resampled(*arguments[:-1], min(arguments[-1], FEW_RESAMPLES))


@pytest.fixture
def all_resamples(monkeypatch):
    """Intervals come of all their resamples, for tests of the intervals themselves."""
    for module in (bootstrap, scores):
        monkeypatch.setattr(module, "resampled", resampled)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Every test has its own cache and data folders."""
    monkeypatch.setenv("RAPM_HOME", str(tmp_path / "home"))
    for name in ("RAPM_BASE", "RAPM_DEVICE", "RAPM_PRECISION", "RAPM_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


@pytest.fixture
def rapm(capfd):
    """Run a command as a user does: arguments in; exit code, standard output and standard error out."""

    def run(*argv: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(list(argv))
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory):
    """The folder of a demo base with smaller networks."""
    return write_small_demo(tmp_path_factory.mktemp("small") / "demo")


@pytest.fixture
def small_demo(small_folder, monkeypatch):
    """That base is `demo`, in this process."""
    use_small_demo(small_folder, monkeypatch)


@pytest.fixture
def shipped_lora():
    """The path of the LoRA that ships with `demo`."""
    return WEIGHTS / "rapm-demo.safetensors"


@pytest.fixture(scope="session")
def schedule():
    return NoiseSchedule.scaled_linear()


def authors_scheduler():
    """The scheduler of the authors' README."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
    )


def tiny_unet(seed: int = 0, **settings):
    """A UNet of SDXL's blocks on 8x8 latents, a few thousand random weights; `**SDXL_LEVELS` gives it all levels."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    return UNet2DConditionModel(**(TINY | settings))


def tiny_sd15_unet(seed: int = 0):
    """The UNet topology of Stable Diffusion 1.5: no pooled text, projections around attention are convolutions."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
        norm_num_groups=4,
        cross_attention_dim=12,
    )


@pytest.fixture
def backbone(schedule):
    return Backbone(tiny_unet(), schedule)


@pytest.fixture(scope="session")
def make_cond():
    def make(count: int, seed: int = 0) -> Conditioning:
        generator = torch.Generator().manual_seed(seed)
        return Conditioning(
            torch.randn(count, 5, 12, generator=generator),
            torch.randn(count, 10, generator=generator),
            torch.tensor([[64.0, 64, 0, 0, 64, 64]]).expand(count, 6),
        )

    return make


@pytest.fixture(scope="session")
def latents():
    def make(count: int, seed: int = 1) -> torch.Tensor:
        return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(seed))

    return make
