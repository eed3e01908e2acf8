"""Callbacks of training: each iteration goes to the trackers, and previews are made when they are due."""

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
class CallbackOptions:
    """Options of the callbacks; they do not change what is trained, so a run may be resumed with others.

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


NO_CALLBACKS = CallbackOptions()


class Callbacks:
    """Pass every iteration to trackers and previews.

    Args:
        options: Trackers, and how often a preview is made.
        run: The run; trackers and previews write to its folder.
        settings: Settings of the run.
        base: The base model.
        loaded: The loaded base model.
        teacher: The teacher, for the previews.
        reporter: Receives where to look, and failures.
    """

    def __init__(
        self,
        options: CallbackOptions,
        run: Run,
        settings: Settings,
        base: Base,
        loaded: LoadedBase,
        teacher: EvalModel,
        reporter: Reporter,
    ) -> None:
        self._options, self._run, self._settings, self._reporter = options, run, settings, reporter
        self._trackers: Trackers | None = None  # opened by the first iteration
        self._previews: Previews | None = None
        if options.preview_every:
            self._previews = Previews(options.preview_every, run, settings, base, loaded, teacher, reporter)

    def on_iteration(self, line: dict[str, Any]) -> None:
        """Handle an iteration.

        Args:
            line: The iteration's line in the log, as JSON values.
        """
        folder, iteration = self._run.folder, line["iteration"]
        if self._trackers is None:
            recipe = self._settings.recipe()
            self._trackers = Trackers(self._options.trackers, folder, folder.name, recipe, self._reporter)
        self._trackers.log(iteration, flatten(line))
        sheet = self._previews.make_if_due(iteration + 1) if self._previews else None
        if sheet:
            self._trackers.show(iteration, sheet)

    def close(self) -> None:
        """Close the trackers."""
        if self._trackers is not None:
            self._trackers.close()
