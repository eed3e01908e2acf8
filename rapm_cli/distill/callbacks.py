"""Who is told of a training while it lasts, beside its log: trackers, and people who look at previews."""

from dataclasses import dataclass
from typing import Any

from rapm_cli.bases import Base, LoadedBase
from rapm_cli.core.common.errors import ConfigError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.distill.previews import Previews
from rapm_cli.distill.trackers import Trackers, check_trackers, flatten
from rapm_cli.evaluate.models import EvalModel
from rapm_cli.runs.run import Run
from rapm_cli.runs.settings import Settings


@dataclass(frozen=True)
class Reporting:
    """What is wanted. It makes no other run: what is trained is the same.

    Args:
        trackers: Names from `TRACKERS`.
        preview_every: Iterations from one preview to the next; 0 for none.

    Raises:
        ConfigError: A tracker is unknown or not installed, or the number is negative.
    """

    trackers: tuple[str, ...] = ()
    preview_every: int = 0

    def __post_init__(self) -> None:
        check_trackers(self.trackers)
        if self.preview_every < 0:
            raise ConfigError(f"--preview-every {self.preview_every} is out of range", "give 0 for none, or more")


NO_REPORTS = Reporting()


class Reports:
    """Hands every iteration on. Made before a LoRA is attached, because the teacher draws for the previews.

    Args:
        wanted: Which trackers, and how many previews.
        run: The run, whose folder they write to.
        settings: Of the run.
        base: The base model.
        loaded: The same, loaded.
        teacher: As it draws.
        reporter: Is told where to look, and of failures.
    """

    def __init__(
        self,
        wanted: Reporting,
        run: Run,
        settings: Settings,
        base: Base,
        loaded: LoadedBase,
        teacher: EvalModel,
        reporter: Reporter,
    ) -> None:
        self._wanted, self._run, self._settings, self._reporter = wanted, run, settings, reporter
        self._trackers: Trackers | None = None  # until there is something to track
        self._previews: Previews | None = None
        if wanted.preview_every:
            self._previews = Previews(wanted.preview_every, run, settings, base, loaded, teacher, reporter)

    def take(self, line: dict[str, Any]) -> None:
        """An iteration, as its line in the log."""
        folder, iteration = self._run.folder, line["iteration"]
        if self._trackers is None:
            recipe = self._settings.recipe()
            self._trackers = Trackers(self._wanted.trackers, folder, folder.name, recipe, self._reporter)
        self._trackers.log(iteration, flatten(line))
        picture = self._previews.after(iteration + 1) if self._previews else None
        if picture:
            self._trackers.show(iteration, picture)

    def close(self) -> None:
        """There are no more."""
        if self._trackers is not None:
            self._trackers.close()
