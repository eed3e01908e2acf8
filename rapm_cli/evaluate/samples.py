"""Pictures of one contestant for numbered prompts: whatever stops the work, none is lost, and none is there twice."""

import contextlib
import hashlib
import json
import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rapm_cli.bases import LoadedBase
from rapm_cli.bases.places import galleries_dir
from rapm_cli.core.common.errors import DamagedError, InputError, OutOfMemoryError, require_shortage
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.method.trajectories import initial_noise
from rapm_cli.core.network.backbone import Conditioning
from rapm_cli.core.storage.commit import commit, read_commit, read_manifest, remove_commit, verify
from rapm_cli.core.storage.files import sweep
from rapm_cli.evaluate.models import EvalModel
from rapm_cli.extractors.preparation import Picture, Preparation
from rapm_cli.runs import signals
from rapm_cli.runs.images import png_bytes
from rapm_cli.runs.lock import POLL_SECONDS, locked, try_lock
from rapm_cli.runs.retry import with_retries
from rapm_cli.runs.versions import versions

FORMAT = 1  # counts up when the code makes other pictures from the same settings
PURPOSE = "evaluation"  # of the noise
POSITIONS, CLAIM = "positions.safetensors", ".claim"
ROUNDINGS: dict[str, Callable[[Tensor], Tensor]] = {"nearest": Tensor.round, "down": Tensor.floor}


@dataclass(frozen=True)
class Plan:
    """What is drawn, the same for every contestant.

    Args:
        prompts: By number.
        seed: Of the noise, which is a function of it and of the prompt's number alone.
        batch: Prompts that are drawn and kept together; the last bits of a picture depend on it.
        preparation: Of every picture.
        rounding: Of values to bytes, a name from `ROUNDINGS`.
    """

    prompts: Sequence[str]
    seed: int
    batch: int
    preparation: Preparation
    rounding: str = "nearest"

    @property
    def chunks(self) -> list[range]:
        """The numbers of the prompts of each batch."""
        return [range(k, min(k + self.batch, len(self.prompts))) for k in range(0, len(self.prompts), self.batch)]


@dataclass(frozen=True)
class Gallery:
    """A contestant's pictures, drawn or not yet.

    Args:
        contestant: Who draws.
        plan: What.
        walked: Of the first so many prompts, keep the latents at the slot edges too.
    """

    contestant: EvalModel
    plan: Plan
    walked: int = 0

    @cached_property
    def folder(self) -> Path:
        """Where they are; a longer list of prompts goes on in the same folder."""
        plan, who = self.plan, self.contestant.identity
        key = [who, plan.seed, plan.batch, plan.preparation.spec, plan.rounding, FORMAT]
        return galleries_dir() / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]

    def place(self, chunk: range) -> Path:
        """The commit of one batch."""
        prompts = json.dumps([self.plan.prompts[k] for k in chunk])
        return self.folder / f"{chunk.start:06d}-{hashlib.sha256(prompts.encode()).hexdigest()[:12]}"

    def is_drawn(self, chunk: range) -> bool:
        """Whether a batch is there, by its manifest, with its positions where they are wanted."""
        with contextlib.suppress(DamagedError):
            names = read_manifest(self.place(chunk), self.place(chunk).name).files
            return chunk.start >= self.walked or POSITIONS in names
        return False

    def readers(self) -> Iterator[Callable[[], Picture]]:
        """What reads each picture, in order; `drawn` has found or made them all."""
        for chunk in self.plan.chunks:
            for k in chunk:
                yield partial(self.picture, chunk, k)

    def picture(self, chunk: range, k: int) -> Picture:
        """Picture `k`, of the batch that it was drawn in."""
        from PIL import Image

        path = self.place(chunk) / _name(k)
        try:
            with Image.open(path) as image:
                return np.asarray(image)
        except OSError as error:  # somebody removed it since
            raise InputError(f"{path} cannot be read any more", "give the same command again") from error

    def positions(self, chunk: range) -> Tensor:
        """(B, N + 1, C, h, w) latents of a batch by slot edge, of those that were kept."""
        from safetensors.torch import load

        held: Tensor = load(read_commit(self.place(chunk), self.place(chunk).name)[1][POSITIONS])["positions"]
        return held

    @cached_property
    def _about(self) -> list[dict[str, Any]]:
        """What every batch says of itself."""
        return [read_manifest(self.place(chunk)).about for chunk in self.plan.chunks]

    def seconds(self) -> float:
        """That a picture took, from prompt to bytes."""
        return float(sum(about["seconds"] for about in self._about)) / len(self.plan.prompts)

    def versions(self) -> list[dict[str, str]]:
        """Of the libraries that drew the pictures; more than one where they changed meanwhile."""
        return list(
            {json.dumps(about["versions"], sort_keys=True): about["versions"] for about in self._about}.values()
        )

    def drawn(self, loaded: LoadedBase, reporter: Reporter, *, share: tuple[int, int] = (0, 1)) -> "Gallery":
        """The gallery once all is there: what is not is drawn, and every batch kept as soon as it is.

        What is returned holds no network any more, so that the next contestant has the memory.

        Args:
            loaded: The base, with the LoRA attached where a student draws.
            reporter: Sees the bar.
            share: This process's number among how many that were started together; each begins with batches of its
                own. Others may have been started by themselves. All end when everything is there.

        Raises:
            OutOfMemoryError: A batch does not fit.
            Stopped: A signal came; what was drawn is kept.
        """
        sweep(self.folder)
        missing = [chunk for chunk in self.plan.chunks if not self._is_sound(chunk, reporter)]
        total, left = len(self.plan.prompts), sum(map(len, missing))
        if left < total:
            reporter.say(f"{self.contestant.title}: {total - left:,} of {total:,} pictures are there")
        if missing:
            self._draw(missing, loaded, reporter, share, done=total - left)
        for left_by_a_killed_one in self.folder.glob(f"*{CLAIM}"):
            with try_lock(left_by_a_killed_one, remove=True):
                pass
        return replace(self, contestant=replace(self.contestant, walk=_no_walk))

    def _draw(
        self, missing: list[range], loaded: LoadedBase, reporter: Reporter, share: tuple[int, int], done: int
    ) -> None:
        """Batches of this process's own first; one that another process is at is left until that ends."""
        numbers, others = {chunk: k for k, chunk in enumerate(self.plan.chunks)}, random.Random(os.getpid())
        left = deque(sorted(missing, key=lambda c: (numbers[c] % share[1] != share[0], others.random())))
        bar = reporter.bar(self.contestant.title, len(self.plan.prompts), "picture", loaded.device, done=done)
        with bar as shown, signals.deferred(f"these {len(missing[0])} pictures"):
            taken = 0  # in a row, by other processes
            while left:
                chunk = left.popleft()
                with try_lock(self.folder / f"{chunk.start:06d}{CLAIM}", remove=True) as is_mine:
                    if is_mine and not self.is_drawn(chunk):
                        begun = time.perf_counter()
                        files = self._files(chunk, loaded)
                        self._keep(chunk, files, time.perf_counter() - begun, reporter)
                if is_mine:
                    shown.advance(len(chunk))
                    taken = 0
                else:
                    left.append(chunk)
                    taken += 1
                    signals.pause(POLL_SECONDS if taken >= len(left) else 0)
                signals.check("every picture that was drawn is kept", "resume with: the same command")

    def _is_sound(self, chunk: range, reporter: Reporter) -> bool:
        """Whether every byte of a batch is what was kept."""
        place = self.place(chunk)
        if not place.exists():
            return False
        try:
            verify(place, place.name)
        except DamagedError as error:
            reporter.warn(f"{error.message}; drawing its pictures again")
            with (
                locked(self.folder, reporter, "Ctrl-C leaves", is_patient=True),
                contextlib.suppress(FileNotFoundError),
            ):
                remove_commit(place)
            return False
        return self.is_drawn(chunk)

    def _files(self, chunk: range, loaded: LoadedBase) -> dict[str, bytes]:
        from safetensors.torch import save

        noise = initial_noise(self.plan.seed, PURPOSE, list(chunk), loaded.latent_shape).to(loaded.device)
        prompts = [self.plan.prompts[k] for k in chunk]
        try:
            positions = self.contestant.walk(noise, loaded.encode(prompts).to(loaded.device))
            pictures = loaded.decode(positions[0])
        except RuntimeError as error:
            raise OutOfMemoryError(
                f"{len(chunk)} pictures at once do not fit", f"give --batch-size below {self.plan.batch}"
            ) from require_shortage(error)
        if not torch.isfinite(pictures).all():
            raise InputError(
                f"{self.contestant.title}: not all values of pictures {chunk.start} to {chunk.stop - 1} are finite",
                "give --precision bf16 or fp32",
            )
        files = {_name(k): self._png(picture) for k, picture in zip(chunk, pictures, strict=True)}
        if chunk.start < self.walked:
            files[POSITIONS] = save({"positions": torch.stack(positions, dim=1).float().cpu().contiguous()})
        return files

    def _png(self, picture: Tensor) -> bytes:
        from PIL import Image

        rounded = ROUNDINGS[self.plan.rounding](picture * 255).byte().permute(1, 2, 0).numpy()
        return png_bytes(Image.fromarray(self.plan.preparation(rounded)))

    def _keep(self, chunk: range, files: dict[str, bytes], seconds: float, reporter: Reporter) -> None:
        place = self.place(chunk)

        def write() -> None:
            with locked(self.folder, reporter, "Ctrl-C leaves", is_patient=True):  # another may have drawn the same
                if not self.is_drawn(chunk):
                    about = {"seconds": seconds, "versions": versions()}
                    commit(place, files, fingerprint=place.name, about=about)

        size = sum(map(len, files.values()))
        with_retries(write, place, size, reporter, "what was drawn before is kept", "free space, and go on")


def _no_walk(z: Tensor, cond: Conditioning) -> list[Tensor]:
    raise AssertionError("the gallery was drawn")


def _name(k: int) -> str:
    return f"{k:06d}.png"
