"""Signals: the first asks a job to stop where its work is safe, the second leaves at once.

State of the process, as signals are. Where no job is `patient`, the first signal leaves at once too.
"""

import _thread
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

from rapm_cli.core.common.errors import UNHARMED, Stopped

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # what a system does not have is left out
POLL_SECONDS = 0.1


@dataclass
class _Wishes:
    stop: int | None = None
    save: bool = False
    patience: str = ""  # what the job at work will finish first; empty for none
    is_drawn: bool = False  # somebody shows `words`
    error: Stopped | None = None  # what another thread wants raised


_wishes = _Wishes()


@contextlib.contextmanager
def heeding() -> Iterator[None]:
    """Inside, signals raise `Stopped` or leave a wish; outside, they do what they did before.

    What the process was told to ignore it still ignores: under `nohup` it outlives its terminal.
    """
    handlers = {getattr(signal, name): _on_stop for name in NAMES if hasattr(signal, name)}
    if hasattr(signal, "SIGUSR1"):
        handlers[signal.SIGUSR1] = _on_save
    handlers = {number: act for number, act in handlers.items() if signal.getsignal(number) != signal.SIG_IGN}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    _wishes.__init__()  # type: ignore[misc]
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _wishes.__init__()  # type: ignore[misc]


@contextlib.contextmanager
def patient(unit: str) -> Iterator[None]:
    """Inside, the first signal only leaves a wish, which `check` grants.

    Args:
        unit: What is finished first, such as "this iteration".
    """
    before, _wishes.patience = _wishes.patience, unit
    try:
        yield
    finally:
        _wishes.patience = before


@contextlib.contextmanager
def drawn() -> Iterator[None]:
    """Inside, the caller shows `words` itself; nothing is written across what it draws."""
    _wishes.is_drawn = True
    try:
        yield
    finally:
        _wishes.is_drawn = False


def words() -> str:
    """What is done about a signal that has come; empty where there is nothing to tell."""
    if _wishes.stop is None or not _wishes.patience:
        return ""
    return f"stopping after {_wishes.patience}; once more leaves at once"


def check(saved: str = UNHARMED, remedy: str = "") -> None:
    """Stop here if a signal asked for it.

    Args:
        saved: What is saved.
        remedy: How to go on.

    Raises:
        Stopped: It did.
    """
    if _wishes.stop is not None:
        raise Stopped(_wishes.stop, saved, remedy)


def number() -> int | None:
    """Of the signal that has asked to stop; None for none."""
    return _wishes.stop


def interrupt(error: Stopped) -> None:
    """Raise an error in the main thread as soon as Python runs there, whatever it is patient for."""
    _wishes.error = error
    _thread.interrupt_main(signal.SIGTERM)


def is_wanted() -> bool:
    """True once a signal has asked to stop."""
    return _wishes.stop is not None


def take_save_wish() -> bool:
    """True once after SIGUSR1."""
    wish, _wishes.save = _wishes.save, False
    return wish


def pause(seconds: float) -> None:
    """Sleep, but no longer than until a signal asks to stop."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not is_wanted():
        time.sleep(POLL_SECONDS)


def _on_stop(number: int, frame: FrameType | None) -> None:
    if _wishes.error:
        raise _wishes.error
    if _wishes.stop is not None or not _wishes.patience:
        raise Stopped(number)
    _wishes.stop = number
    if not _wishes.is_drawn:
        with contextlib.suppress(OSError):  # not Python's streams, which may be at work; a lost terminal is no harm
            os.write(2, f"\n{words()}\n".encode())


def _on_save(number: int, frame: FrameType | None) -> None:
    _wishes.save = True
