"""The end of a job of several processes: if one fails, all end with its exit code, and the first reports the error.

A launcher signals all others as soon as one process fails. So the others wait until the first has ended.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterator

from torch import distributed

from rapm_cli.core.common.errors import PeerEnded, RapmError, Stopped, as_told
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.training.job_store import JobStore
from rapm_cli.runs import signals

POLL_SECONDS = 0.5  # between checks for a failed process
GRACE_SECONDS = 3.0  # for the others to notice, and for the first process to report and end
LAST_SECONDS = 0.3  # for the others to see that the first process detaches, whose store ends with it
INSIST_SECONDS = 15.0  # until a process exits whose collective cannot be aborted


@contextlib.contextmanager
def ending_together(jobs: JobStore, reporter: Reporter) -> Iterator[None]:
    """Inside, this process ends soon after any other that fails, and the others end if this one fails.

    Args:
        jobs: Store of the job.
        reporter: Receives the other process's error if this process has to exit at once.

    Raises:
        PeerEnded: Another process has ended. The message is empty if the first process reports the error.
    """
    is_over = threading.Event()
    threading.Thread(target=_listen, args=(jobs, is_over, reporter), daemon=True).start()
    try:
        yield
        if jobs.rank == 0:
            jobs.report_exit(0, "there is nothing to do")
    except BaseException as error:
        is_over.set()
        ended = _end(jobs, error)
        if ended is error:
            raise
        raise ended from error
    finally:
        is_over.set()
        if jobs.rank == 0:
            jobs.all_detached(range(1, jobs.size), GRACE_SECONDS)
        jobs.detach()
        if jobs.rank == 0:
            time.sleep(LAST_SECONDS)


def _end(jobs: JobStore, error: BaseException) -> BaseException:
    """Make the others end too; return the error that this process ends with."""
    if isinstance(error, PeerEnded) and error.exit_code == 0:  # all work is done, and the store may end at any moment
        jobs.detach()
        return PeerEnded("", 0)
    is_agreed = isinstance(error, PeerEnded) and not error.message
    if not is_agreed:
        jobs.report_exit(*_word(error))
        _break_off()
    ended = error if isinstance(error, Stopped | RapmError) else jobs.peer_exit() or error
    if jobs.rank == 0:
        return ended
    jobs.detach()
    code, _ = _word(ended)
    is_bug = code == RapmError.exit_code and not isinstance(ended, Stopped)  # RAPM_DEBUG shows its traceback here
    try:
        is_told = jobs.all_detached([0], INSIST_SECONDS)
        time.sleep(GRACE_SECONDS if code and is_told else 0)
    except Stopped:  # by the launcher, because the first process has ended
        is_told = jobs.all_detached([0], 0)
    return PeerEnded("", code) if is_told and not is_bug else ended


def _break_off() -> None:
    """Abort the collectives that wait for this process: `abort` ends NCCL's, `destroy_process_group` gloo's."""
    if distributed.group.WORLD is not None:
        distributed.group.WORLD.abort()
        distributed.destroy_process_group()


def _listen(jobs: JobStore, is_over: threading.Event, reporter: Reporter) -> None:
    """End this process soon after another one has reported its end."""
    while not is_over.wait(POLL_SECONDS):
        if ended := jobs.peer_exit():
            if jobs.rank:
                jobs.detach()
            signals.interrupt(ended)
            if not is_over.wait(INSIST_SECONDS):
                if jobs.rank == 0:
                    reporter.warn(ended.message)
                os._exit(ended.exit_code)
            return


def _word(error: BaseException) -> tuple[int, str]:
    """Return the exit code of an error, and its message in one line."""
    if isinstance(error, Stopped):
        return error.exit_code, f"stopped by signal {error.number}"
    told = as_told(error) if isinstance(error, Exception) else RapmError(type(error).__name__)
    return told.exit_code, "; ".join(filter(None, (told.message, told.remedy)))
