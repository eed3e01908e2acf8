"""Samples of one model for numbered prompts: no stop loses any, and several processes share the work."""

import contextlib
import hashlib
import json
import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rapm_cli.bases import LoadedBase
from rapm_cli.bases.places import features_dir, samples_dir
from rapm_cli.core.common.errors import DiskError, InputError, OutOfMemoryError, require_shortage
from rapm_cli.core.common.progress import Pace, Reporter
from rapm_cli.core.method.sizes import size_name
from rapm_cli.core.method.trajectories import initial_noise
from rapm_cli.core.network.backbone import Conditioning
from rapm_cli.core.storage.commit import read_manifest
from rapm_cli.core.storage.files import sweep
from rapm_cli.evaluate.chunk_cache import ChunkCache, is_intact, read_tensors
from rapm_cli.evaluate.models import EvalModel
from rapm_cli.evaluate.plan import USUAL_NOISE, SamplePlan
from rapm_cli.extractors.preparation import ImageArray
from rapm_cli.metrics.metric import LabelledSamples, TeacherDifference
from rapm_cli.runs import signals
from rapm_cli.runs.images import png_bytes
from rapm_cli.runs.lock import CLAIM, POLL_SECONDS, try_lock
from rapm_cli.runs.versions import versions

FORMAT = 1  # counts up when the code makes other images from the same settings
POSITIONS, FEATURES = "positions.safetensors", "readings.safetensors"
ROUNDINGS: dict[str, Callable[[Tensor], Tensor]] = {"nearest": Tensor.round, "down": Tensor.floor}


@dataclass(frozen=True)
class SampleSet:
    """A model's samples for a plan. `sampled` finds or makes them; everything else reads what is kept.

    Args:
        model: The model.
        plan: The plan.
        other: Samples of the same model with other noise; None if there are none.
    """

    model: EvalModel
    plan: SamplePlan
    other: "SampleSet | None" = None

    @cached_property
    def folder(self) -> Path:
        """Folder of the images; a longer list of prompts continues in the same folder."""
        plan = self.plan
        key = [self.model.identity, plan.seed, plan.batch, plan.preparation.spec, plan.rounding, FORMAT]
        key += [plan.purpose] if plan.purpose != USUAL_NOISE else []
        key += [size_name(plan.size)] if plan.size else []
        return samples_dir() / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]

    def image(self, k: int) -> ImageArray:
        """Return the kept image of prompt `k`.

        Raises:
            InputError: The file cannot be read any more.
        """
        from PIL import Image

        path = self.folder / self._image_chunk(self.plan.chunks[k // self.plan.batch]) / _file(k)
        try:
            with Image.open(path) as image:
                return np.asarray(image)
        except OSError as error:  # somebody removed it since
            raise InputError(f"{path} cannot be read any more", "give the same command again") from error

    def readers(self, count: int | None = None) -> list[Callable[[], ImageArray]]:
        """Return functions that read the first `count` kept images, or all of them."""
        return [partial(self.image, k) for k in range(self.plan.images if count is None else count)]

    def difference(self, teacher: "SampleSet") -> TeacherDifference | None:
        """Return the differences from the teacher's samples, as far as both are kept; None if they are not."""
        images, positions = [], []
        for k in range(self.compared(teacher)):
            off = self.image(k).astype(np.float64) - teacher.image(k)
            images.append(float(np.sqrt((off**2).mean())))
        for chunk in (chunk for chunk in self.plan.chunks if chunk.start < self.plan.positions):
            off_edges = (self._positions(chunk) - teacher._positions(chunk))[:, :-1]  # the noise is the same
            positions.append(off_edges.square().mean(dim=(2, 3, 4)).sqrt())
        if not images:
            return None
        edges = torch.cat(positions) if positions else None
        return TeacherDifference(torch.tensor(images, dtype=torch.float64), edges)

    def compared(self, teacher: "SampleSet") -> int:
        """Return the number of first prompts whose images both sets keep."""
        return min(self.plan.images, teacher.plan.images)

    def positions(self) -> Tensor:
        """Return (K, N + 1, C, h, w) kept latents by slot edge; the last edge is the noise."""
        kept = (chunk for chunk in self.plan.chunks if chunk.start < self.plan.positions)
        return torch.cat([self._positions(chunk) for chunk in kept])

    def _positions(self, chunk: range) -> Tensor:
        """Return (B, N + 1, C, h, w) kept latents of a batch by slot edge."""
        return read_tensors(self.folder / self._image_chunk(chunk), POSITIONS)["positions"]

    @cached_property
    def _features(self) -> list[dict[str, Tensor]]:
        """Features, right answers and seconds of every batch."""
        return [read_tensors(features_dir() / self._feature_chunk(chunk), FEATURES) for chunk in self.plan.chunks]

    def labelled(self) -> LabelledSamples | None:
        """Return features and answers for all prompts; None if the prompts have no labels."""
        labels = self.plan.labels
        if labels is None:
            return None
        features, right = (torch.cat([chunk[name] for chunk in self._features]) for name in ("features", "right"))
        reference = torch.cat([labels.reference(chunk) for chunk in self.plan.chunks])
        return LabelledSamples(features, right, labels.known.asked[: len(features)], reference)

    @cached_property
    def _about(self) -> list[dict[str, Any]]:
        """Seconds and versions of every batch whose images are kept."""
        chunks = (chunk for chunk in self.plan.chunks if chunk.start < self.plan.images)
        return [read_manifest(self.folder / self._image_chunk(chunk)).about for chunk in chunks]

    def seconds(self) -> float:
        """Return the seconds for one image, from prompt to pixels."""
        if self.plan.labels:
            return sum(float(chunk["seconds"]) for chunk in self._features) / len(self.plan.prompts)
        return float(sum(about["seconds"] for about in self._about)) / len(self.plan.prompts)

    def versions(self) -> list[dict[str, str]]:
        """Return the versions of the libraries that made the images; several if they changed meanwhile."""
        found = {json.dumps(about["versions"], sort_keys=True): about["versions"] for about in self._about}
        return list(found.values())

    def sampled(
        self, loaded: LoadedBase, reporter: Reporter, *, share: tuple[int, int] = (0, 1), is_strict: bool = False
    ) -> "SampleSet":
        """Sample what is missing, and keep every batch at once.

        Args:
            loaded: Base of the model, with the LoRA attached if the model is a student.
            reporter: Reporter of progress.
            share: Number of this process, and number of processes that were started together. Each begins with other
                batches; processes that were started by themselves share the rest.
            is_strict: Whether damage to kept batches is an error; otherwise they are sampled again.

        Returns:
            The same set without its network, so that the next model has the memory.

        Raises:
            OutOfMemoryError: A batch does not fit.
            InputError: Not all values of an image are finite.
            DamagedError: A kept batch is damaged, and `is_strict`.
            Stopped: A signal came; all batches so far are kept.
        """
        for folder in {self.folder, self._claims}:
            sweep(folder)
        missing = [chunk for chunk in self.plan.chunks if not self._is_kept(chunk, reporter, is_strict)]
        total, left = len(self.plan.prompts), sum(map(len, missing))
        if left < total:
            of = f" of {self.plan.name}" if self.plan.labels else ""
            reporter.say(f"{self.model.title}: {total - left:,} of {total:,} samples{of} are already there")
        if missing:
            self._sample_missing(missing, loaded, reporter, share, done=total - left)
        for left_by_a_killed_process in self._claims.glob(f"*{CLAIM}"):
            # A claim of another user stays where it is.
            with contextlib.suppress(DiskError), try_lock(left_by_a_killed_process, remove=True):
                pass
        return replace(self, model=replace(self.model, sample=_already_sampled))

    @property
    def _claims(self) -> Path:
        """Folder of the files that tell which process samples a batch."""
        return features_dir() if self.plan.labels else self.folder

    def _sample_missing(
        self, missing: list[range], loaded: LoadedBase, reporter: Reporter, share: tuple[int, int], done: int
    ) -> None:
        """Sample this process's own batches first; a batch that another process has comes back to the queue."""
        numbers, others = {chunk: k for k, chunk in enumerate(self.plan.chunks)}, random.Random(os.getpid())
        left = deque(sorted(missing, key=lambda c: (numbers[c] % share[1] != share[0], others.random())))
        bar = reporter.bar(self.model.title, len(self.plan.prompts), "image", loaded.device, done=done)
        pace = Pace()
        with bar as shown, signals.deferred(f"these {len(missing[0])} images", pace.seconds_left):
            taken = 0  # batches in a row that other processes have
            while left:
                chunk = left.popleft()
                with try_lock(self._claims / f"{self._claim(chunk)}{CLAIM}", remove=True) as is_mine:
                    if is_mine and not self._is_intact(chunk):
                        pace.begin()
                        self._make(chunk, loaded, reporter)
                        pace.end()
                if is_mine:
                    shown.advance(len(chunk), note=self.plan.name)
                    taken = 0
                else:
                    left.append(chunk)
                    taken += 1
                    signals.pause(POLL_SECONDS if taken >= len(left) else 0)
                signals.check("all samples so far are kept", "resume with: the same command")

    def _make(self, chunk: range, loaded: LoadedBase, reporter: Reporter) -> None:
        """Sample a batch, and keep its images and its answers as far as the plan wants them."""
        begun = time.perf_counter()
        plan, shape = self.plan, loaded.latent_shape_of(self.plan.size)
        noise = initial_noise(plan.seed, plan.purpose, list(chunk), shape).to(loaded.device)
        prompts = [plan.prompts[k] for k in chunk]
        try:
            positions = self.model.sample(noise, loaded.encode(prompts, size=plan.size).to(loaded.device))
            images = loaded.decode(positions[0])
        except RuntimeError as error:
            raise OutOfMemoryError(
                f"{len(chunk)} images at once do not fit", f"give --batch-size below {self.plan.batch}"
            ) from require_shortage(error)
        seconds = time.perf_counter() - begun
        about = {"seconds": seconds, "versions": versions()}
        for folder, name, _ in self._places(chunk):
            are_features = folder == features_dir()
            files = (
                self._feature_files(chunk, images, seconds)
                if are_features
                else self._image_files(chunk, images, positions)
            )
            ChunkCache(folder, reporter).keep(name, files, about)

    def _feature_files(self, chunk: range, images: Tensor, seconds: float) -> dict[str, bytes]:
        from safetensors.torch import save

        assert self.plan.labels is not None
        return {FEATURES: save(self.plan.labels.read(chunk, images) | {"seconds": torch.tensor(seconds)})}

    def _image_files(self, chunk: range, images: Tensor, positions: list[Tensor]) -> dict[str, bytes]:
        from safetensors.torch import save

        if not torch.isfinite(images).all():
            raise InputError(
                f"{self.model.title}: not all values of images {chunk.start} to {chunk.stop - 1} are finite",
                "give --precision bf16 or fp32",
            )
        files = {_file(k): self._png(image) for k, image in zip(chunk, images, strict=True)}
        if chunk.start < self.plan.positions:
            files[POSITIONS] = save({"positions": torch.stack(positions, dim=1).float().cpu().contiguous()})
        return files

    def _png(self, image: Tensor) -> bytes:
        from PIL import Image

        rounded = ROUNDINGS[self.plan.rounding](image * 255).byte().permute(1, 2, 0).numpy()
        return png_bytes(Image.fromarray(self.plan.preparation(rounded)))

    def _places(self, chunk: range) -> Iterator[tuple[Path, str, list[str]]]:
        """Yield folder, name, and some files of every commit that a batch is kept in."""
        if self.plan.labels:
            yield features_dir(), self._feature_chunk(chunk), [FEATURES]
        if chunk.start < self.plan.images:
            yield self.folder, self._image_chunk(chunk), [POSITIONS] if chunk.start < self.plan.positions else []

    def _is_kept(self, chunk: range, reporter: Reporter, is_strict: bool) -> bool:
        places = self._places(chunk)
        return all(ChunkCache(folder, reporter, is_strict).has(name, *files) for folder, name, files in places)

    def _is_intact(self, chunk: range) -> bool:
        return all(is_intact(folder / name, *files) for folder, name, files in self._places(chunk))

    def _image_chunk(self, chunk: range) -> str:
        prompts = json.dumps([self.plan.prompts[k] for k in chunk])
        return f"{chunk.start:06d}-{hashlib.sha256(prompts.encode()).hexdigest()[:12]}"

    def _feature_chunk(self, chunk: range) -> str:
        assert self.plan.labels is not None
        prompts = [self.plan.prompts[k] for k in chunk]
        key = json.dumps([self.model.identity, self.plan.seed, self.plan.labels.held_out, chunk.start, prompts])
        return hashlib.sha256(key.encode()).hexdigest()[:24]

    def _claim(self, chunk: range) -> str:
        return self._feature_chunk(chunk) if self.plan.labels else f"{chunk.start:06d}"


def _already_sampled(z: Tensor, cond: Conditioning) -> list[Tensor]:
    raise AssertionError("the samples were made")


def _file(k: int) -> str:
    return f"{k:06d}.png"
