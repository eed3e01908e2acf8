"""The noise of a seed, and images that are reproduced from it."""

import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from rapm_cli.bases.device import find_rng
from rapm_cli.core.common.errors import ConfigError
from rapm_cli.generate import generate
from rapm_cli.generate.generate import pipeline_noise
from rapm_cli.runs.images import read_recipe, save_png

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_noise_equals_that_of_a_pipeline_of_the_dtype(dtype):
    noise = pipeline_noise([50, 7], (4, 16, 16), CPU, dtype)
    assert noise.dtype == torch.float32  # DDIM's arithmetic is
    for row, seed in zip(noise, (50, 7), strict=True):
        theirs = randn_tensor((1, 4, 16, 16), generator=torch.Generator().manual_seed(seed), device=CPU, dtype=dtype)
        assert torch.equal(row, theirs[0].float())


def test_noise_is_made_on_the_cpu_or_on_the_computing_device():
    card = torch.device("cuda:1")
    assert find_rng("cpu", card) == CPU
    assert find_rng("device", card) == find_rng("cuda", card) == card
    with pytest.raises(ConfigError, match="cuda"):
        find_rng("cuda", CPU)


def test_noise_has_the_dtype_and_device_of_the_command(rapm, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(generate, "pipeline_noise", lambda *asking: asked.append(asking) or pipeline_noise(*asking))
    argv = ["generate", "a red cube", "--base", "demo", "--seed", "7..8", "--output", str(tmp_path), "--quiet"]
    assert rapm(*argv, "--precision", "bf16", "--rng", "device", "--device", "cpu")[0] == 0
    assert asked == [([7, 8], (4, 16, 16), CPU, torch.bfloat16)]


def test_an_image_names_the_device_of_its_noise_and_is_not_reproduced_on_another(rapm, tmp_path):
    argv = ["generate", "--base", "demo", "--quiet", "--output", str(tmp_path)]
    assert rapm(*argv, "a red cube", "--rng", "device")[0] == 0
    first = tmp_path / "000-seed0.png"
    assert read_recipe(first)["rng"] == "cpu"
    assert rapm(*argv, "--from", str(first))[0] == 0
    again = Image.open(tmp_path / "000-seed0-1.png")
    assert again.tobytes() == Image.open(first).tobytes()
    save_png(again, tmp_path / "cuda.png", read_recipe(first) | {"rng": "cuda"})
    code, _, err = rapm(*argv, "--from", str(tmp_path / "cuda.png"))
    assert (code, len(err.splitlines())) == (2, 1)
    assert "'cuda'" in err
