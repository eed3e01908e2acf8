"""Environments for the programs, each with the packages of its time; torch is installed once and shared."""

import json
import subprocess
import sys
from pathlib import Path

TORCH = ("torch==2.13.0", "numpy")
ENVIRONMENTS = {  # packages by name; old releases of diffusers need the transformers and peft of their time
    "diffusers 0.30.3": (
        "diffusers==0.30.3", "transformers==4.44.2", "peft==0.12.0", "huggingface_hub<0.26", "accelerate==1.0.1",
    ),
    "diffusers 0.33.1": ("diffusers==0.33.1", "transformers==4.51.3", "peft==0.15.2", "huggingface_hub<1"),
    "diffusers 0.34.0": ("diffusers==0.34.0", "transformers==4.53.3", "peft==0.16.0", "huggingface_hub<1"),
    "diffusers 0.36.0": ("diffusers==0.36.0", "transformers==4.57.1", "peft==0.18.0", "huggingface_hub<1"),
    "diffusers 0.39.0": ("diffusers==0.39.0", "transformers<6", "peft"),
    "diffusers newest": ("diffusers", "transformers", "peft"),
    "comfyui": (
        "torchsde", "torchvision", "einops", "transformers<5", "sentencepiece", "safetensors", "aiohttp", "yarl",
        "pyyaml", "Pillow", "scipy", "tqdm", "psutil", "alembic", "SQLAlchemy", "kornia", "spandrel", "pydantic",
        "pydantic-settings", "av",
    ),
    "sd-scripts": (
        "transformers<5", "diffusers==0.32.1", "safetensors", "einops", "huggingface_hub<1", "accelerate", "toml",
        "voluptuous", "opencv-python-headless", "imagesize", "torchvision", "rich",
    ),
}  # fmt: skip
PROGRAMS = Path(__file__).parent / "programs"


def python_of(place: Path, name: str) -> Path:
    """Return the interpreter of an environment, which is made where it is missing."""
    folder, done = place / name.replace(" ", "-"), place / name.replace(" ", "-") / "complete"
    python = folder / "bin" / "python"
    if not done.exists():
        _run([sys.executable, "-m", "venv", str(folder)])
        if name != "torch":
            shared = next((python_of(place, "torch").parent.parent / "lib").glob("python*/site-packages"))
            (next((folder / "lib").glob("python*/site-packages")) / "torch.pth").write_text(f"{shared}\n")
        packages = TORCH if name == "torch" else ENVIRONMENTS[name]
        _run([str(python), "-m", "pip", "install", "--quiet", *packages])
        done.touch()
    return python


def ask(python: Path, program: str, *arguments: object) -> dict:
    """Run one of `programs/` in an environment, and return the JSON that it prints.

    Raises:
        RuntimeError: The program failed; the message is its last line.
    """
    command = [str(python), "-W", "ignore", str(PROGRAMS / f"{program}.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1][:200])
    return json.loads(done.stdout.splitlines()[-1])


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
