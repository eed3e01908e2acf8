"""What the README files say of the program, held against the program."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rapm_cli.core.common.errors import RapmError

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "rapm_cli/bases/demo/weights"
LORA = WEIGHTS / "rapm-demo.safetensors"
PROMPT = "a large red cube left of a small blue sphere at dawn"
ON_DEMO = {  # SDXL on a GPU to the demo base on a CPU
    "stabilityai/stable-diffusion-xl-base-1.0": str(WEIGHTS / "base"),
    'variant="fp16", torch_dtype=torch.bfloat16).to("cuda")': "torch_dtype=torch.float32)",
    '"my-lora", weight_name="my-lora-diffusers.safetensors"': f'"{WEIGHTS}", weight_name="{LORA.name}"',
    "a photo of a woman": PROMPT,
}


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_the_table_of_exit_codes_is_whole():
    def codes(kind):
        own = [kind.exit_code] if isinstance(kind.exit_code, int) else []
        return own + [code for child in kind.__subclasses__() for code in codes(child)]

    text = (ROOT / "rapm_cli/runs/README.md").read_text()
    table = re.split(r"^(?:#|\*\*).*exit codes.*$", text, flags=re.M | re.I)[1].split("\n#")[0]
    told = {int(code) for line in re.findall(r"^\| ([\d, ]+) \|", table, re.M) for code in line.split(",")}
    assert told == {0, 129, 130, 143, *codes(RapmError)}


@pytest.mark.slow
def test_the_readmes_lines_for_diffusers_are_silent_and_give_rapms_image(rapm, tmp_path):
    code = re.search(r"```python\n(.+?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    for theirs, ours in ON_DEMO.items():
        assert code.count(theirs) == 1
        code = code.replace(theirs, ours)
    command = [sys.executable, "-W", "ignore:`torch_dtype`:FutureWarning", "-c", code]  # diffusers up to 0.39 wants it
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    said = re.split(r"[\r\n]+", done.stdout + done.stderr)
    assert [line for line in said if line and not re.search("it/s|s/it", line)] == []  # bars alone
    argv = ["generate", PROMPT, "--base", "demo", "--lora", str(LORA), "--seed", "7", "--output", str(tmp_path)]
    images = (tmp_path / "picture.png", rapm(*argv)[1].split("  ")[0])
    theirs, ours = (np.asarray(Image.open(path), dtype=int) for path in images)
    assert np.abs(theirs - ours).max() <= 1
