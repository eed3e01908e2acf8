"""The demo base: its weights ship in the package and are checked by sha256 before they are loaded."""

import hashlib
import json
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from rapm_cli.bases.architectures import architecture_of
from rapm_cli.bases.base import BASES, Base, Defaults, LabelledPrompts
from rapm_cli.bases.demo.captions import UNDERSTANDS, caption, phrases, unknown_words
from rapm_cli.bases.demo.draw import draw
from rapm_cli.bases.demo.world import SECOND, Scene, labels, random_scenes
from rapm_cli.bases.places import DEMO_LORA, DEMO_WEIGHTS
from rapm_cli.bases.weights import Weights
from rapm_cli.core.common.errors import InputError
from rapm_cli.core.common.randomness import generator_for
from rapm_cli.core.storage.files import file_sha256

WEIGHTS, STUDENT = DEMO_WEIGHTS, DEMO_LORA.name
FORMER_STUDENTS = frozenset({"fc48103bdc80afce9a74062da9c7190d8ec72626ba91116008dec447fde54c46"})  # the same tensors


@cache
def verified(folder: Path = WEIGHTS) -> Path:
    """Return the folder of the weights after checking every file's recorded sha256.

    Raises:
        InputError: A file is missing or differs.
    """
    remedy = "install rapm again, or restore the folder from the repository"
    try:
        sums = json.loads((folder / "checksums.json").read_text())
        for name, expected in sums.items():
            if file_sha256(folder / name) != expected:
                raise InputError(f"{folder / name} is damaged: its sha256 differs from the recorded one", remedy)
    except OSError as error:
        raise InputError(f"the demo base is incomplete: {error.filename} cannot be read", remedy) from error
    return folder


def identity() -> str:
    """Return a hash of the recorded checksums, which identifies the base's weights."""
    sums = json.loads((verified() / "checksums.json").read_text())
    about = repr([item for item in sums.items() if item[0] != STUDENT])
    return hashlib.sha256(about.encode()).hexdigest()[:16]


def training_scenes(count: int, seed: int) -> list[Scene]:
    """Generate scenes for training; never a held-out scene."""
    return random_scenes(count, generator_for(seed, "demo training scenes"), held_out=False)


def training_prompts(count: int, seed: int) -> list[str]:
    """Generate captions for training, in varied wording."""
    wording = generator_for(seed, "demo training wording")
    return [text for text, _ in phrases(training_scenes(count, seed), wording)]


def labelled_prompts(count: int, seed: int, held_out: bool) -> LabelledPrompts:
    """Return the first `count` prompts of an endless list, with what their images must show.

    Args:
        count: Number of prompts; a longer list begins with a shorter one.
        seed: Seed of the list.
        held_out: True for scenes that no training sees, False for the others.
    """
    scenes = random_scenes(count, generator_for(seed, "exam", int(held_out)), held_out=held_out)
    classes = labels(scenes)
    asked = torch.ones_like(classes, dtype=torch.bool)
    asked[[scene.second is None for scene in scenes], SECOND] = False

    def true_images(numbers: range) -> Tensor:
        images = [draw([scenes[k]], generator_for(seed, "exam drawing", int(held_out), k)) for k in numbers]
        return torch.cat(images)

    return LabelledPrompts([caption(scene) for scene in scenes], classes, asked, true_images, reader="demo")


def warn(prompt: str) -> str:
    """Return a warning that names words unknown to the demo base, or an empty string."""
    words = unknown_words(prompt)
    if not words:
        return ""
    return f"the demo base does not know {', '.join(words[:5])}; it understands {UNDERSTANDS}"


BASES.add("demo")(
    Base(
        name="demo",
        source="demo",
        defaults=Defaults(
            guidance_scale=2.0,
            fine_steps=10,
            trajectories=128,
            rank=8,
            iterations=120,
            batch_size=8,
            learning_rate=2e-3,
            discriminator_learning_rate=2e-4,
            warmup=3,
            checkpoint_every=20,
            rollout_batch=32,
            image_batch=16,
        ),
        locate=lambda reporter: Weights(verified() / "base", identity()),
        identity=lambda reporter: identity(),
        architecture=lambda reporter: architecture_of(Weights(WEIGHTS / "base", "")),
        training_prompts=training_prompts,
        student=DEMO_LORA,
        former_students=FORMER_STUDENTS,
        labelled_prompts=labelled_prompts,
        warn=warn,
    )
)
