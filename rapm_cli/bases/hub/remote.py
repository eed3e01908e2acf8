"""Requests to the hub: what is in a repository, and the bytes of a file, from where an earlier try broke off.

huggingface_hub's own download begins a file anew when the process that fetched it was stopped, and does not hash
what came; so only its session, with the user's login, endpoint and proxies, its addresses and its errors are used.
Nor does its faster protocol, xet, go on with the half of a file, so files come by plain HTTP.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rapm_cli.bases.hub.cache import COMMIT, DIGEST
from rapm_cli.bases.hub.digest import NO_BAR, Hash, hash_like, take
from rapm_cli.bases.hub.sums import SHA256
from rapm_cli.core.common.errors import InputError, WeightsError
from rapm_cli.core.common.progress import Bar, Reporter
from rapm_cli.core.storage.files import is_plain

CONNECT_SECONDS = 5.0  # a server that is there answers a slow line in one; without a network this is waited in vain
WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds before each new attempt at a file of which nothing more came
REFUSED, PARTIAL = (401, 403), 206
NO_HUB = "what answers is not the hub; does this network want a login?"


class UnreachableError(Exception):
    """The hub cannot be reached, or does not answer as it should; the message says how."""


@dataclass(frozen=True)
class Entry:
    """One file of a repository: its size in bytes and its hash."""

    size: int
    digest: str


@dataclass(frozen=True)
class Listing:
    """What is in a repository at one commit."""

    commit: str
    entries: dict[str, Entry]


def list_files(repo: str, revision: str | None) -> Listing:
    """All files of a repository, in one request.

    Args:
        repo: Its name.
        revision: Commit, branch or tag; None for main.

    Raises:
        UnreachableError: There is no network, or none may be used, or the hub is out of order.
        WeightsError: There is no such repository or revision, or the user may not have it.
        InputError: What the hub answered must not be used.
    """
    from huggingface_hub import HfApi

    timeout: Any = _timeout()  # httpx takes four figures, which huggingface_hub's signature does not tell
    try:
        with _explained(repo, revision):
            info = HfApi().model_info(repo, revision=revision or "main", files_metadata=True, timeout=timeout)
        entries = {file.rfilename: _entry(file) for file in info.siblings or []}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UnreachableError(NO_HUB) from error
    listing = Listing(str(info.sha), entries)
    _check(repo, revision, listing)
    return listing


def _check(repo: str, revision: str | None, listing: Listing) -> None:
    """Refuse what would not stay in its folder, and what is not what was asked for or is known of the commit."""
    commit, entries = listing.commit, listing.entries
    if not COMMIT.fullmatch(commit) or not all(DIGEST.fullmatch(entry.digest) for entry in entries.values()):
        raise UnreachableError(NO_HUB)
    if bad := [name for name in entries if not is_plain(name)]:
        raise InputError(f"{repo} has a file that would lie outside its folder: {bad[0]!r}", "use another repository")
    mirror = "do not use that mirror: set HF_ENDPOINT to another, or to none"
    if revision and COMMIT.fullmatch(revision) and revision != commit:
        raise InputError(f"what answers as the hub gives {repo}@{commit[:12]} in place of @{revision[:12]}", mirror)
    for name, digest in SHA256.get(commit, {}).items():
        if name in entries and entries[name].digest != digest:
            raise InputError(
                f"what answers as the hub has another {name} of {repo}@{commit[:12]} than was published", mirror
            )


def _entry(file: Any) -> Entry:
    size, digest = (file.lfs.size, file.lfs.sha256) if file.lfs else (file.size, file.blob_id)
    return Entry(int(size), str(digest))


def download(repo: str, commit: str, name: str, entry: Entry, path: Path, bar: Bar, reporter: Reporter) -> None:
    """A file's bytes, appended to what an earlier try left at `path`; removed again if they are wrong.

    Args:
        repo: Name of the repository.
        commit: Of the file.
        name: Of the file.
        entry: What it must be.
        path: Where to put it.
        bar: Counts bytes, without those that were there.
        reporter: Is told of attempts that failed.

    Raises:
        UnreachableError: The line broke too often; what came is kept.
        WeightsError: The user may not have the file.
        InputError: The bytes are not those that the hub promised.
        OSError: The file cannot be written.
    """
    with path.open("a+b") as file:
        part = _Part(file, name, entry, bar)
        waits = list(WAITS)
        while part.size < entry.size:
            before = part.size
            try:
                _stream(repo, commit, name, part)
                if part.size < entry.size:  # of a server that tells no length
                    raise UnreachableError("the answer ended early")
            except UnreachableError as error:
                waits = list(WAITS) if part.size > before else waits
                if not waits:
                    raise
                reporter.say(f"{name}: {error}; trying again in {waits[0]:.0f} s")
                time.sleep(waits.pop(0))
    if part.found.hexdigest() != entry.digest:
        path.unlink()
        raise InputError(
            f"{name} of {repo}@{commit[:12]} did not arrive as it was published: its hash differs",
            "something on the way changes bytes: try again, on another line if it stays so",
        )


class _Part:
    """The beginning of a file, with the hash of what is there."""

    def __init__(self, file: BinaryIO, name: str, entry: Entry, bar: Bar) -> None:
        self._file, self._name, self.entry, self._bar = file, name, entry, bar
        self.found: Hash = hash_like(entry.digest, entry.size)
        file.seek(0)
        bar.advance(0, note=f"{name}: reading what is here")
        take(file, self.found, NO_BAR)  # the bar has begun behind these bytes
        self.size = file.tell()
        if self.size > entry.size:
            self.restart()

    def add(self, data: bytes) -> None:
        self._file.write(data)
        self.found.update(data)
        self.size += len(data)
        self._bar.advance(len(data), note=self._name)

    def restart(self) -> None:
        self._file.truncate(0)
        self._bar.advance(-min(self.size, self.entry.size))
        self.found, self.size = hash_like(self.entry.digest, self.entry.size), 0


def _stream(repo: str, commit: str, name: str, part: _Part) -> None:
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]  # made when asked for

    headers = build_hf_headers() | {"Accept-Encoding": "identity"}  # a range of compressed bytes is of no use
    if part.size:
        headers["Range"] = f"bytes={part.size}-"
    timeout: Any = _timeout()
    url = hf_hub_url(repo, name, revision=commit)
    with _explained(repo, commit), get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
        hf_raise_for_status(response)
        if part.size and response.status_code != PARTIAL:
            part.restart()  # the server sends the whole
        for chunk in response.iter_bytes():  # as they come: what would wait for a full chunk is lost with the line
            part.add(chunk)
            if part.size > part.entry.size:
                break  # whatever this is, it need not be waited for


def _timeout() -> tuple[float, float, float, float]:
    """Seconds to connect, to wait for bytes (as the user set it for huggingface_hub), to send and to wait in line."""
    from huggingface_hub import constants

    return (CONNECT_SECONDS, constants.HF_HUB_DOWNLOAD_TIMEOUT, CONNECT_SECONDS, CONNECT_SECONDS)


@contextmanager
def _explained(repo: str, revision: str | None) -> Iterator[None]:
    """Errors of requests, told to a user."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    of_httpx: Any = HfHubHTTPError.__bases__[0]  # httpx itself has another name with each huggingface_hub
    home = f"https://huggingface.co/{repo}"
    closed = WeightsError(
        f"the hub does not give {repo} to everyone", f"accept its licence at {home}, then run: hf auth login"
    )
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise UnreachableError("--offline or HF_HUB_OFFLINE forbids the network") from error
    except GatedRepoError as error:
        raise closed from error
    except RepositoryNotFoundError as error:
        raise WeightsError(
            f"there is no model {repo} on the hub, or it is a private one", "check its name, or run: hf auth login"
        ) from error
    except (RevisionNotFoundError, EntryNotFoundError) as error:
        raise WeightsError(f"{repo} has no revision {revision or 'main'}", f"see {home}/commits/main") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in REFUSED:
            raise closed from error
        raise UnreachableError(f"the hub answers with status {status}") from error
    except of_httpx as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise UnreachableError(f"the hub cannot be reached: {reason}") from error
