"""Signals: the first one asks a job to stop where its work is safe, the second one ends it at once.

The state is global, as signal handlers are. Outside `deferred` the first signal ends the job at once, too.
"""

import _thread
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

from rapm_cli.core.common.errors import UNHARMED, Stopped
from rapm_cli.core.common.progress import time_in_words

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # those that the system has are handled
POLL_SECONDS = 0.1


@dataclass
class _Requests:
    stop: int | None = None  # number of the signal that asked to stop
    save: bool = False
    unit: str = ""  # what the job finishes before it stops; empty outside `deferred`
    seconds_left: Callable[[], float | None] = lambda: None  # for the unit, if that is known
    is_shown: bool = False  # the caller shows `notice` in its progress bar
    error: Stopped | None = None  # to raise in the main thread, for another thread


_requests = _Requests()


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Handle signals inside the context: they raise `Stopped`, or leave a request for `check`.

    Signals that were ignored before stay ignored: under `nohup` the process outlives its terminal.
    """
    handlers = {getattr(signal, name): _on_stop for name in NAMES if hasattr(signal, name)}
    if hasattr(signal, "SIGUSR1"):
        handlers[signal.SIGUSR1] = _on_save
    handlers = {number: act for number, act in handlers.items() if signal.getsignal(number) != signal.SIG_IGN}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    _requests.__init__()  # type: ignore[misc]
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _requests.__init__()  # type: ignore[misc]


@contextlib.contextmanager
def deferred(unit: str, seconds_left: Callable[[], float | None] = lambda: None) -> Iterator[None]:
    """Defer the first signal inside the context until the job calls `check`.

    Args:
        unit: What the job finishes first, such as "this iteration".
        seconds_left: Function that returns the seconds that this still takes; None while they are not known.
    """
    before = _requests.unit, _requests.seconds_left
    _requests.unit, _requests.seconds_left = unit, seconds_left
    try:
        yield
    finally:
        _requests.unit, _requests.seconds_left = before


@contextlib.contextmanager
def shown_by_caller() -> Iterator[None]:
    """Write no notice inside the context; the caller shows `notice()` in its progress bar."""
    _requests.is_shown = True
    try:
        yield
    finally:
        _requests.is_shown = False


def notice() -> str:
    """Return the line about a deferred stop for the user; empty if there is none."""
    if _requests.stop is None or not _requests.unit:
        return ""
    seconds = _requests.seconds_left()
    when = "" if seconds is None else f", in about {time_in_words(seconds)}"
    return f"stopping after {_requests.unit}{when}; once more leaves at once"


def check(saved: str = UNHARMED, remedy: str = "") -> None:
    """Stop here if a signal asked for it.

    Args:
        saved: What is saved, for the message.
        remedy: How the user can resume.

    Raises:
        Stopped: A signal asked to stop.
    """
    if _requests.stop is not None:
        raise Stopped(_requests.stop, saved, remedy)


def pending() -> int | None:
    """Return the number of the signal that asked to stop, or None."""
    return _requests.stop


def interrupt(error: Stopped) -> None:
    """Raise an error in the main thread as soon as Python runs there, deferred or not."""
    _requests.error = error
    _thread.interrupt_main(signal.SIGTERM)


def take_save_request() -> bool:
    """Return True once after each SIGUSR1."""
    is_requested, _requests.save = _requests.save, False
    return is_requested


def pause(seconds: float) -> None:
    """Sleep, but only until a signal asks to stop."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and _requests.stop is None:
        time.sleep(POLL_SECONDS)


def _on_stop(number: int, frame: FrameType | None) -> None:
    if _requests.error:
        raise _requests.error
    if _requests.stop is not None or not _requests.unit:
        raise Stopped(number)
    _requests.stop = number
    if not _requests.is_shown:
        with contextlib.suppress(OSError):  # not Python's streams, which may be in use; a lost terminal does no harm
            os.write(2, f"\n{notice()}\n".encode())


def _on_save(number: int, frame: FrameType | None) -> None:
    _requests.save = True
