"""Prompts with a known answer: scenes to draw, and the reader that tells what a picture shows of them."""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from rapm_cli.bases.base import Exam
from rapm_cli.bases.demo.captions import caption
from rapm_cli.bases.demo.draw import draw
from rapm_cli.bases.demo.reader import Reader
from rapm_cli.bases.demo.world import SECOND, labels, random_scenes
from rapm_cli.core.common.randomness import generator_for


@cache
def load_reader(path: Path) -> Reader:
    """The shipped attribute reader, in float32 on the CPU."""
    from safetensors.torch import load_file

    reader = Reader().eval().requires_grad_(False)
    reader.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return reader


def set_exam(reader_path: Path, start: int, count: int, seed: int, held_out: bool) -> Exam:
    """Questions `start` to `start + count` of an endless exam.

    Args:
        reader_path: Weights of the reader.
        start: First question; those before it are skipped, so parts of an exam can be set one by one.
        count: How many questions.
        seed: Which exam.
        held_out: Whether its scenes are those that no training saw, or the others.
    """
    reader = load_reader(reader_path)
    scenes = random_scenes(start + count, generator_for(seed, "exam", int(held_out)), held_out=held_out)[start:]
    target = labels(scenes)
    asked = torch.ones_like(target, dtype=torch.bool)
    asked[[scene.second is None for scene in scenes], SECOND] = False

    @torch.no_grad()
    def read(pictures: Tensor) -> tuple[Tensor, Tensor]:
        parts = pictures.split(32)
        features = torch.cat([reader.features(part) for part in parts])
        return features, torch.cat([reader.read(part) for part in parts]) == target

    drawn = torch.cat(
        [draw([scene], generator_for(seed, "exam drawing", int(held_out), start + k)) for k, scene in enumerate(scenes)]
    )
    return Exam([caption(scene) for scene in scenes], asked, read(drawn)[0], read)
