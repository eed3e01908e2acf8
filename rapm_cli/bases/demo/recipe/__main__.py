"""`python -m rapm_cli.bases.demo.recipe --output DIR`: train every part of the demo base, in order, from scratch.

A part that is already in DIR is kept, so the same command resumes a stopped run; the reported minutes are those of the
last call. `DIR/package` holds all files that ship except the distilled LoRA.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from rapm_cli.bases.demo.reader import Reader
from rapm_cli.bases.demo.recipe.package import write_package
from rapm_cli.bases.demo.recipe.reader import score_reader, train_reader
from rapm_cli.bases.demo.recipe.text import train_text
from rapm_cli.bases.demo.recipe.unet import train_unet
from rapm_cli.bases.demo.recipe.vae import sharpen_vae, train_vae


def main() -> None:
    """Run the recipe with the settings of the command line."""
    parser = argparse.ArgumentParser(prog="python -m rapm_cli.bases.demo.recipe", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for the trained parts and the package")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vae-steps", type=int, default=1600)
    parser.add_argument("--decoder-steps", type=int, default=1000)
    parser.add_argument("--text-steps", type=int, default=450)
    parser.add_argument("--reader-steps", type=int, default=900)
    parser.add_argument("--unet-steps", type=int, default=3400)
    parser.add_argument("--batch", type=int, default=32, help="images in a batch of the UNet")
    parser.add_argument("--pool", type=int, default=8_000, help="encoded scenes kept in memory")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="for the UNet")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    kept = options.output / "settings.json"
    if kept.is_file() and json.loads(kept.read_text()) != settings:
        parser.error(f"{options.output} holds parts made with other settings: {kept.read_text()}")
    kept.write_text(json.dumps(settings))
    _Recipe(options, settings).run()


class _Recipe:
    """The training stages; a stage is skipped if its result is on disk."""

    def __init__(self, options: argparse.Namespace, settings: dict[str, Any]) -> None:
        self.options, self.settings, self.folder, self.begun = options, settings, options.output, time.monotonic()

    def report(self, line: str) -> None:
        """Print a line with the minutes since the start, and append it to the log beside the results."""
        text = f"{(time.monotonic() - self.begun) / 60:6.1f} min  {line}\n"
        print(text, end="", flush=True)  # noqa: T201
        with (self.folder / "log.txt").open("a") as log:
            log.write(text)

    def run(self) -> None:
        """Run all stages, then package the result."""
        options, seed = self.options, self.options.seed
        self.stage("vae", lambda: train_vae(options.vae_steps, seed, self.report).save_pretrained(self.folder / "vae"))
        self.stage("text_encoder_2", self.text)
        vae = AutoencoderKL.from_pretrained(self.folder / "vae").eval()
        self.stage("unet", lambda: self.unet(vae))
        self.stage("vae-sharp", lambda: self.sharpen(vae))
        vae = AutoencoderKL.from_pretrained(self.folder / "vae-sharp").eval()
        self.stage("reader.safetensors", lambda: self.reader(vae))
        reader = Reader().eval()
        reader.load_state_dict(load_file(self.folder / "reader.safetensors"))
        scores = score_reader(reader, vae, 2000, seed + 1)
        self.report(f"reader on held-out images: {scores}")
        machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
        provenance = {
            "command": "python -m rapm_cli.bases.demo.recipe",
            "settings": self.settings,
            "machine": machine,
            "minutes": round((time.monotonic() - self.begun) / 60, 1),
            "reader": scores,
            "log": (self.folder / "log.txt").read_text().splitlines()[-400:],
        }
        write_package(self.folder, self.folder / "package", provenance)

    def stage(self, name: str, work: Callable[[], Any]) -> None:
        """Run a stage unless its result is on disk."""
        if (self.folder / name).exists():
            self.report(f"{name}: kept")
            return
        work()
        self.report(f"{name}: done")

    def text(self) -> None:
        """Train tokenizers and text encoders."""
        parts = train_text(self.options.text_steps, self.options.seed, self.report)
        for part, name in zip(parts, ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2"), strict=True):
            part.save_pretrained(self.folder / name)

    def sharpen(self, vae: AutoencoderKL) -> None:
        """Continue training the decoder, after the UNet's stage has its latents."""
        sharp = sharpen_vae(vae, self.options.decoder_steps, self.options.seed, self.report)
        sharp.save_pretrained(self.folder / "vae-sharp")

    def reader(self, vae: AutoencoderKL) -> None:
        """Train the attribute reader."""
        reader = train_reader(vae, self.options.reader_steps, self.options.seed, self.report)
        save_file(reader.state_dict(), self.folder / "reader.safetensors")

    def unet(self, vae: AutoencoderKL) -> None:
        """Train the UNet; snapshots of the averaged weights are kept."""
        options = self.options
        unet = train_unet(
            vae,
            tuple(CLIPTokenizer.from_pretrained(self.folder / name) for name in ("tokenizer", "tokenizer_2")),
            (
                CLIPTextModel.from_pretrained(self.folder / "text_encoder").eval(),
                CLIPTextModelWithProjection.from_pretrained(self.folder / "text_encoder_2").eval(),
            ),
            steps=options.unet_steps,
            batch=options.batch,
            pool_size=options.pool,
            seed=options.seed,
            device=options.device,
            report=self.report,
            snapshot=lambda average: average.save_pretrained(self.folder / "unet-snapshot"),
        )
        unet.save_pretrained(self.folder / "unet")


if __name__ == "__main__":
    main()
