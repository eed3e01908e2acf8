"""Texts of our images in the programs and packages that read them; and what a launcher gets to hear."""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from rapm_cli.bases.demo.base import DEMO_LORA
from rapm_cli.formats.sampling_advice import infotext
from tests.clients.environments import Row, ask, python_of, version_of

PROMPT = "a red cube, (x:1.3)"
RAPM = (sys.executable, "-m", "rapm_cli")


def webui_rows(options: argparse.Namespace, place: Path) -> Iterator[Row]:
    """Read the text of our images with the page's own parser."""
    if options.webui is None:
        yield Row("A1111 or Forge", file="text of an image", figure="--webui names no checkout")
        return
    (place / "text.txt").write_text(infotext({"prompt": PROMPT, "seed": 7, "steps": 4}, (64, 64)))
    said = ask(python_of(options.environments, "comfyui"), "webui", options.webui, place / "text.txt")
    wanted = {"Prompt": PROMPT, "Steps": "4", "CFG scale": "1", "Seed": "7", "Size-1": "64", "Size-2": "64"}
    wanted |= {"sampler": "Euler", "schedule": "SGM Uniform"}
    is_right = all(said[name] == value for name, value in wanted.items())
    figure = f"{said['sampler']}, {said['schedule']}"
    yield Row("A1111 or Forge", version_of(options.webui), "text of an image", figure, is_right)


def reader_rows(options: argparse.Namespace, place: Path) -> Iterator[Row]:
    """Read an image of `rapm generate` with packages of the index."""
    command = [*RAPM, "generate", PROMPT, "--base", "demo", "--lora", str(DEMO_LORA), "--seed", "7"]
    subprocess.run([*command, "--output", str(place / "images")], check=True, capture_output=True)
    (image,) = (place / "images").glob("*.png")
    said = ask(python_of(options.environments, "readers"), "readers", image)
    for name, (version, found, error) in said.items():
        wanted = {"Prompt": PROMPT, "Seed": "7", "Sampler": "Euler", "Size": "128x128"}
        text = found if isinstance(found, str) else str(sorted(found.values()))
        known = wanted if isinstance(found, str) else {name: wanted[name] for name in found}
        is_right = not error and all(value in text for value in known.values())
        yield Row(name, version, "text of an image", error or f"finds {', '.join(known)}", is_right)


def launcher_rows(options: argparse.Namespace, place: Path) -> Iterator[Row]:
    """Start two processes by `accelerate launch --cpu`, which starts one: rapm says so."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu"]
    command = [*launch, *RAPM[1:], "distill", "--base", "demo", "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"RAPM_HOME": str(place / "home")})
    if "No module named 'accelerate" in done.stderr:
        yield Row("accelerate", file="launch", figure="accelerate is not installed beside rapm")
        return
    import accelerate

    heard = next((line for line in done.stderr.splitlines() if re.match("warning: accelerate launch", line)), "")
    figure = heard.partition(";")[0].removeprefix("warning: ") or f"code {done.returncode}, no warning"
    yield Row("accelerate", accelerate.__version__, "launch --num_processes 2 --cpu", figure, bool(heard))
