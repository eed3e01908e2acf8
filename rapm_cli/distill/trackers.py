"""Trackers: TensorBoard, Weights & Biases and Trackio, through accelerate. Their files go into the run folder."""

import contextlib
import io
import json
import logging
import os
import shlex
import uuid
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate import tracking

from rapm_cli.core.common.errors import ConfigError, RapmError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.common.registry import Registry
from rapm_cli.core.storage.files import write_file

if TYPE_CHECKING:
    from PIL.Image import Image

PROJECT = "rapm"
PREVIEW = "preview"  # title of the images
# accelerate's own logger needs its PartialState, which sets threads and processes up anew.
tracking.logger = logging.getLogger(tracking.__name__)


# (run folder, run name, recipe as JSON values, first iteration) -> tracker, and the command or address that shows it.
# The trackers of a resumed run continue its record.
Opener = Callable[[Path, str, dict[str, Any], int], tuple[Any, str]]
TRACKERS: Registry[Opener] = Registry("tracker")  # each by the name of its package


class _TensorBoard(tracking.TensorBoardTracker):  # type: ignore[misc]  # accelerate has no types
    main_process_only = False  # or accelerate would ask its PartialState; rapm opens trackers on the main process alone

    def log_images(self, values: dict[str, Any], step: int) -> None:
        super().log_images(values, step, dataformats="NHWC")


@TRACKERS.add("tensorboard")
def _tensorboard(folder: Path, name: str, recipe: dict[str, Any], first: int) -> tuple[Any, str]:
    """Event files; those of iterations from the first on, from before a resume, are hidden."""
    tracker = _TensorBoard("tensorboard", folder, purge_step=first)
    tracker.start()
    tracker.log({"settings": f"```\n{json.dumps(recipe, indent=1)}\n```"}, step=first)
    return tracker, f"tensorboard --logdir {shlex.quote(str(folder / 'tensorboard'))}"


class _Wandb(tracking.WandBTracker):  # type: ignore[misc]  # accelerate has no types
    def log(self, values: dict[str, Any], step: int | None = None, **named: Any) -> None:
        super().log({"iteration": step, **values})  # wandb's own step cannot go back, as training can


@TRACKERS.add("wandb")
def _wandb(folder: Path, name: str, recipe: dict[str, Any], first: int) -> tuple[Any, str]:
    """Weights & Biases; offline if no key is found, because training must not wait for a login.

    The user's WANDB_MODE, WANDB_PROJECT and WANDB_ENTITY are respected. Code, command line, machine and output are not
    uploaded.
    """
    wandb: Any = import_module("wandb")
    place = folder / "wandb"
    place.mkdir(exist_ok=True)
    settings = wandb.setup(wandb.Settings(silent=True)).settings  # all others are the user's
    is_online = settings.mode in ("online", "shared")
    lacks_key = is_online and not wandb.login(prompt=False, verify=False)
    if lacks_key and os.environ.get("WANDB_MODE"):
        raise ConfigError(f"WANDB_MODE is {settings.mode} and there is no API key", "wandb login")
    mode = "offline" if lacks_key else settings.mode
    private = wandb.Settings(
        silent=True,
        console="off",
        save_code=False,
        disable_code=True,
        disable_git=True,
        program="rapm",
        host="",
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )
    tracker = _Wandb(
        settings.project or PROJECT,
        name=name,
        id=_kept_id(place / "run-id"),
        resume=None if mode == "offline" else "allow",  # wandb joins offline parts of one id when they are uploaded
        dir=str(folder),
        config=recipe,
        mode=mode,
        settings=private,
    )
    tracker.start()
    tracker.tracker.define_metric("iteration", hidden=True)
    tracker.tracker.define_metric("*", step_metric="iteration")
    if mode != "offline":
        return tracker, str(tracker.tracker.url or mode)
    why = " (no API key was found)" if lacks_key else ""
    return tracker, f"offline{why}, to upload it: wandb sync {shlex.quote(str(place))}/offline-run-*"


def _kept_id(path: Path) -> str:
    """Return the id in a file, and write a new one if the file is missing; names of runs are not unique."""
    if not path.exists():
        write_file(path, uuid.uuid4().hex[:16].encode())
    return path.read_text()


class _Trackio(tracking.TrackioTracker):  # type: ignore[misc]  # accelerate has no types
    def log_images(self, values: dict[str, Any], step: int) -> None:
        image: Any = import_module("trackio").Image
        self.log({name: image(pixels[0]) for name, pixels in values.items()}, step=step)

    def finish(self) -> None:
        import_module("trackio").finish()  # or Trackio does it when Python ends, and prints


@TRACKERS.add("trackio")
def _trackio(folder: Path, name: str, recipe: dict[str, Any], first: int) -> tuple[Any, str]:
    """Trackio on this machine, or in the place that the user's own variables name."""
    place = os.environ.setdefault("TRACKIO_DIR", str(folder / "trackio"))  # read once, by the first import
    options = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
    tracker = _Trackio(PROJECT, name=name, config=recipe, resume="allow", **options)
    tracker.start()
    return tracker, f"TRACKIO_DIR={shlex.quote(place)} trackio show --project {PROJECT}"


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are unknown or not installed, before any work.

    Raises:
        ConfigError: A tracker is unknown or not installed.
    """
    for name in names:
        TRACKERS[name]
        found = find_spec(name)
        if found is None or found.origin is None:  # a mere folder of that name, such as wandb makes, has no origin
            raise ConfigError(f"tracker {name} is not installed", f"pip install {name}")


class Trackers:
    """Several trackers of one run. A tracker that fails is dropped with a warning; training never stops for it.

    Args:
        names: Names from `TRACKERS`.
        folder: Run folder.
        name: Name of the run.
        recipe: Settings of the run, as JSON values that may leave this machine.
        reporter: Shows where to look, and failures.
    """

    def __init__(
        self, names: Sequence[str], folder: Path, name: str, recipe: dict[str, Any], reporter: Reporter
    ) -> None:
        self._names, self._run, self._reporter = list(dict.fromkeys(names)), (folder, name, recipe), reporter
        self._open: dict[str, Any] = {}
        self._last = -1

    def log(self, iteration: int, values: dict[str, float]) -> None:
        """Record the scalars of an iteration; the first call opens the trackers."""

        def record(name: str) -> None:
            if name == "tensorboard" and iteration <= self._last:  # training returned to a checkpoint
                self._open.pop(name).finish()
            if name not in self._open:
                self._open[name], hint = TRACKERS[name](*self._run, iteration)
                if self._last < 0:
                    self._reporter.say(f"{name}: {hint}")
            self._open[name].log(values, step=iteration)

        self._each(record)
        self._last = iteration

    def show(self, iteration: int, image: "Image") -> None:
        """Record an image of an iteration whose scalars are recorded."""
        pixels = np.asarray(image)[None]  # (1, H, W, 3)
        self._each(lambda name: self._open[name].log_images({PREVIEW: pixels}, step=iteration))

    def close(self) -> None:
        """Write everything to disk."""
        self._each(lambda name: self._open.pop(name).finish() if name in self._open else None)

    def _each(self, act: Callable[[str], object]) -> None:
        for name in list(self._names):
            try:
                with contextlib.redirect_stdout(io.StringIO()):  # stdout is for results; Trackio greets there
                    act(name)
            except Exception as error:  # noqa: BLE001  training continues, whatever a tracker raises
                self._names.remove(name)
                self._open.pop(name, None)
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                remedy = f"; {error.remedy}" if isinstance(error, RapmError) else ""
                self._reporter.warn(f"tracker {name} failed and is left out: {reason}{remedy}")


def flatten(progress_line: dict[str, Any]) -> dict[str, float]:
    """Return a line of metrics.jsonl as scalars, such as "slot3/absolute" or "slot3/logits_real_relative".

    Logits are means over a discriminator's taps. Values that are not finite are left out. "skipped" is 1 for a skipped
    update, else 0.
    """
    if "iteration" not in progress_line:  # training returned to a checkpoint
        return {}
    flat = {"learning_rate": progress_line["learning_rate"], "skipped": float("skipped" in progress_line)}
    for slot in progress_line["slots"]:
        values = dict(slot["distance"])
        for kind in ("adversarial", "discriminator"):
            values |= {f"{kind}_{position}": value for position, value in slot[kind].items()}
        for kind in ("real", "fake"):
            values |= {f"logits_{kind}_{position}": _mean(taps) for position, taps in slot[f"{kind}_logits"].items()}
        flat |= {f"slot{slot['n']}/{name}": value for name, value in values.items() if value is not None}
    return flat


def _mean(values: list[float | None]) -> float | None:
    finite = [value for value in values if value is not None]
    return sum(finite) / len(finite) if finite and len(finite) == len(values) else None
