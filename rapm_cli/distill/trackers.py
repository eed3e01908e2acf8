"""Programs that draw a training's curves, each imported only when it is named; their files go into the run folder."""

import contextlib
import io
import json
import netrc
import os
import shlex
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from rapm_cli.core.common.errors import ConfigError, RapmError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.common.registry import Registry

if TYPE_CHECKING:
    from PIL.Image import Image

PROJECT = "rapm"
PREVIEW = "preview"  # what its pictures are called


@dataclass(frozen=True)
class Subject:
    """What a tracker is to record.

    Args:
        folder: Of the run.
        name: Of the run.
        settings: What the run is made from, as JSON values that may leave this machine.
    """

    folder: Path
    name: str
    settings: dict[str, Any]


class Tracker(Protocol):
    """A record of one run in one of these programs; made anew for the same run, it goes on with the same record."""

    hint: str  # what to type to look at it

    def __init__(self, subject: Subject) -> None: ...

    def log(self, iteration: int, values: dict[str, float]) -> None:
        """Add the scalars of an iteration; one that is repeated follows or replaces what was there."""

    def show(self, iteration: int, picture: "Image") -> None:
        """Add a picture of an iteration whose scalars are there."""

    def close(self) -> None:
        """Write what is left."""


TRACKERS: Registry[type[Tracker]] = Registry("tracker")  # by the name of the package, too


@TRACKERS.add("tensorboard")
class TensorBoard:
    """Event files. An iteration that is repeated takes the place of what was there from it on."""

    def __init__(self, subject: Subject) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = subject.folder / "tensorboard"
        self.hint = f"tensorboard --logdir {shlex.quote(str(folder))}"
        self._settings = json.dumps(subject.settings, indent=1)
        self._begin: Callable[[int], Any] = lambda first: SummaryWriter(str(folder), purge_step=first)
        self._writer: Any = None
        self._last = -1

    def log(self, iteration: int, values: dict[str, float]) -> None:
        """As a tracker does."""
        if iteration <= self._last:  # training went back
            self.close()
        if self._writer is None:
            self._writer = self._begin(iteration)
            self._writer.add_text("settings", f"```\n{self._settings}\n```", iteration)
        for name, value in values.items():
            self._writer.add_scalar(name, value, iteration)
        self._last = iteration

    def show(self, iteration: int, picture: "Image") -> None:
        """As a tracker does."""
        import numpy

        self._writer.add_image(PREVIEW, numpy.asarray(picture), iteration, dataformats="HWC")

    def close(self) -> None:
        """As a tracker does."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


@TRACKERS.add("wandb")
class Wandb:
    """Weights & Biases; offline where no key is found, because training must not wait for a login.

    Its own `WANDB_MODE`, `WANDB_PROJECT` and `WANDB_ENTITY` hold. Code, command line, machine and output stay here.
    """

    def __init__(self, subject: Subject) -> None:
        wandb: Any = import_module("wandb")
        folder = subject.folder / "wandb"
        folder.mkdir(exist_ok=True)
        settings = wandb.setup().settings  # of its environment and files
        is_online, has_key = settings.mode in ("online", "shared"), _has_wandb_key(settings)
        if is_online and not has_key and os.environ.get("WANDB_MODE"):
            raise ConfigError(f"WANDB_MODE is {settings.mode} and there is no API key", "wandb login")
        mode = settings.mode if has_key or not is_online else "offline"
        why = " (no API key was found)" if is_online and not has_key else ""
        later = f"offline{why}, to upload it: wandb sync {shlex.quote(str(folder))}/offline-run-*"
        self._wandb, self._run = (
            wandb,
            wandb.init(
                project=settings.project or PROJECT,
                name=subject.name,
                id=_kept_id(folder / "run-id"),
                resume=None if mode == "offline" else "allow",  # offline parts of one id become one run when uploaded
                dir=str(subject.folder),
                config=subject.settings,
                mode=mode,
                settings=wandb.Settings(
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
                ),
            ),
        )
        self.hint = str(self._run.url) if mode in ("online", "shared") else later if mode == "offline" else mode
        # wandb's own step may not go back, as training may.
        self._run.define_metric("iteration", hidden=True)
        self._run.define_metric("*", step_metric="iteration")

    def log(self, iteration: int, values: dict[str, float]) -> None:
        """As a tracker does."""
        self._run.log({"iteration": iteration, **values})

    def show(self, iteration: int, picture: "Image") -> None:
        """As a tracker does."""
        self._run.log({"iteration": iteration, PREVIEW: self._wandb.Image(picture)})

    def close(self) -> None:
        """As a tracker does."""
        self._run.write_result()


def _has_wandb_key(settings: Any) -> bool:
    """True where wandb would not ask for a login."""
    if settings.api_key or settings.identity_token_file:
        return True
    named = os.environ.get("NETRC")
    paths = [Path(named).expanduser()] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]
    host = urlsplit(settings.base_url).hostname or ""
    for path in paths:
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            if netrc.netrc(path).authenticators(host):
                return True
    return False


def _kept_id(path: Path) -> str:
    """The id in a file, which is made with a new one where it is not there; a run's name may be another run's too."""
    if not path.exists():
        path.write_text(uuid.uuid4().hex[:16])
    return path.read_text()


@TRACKERS.add("trackio")
class Trackio:
    """Trackio on this machine; its own variables that name another place hold."""

    def __init__(self, subject: Subject) -> None:
        # Trackio reads it once, when it is first imported.
        folder = os.environ.setdefault("TRACKIO_DIR", str(subject.folder / "trackio"))
        trackio: Any = import_module("trackio")
        self.hint = f"TRACKIO_DIR={shlex.quote(folder)} trackio show --project {PROJECT}"
        self._trackio, self._run = (
            trackio,
            trackio.init(
                project=PROJECT,
                name=subject.name,
                config=subject.settings,
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            ),
        )

    def log(self, iteration: int, values: dict[str, float]) -> None:
        """As a tracker does."""
        self._run.log(values, step=iteration)

    def show(self, iteration: int, picture: "Image") -> None:
        """As a tracker does."""
        self._run.log({PREVIEW: self._trackio.Image(picture)}, step=iteration)

    def close(self) -> None:
        """As a tracker does."""
        self._trackio.finish()  # its own at exit would print


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are unknown or not installed, before there is anything to lose.

    Raises:
        ConfigError: One is.
    """
    for name in names:
        TRACKERS[name]
        found = find_spec(name)
        if found is None or found.origin is None:  # a folder of that name, such as wandb makes, is found too
            raise ConfigError(f"tracker {name} is not installed", f"pip install {name}")


class Trackers:
    """Several at once; one that fails is dropped with a warning, because training matters more.

    Args:
        names: From `TRACKERS`.
        subject: What they record.
        reporter: Is told where to look, and of failures.
    """

    def __init__(self, names: Sequence[str], subject: Subject, reporter: Reporter) -> None:
        self._open: dict[str, Tracker] = {}
        self._reporter = reporter
        for name in dict.fromkeys(names):
            self._attempt(name, lambda name=name: self._begin(name, subject))  # type: ignore[misc]

    def log(self, iteration: int, values: dict[str, float]) -> None:
        """Hand all of them an iteration's scalars."""
        self._each(lambda tracker: tracker.log(iteration, values))

    def show(self, iteration: int, picture: "Image") -> None:
        """Hand all of them a picture."""
        self._each(lambda tracker: tracker.show(iteration, picture))

    def close(self) -> None:
        """Let all of them write what is left."""
        self._each(lambda tracker: tracker.close())
        self._open.clear()

    def _begin(self, name: str, subject: Subject) -> None:
        self._open[name] = TRACKERS[name](subject)
        self._reporter.say(f"{name}: {self._open[name].hint}")

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            self._attempt(name, lambda tracker=tracker: act(tracker))  # type: ignore[misc]

    def _attempt(self, name: str, act: Callable[[], None]) -> None:
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # which is for results; Trackio greets there
                act()
        except Exception as error:  # noqa: BLE001  whatever it raises, training goes on
            self._open.pop(name, None)
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            remedy = f"; {error.remedy}" if isinstance(error, RapmError) else ""
            self._reporter.warn(f"tracker {name} has failed and is left out: {reason}{remedy}")


def open_trackers(
    names: Sequence[str], run_folder: Path, run_name: str, settings: dict[str, Any], reporter: Reporter
) -> Trackers:
    """Trackers of a run, which go on with what they have of it.

    Args:
        names: From `TRACKERS`.
        run_folder: Their files go there.
        run_name: As they show it.
        settings: What the run is made from, as JSON values that may leave this machine.
        reporter: Is told where to look, and of failures.

    Raises:
        ConfigError: One is unknown or not installed.
    """
    check_trackers(names)
    return Trackers(names, Subject(run_folder, run_name, settings), reporter)


def flatten(progress_line: dict[str, Any]) -> dict[str, float]:
    """A line of metrics.jsonl as scalars, such as "slot3/absolute" or "slot3/logits_real_relative".

    Logits are means over a discriminator's taps. What was not finite is left out; "skipped" is 1 where an update was.
    """
    if "iteration" not in progress_line:  # training went back
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
