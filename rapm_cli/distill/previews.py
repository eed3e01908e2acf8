"""Previews: contact sheets that the student samples during training, beside its teacher's images."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from rapm_cli.bases import Base, LoadedBase
from rapm_cli.core.common.errors import DiskError, require_shortage
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.method import sampler_of
from rapm_cli.core.method.config import to_json
from rapm_cli.core.method.samplers import sample_student
from rapm_cli.core.storage.files import make_folder, replace_file
from rapm_cli.distill.memory_plan import free_memory
from rapm_cli.evaluate.contact_sheet import Scenes, fixed_scenes
from rapm_cli.evaluate.models import EvalModel, SampleFunction
from rapm_cli.runs.checkpoints import checkpoint_name
from rapm_cli.runs.images import contact_sheet, png_bytes
from rapm_cli.runs.run import Run
from rapm_cli.runs.settings import Settings

if TYPE_CHECKING:
    from PIL.Image import Image

COLUMNS = 4  # prompts of a sheet, if the user gives none


class Previews:
    """Make a contact sheet at a fixed interval, without changing training.

    The teacher's row is sampled here, before 8-bit rounding.

    Args:
        run: The run; its folder receives the sheets.
        settings: Settings of the run.
        base: The base model.
        loaded: The loaded base model.
        teacher: The teacher; it samples the first row.
        reporter: Receives a warning when no more sheets can be made.
    """

    def __init__(
        self,
        run: Run,
        settings: Settings,
        base: Base,
        loaded: LoadedBase,
        teacher: EvalModel,
        reporter: Reporter,
    ) -> None:
        self._every, self._folder, self._loaded, self._reporter = settings.preview_every, run.previews, loaded, reporter
        self._num_slots, self._title = settings.teacher.num_slots, teacher.title
        self._sampler = sampler_of(to_json(settings.training))
        seed, prompts = settings.teacher.seed, list(settings.preview_prompts)
        if prompts:
            self._scenes = Scenes.of(prompts, loaded, seed, settings.teacher)
        else:
            self._scenes = fixed_scenes(base, loaded, seed, settings.prompts, COLUMNS, settings.teacher)
        self._teacher = self._sample(teacher.sample)

    def make_if_due(self, done: int) -> "Image | None":
        """Make a sheet, write it to the run folder and return it, or return None if none is due or it fails.

        Args:
            done: Number of iterations done.
        """
        if self._every == 0 or done % self._every:
            return None
        path = self._folder / f"{checkpoint_name(done)}.png"
        try:
            sheet = self._sheet(done)
            make_folder(self._folder)
            replace_file(path, png_bytes(sheet))
            return sheet
        except RuntimeError as error:
            require_shortage(error)
            reason = "they do not fit in memory beside training"
        except OSError as error:
            reason = DiskError.of(error, path).message
        self._disable(reason)  # after the error is released, whose frames hold the sheet
        return None

    def _sheet(self, done: int) -> "Image":
        backbone, num_slots, sampler = self._loaded.backbone, self._num_slots, self._sampler
        student = self._sample(lambda z, cond: sample_student(backbone.student, z, cond, num_slots, sampler))
        title = f"student, {self._num_slots} steps, after {done} iterations"
        rows = {self._title: self._teacher, title: student}
        backbone.reset_graphs()  # frees the memory of training's CUDA graphs for the autoencoder
        free_memory(self._loaded.device)
        try:
            decoded = {name: self._decoded(latents) for name, latents in rows.items()}
            return contact_sheet(decoded, self._scenes.prompts)
        finally:
            self._loaded.offload()  # else a large card keeps the autoencoder, which the memory plan does not count

    def _sample(self, sample: SampleFunction) -> Sequence[Tensor]:
        """Return (C, h, w) latents on the CPU; sampled one by one, because training holds most of the memory."""
        device, one_by_one = self._loaded.device, self._scenes.batches(1)
        return [sample(noise.to(device), cond.to(device))[0][0].cpu() for noise, cond in one_by_one]

    def _decoded(self, latents: Sequence[Tensor]) -> Sequence[Tensor]:
        return [self._loaded.decode(z[None].to(self._loaded.device))[0] for z in latents]

    def _disable(self, reason: str) -> None:
        self._every = 0
        free_memory(self._loaded.device)
        self._reporter.warn(f"there are no more previews: {reason}")
