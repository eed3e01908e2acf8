"""Environments for the programs, each with the packages of its time; torch is installed once and shared."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

TORCH = ("torch==2.13.0", "numpy")
VISION = "torchvision==0.28.0"  # of this torch; another release would bring a second torch with it
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
        "torchsde", VISION, "einops", "transformers<5", "sentencepiece", "safetensors", "aiohttp", "yarl",
        "pyyaml", "Pillow", "scipy", "tqdm", "psutil", "alembic", "SQLAlchemy", "kornia", "spandrel", "pydantic",
        "pydantic-settings", "av",
    ),
    "sd-scripts": (
        "transformers<5", "diffusers==0.32.1", "safetensors", "einops", "huggingface_hub<1", "accelerate", "toml",
        "voluptuous", "opencv-python-headless", "imagesize", VISION, "rich",
    ),
    "stable-diffusion.cpp": ("cyllama==0.2.18",),
    "readers": ("Pillow", "sd-parsers", "sd-prompt-reader", "piexif", "pypng", "imageio"),
}  # fmt: skip
PROGRAMS = Path(__file__).parent / "programs"


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Args:
        program: Program that reads a file.
        version: Its release or commit.
        file: What it reads.
        figure: What was measured; or why it was not tried.
        is_right: Whether the program reads the file as rapm says; None where it was not tried.
    """

    program: str
    version: str = ""
    file: str = ""
    figure: str = ""
    is_right: bool | None = None

    @property
    def verdict(self) -> str:
        """Return the verdict in one word."""
        return {True: "ok", False: "WRONG", None: "skipped"}[self.is_right]


def version_of(checkout: Path) -> str:
    """Return the commit of a checkout; "unknown" for a copy without its history."""
    command = ["git", "-C", str(checkout), "rev-parse", "--show-prefix", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True)
    said = done.stdout.split("\n")
    return said[1] if done.returncode == 0 and not said[0] else "unknown"


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
