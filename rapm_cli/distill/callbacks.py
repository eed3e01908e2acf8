"""Callbacks of training: each iteration goes to the trackers, and previews are made when they are due."""

from typing import Any

from rapm_cli.bases import Base, LoadedBase
from rapm_cli.core.common.progress import Reporter
from rapm_cli.distill.previews import Previews
from rapm_cli.distill.trackers import Trackers, flatten
from rapm_cli.evaluate.models import EvalModel
from rapm_cli.runs.run import Run
from rapm_cli.runs.settings import Settings


class Callbacks:
    """Pass every iteration to trackers and previews.

    Args:
        run: The run; trackers and previews write to its folder.
        settings: Settings of the run; they name the trackers and say how often a preview is made.
        base: The base model.
        loaded: The loaded base model.
        teacher: The teacher, for the previews.
        reporter: Receives where to look, and failures.
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
        self._run, self._settings, self._reporter = run, settings, reporter
        self._trackers: Trackers | None = None  # opened by the first iteration
        self._previews: Previews | None = None
        if settings.preview_every:
            self._previews = Previews(run, settings, base, loaded, teacher, reporter)

    def on_iteration(self, line: dict[str, Any]) -> None:
        """Handle an iteration.

        Args:
            line: The iteration's line in the log, as JSON values.
        """
        folder, iteration = self._run.folder, line["iteration"]
        if self._trackers is None:
            recipe = self._settings.recipe()
            self._trackers = Trackers(self._settings.report_to, folder, folder.name, recipe, self._reporter)
        self._trackers.log(iteration, flatten(line))
        sheet = self._previews.make_if_due(iteration + 1) if self._previews else None
        if sheet:
            self._trackers.show(iteration, sheet)

    def close(self) -> None:
        """Close the trackers."""
        if self._trackers is not None:
            self._trackers.close()
