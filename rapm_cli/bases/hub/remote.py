"""Requests to the hub, made by huggingface_hub with the user's login, endpoint and proxies."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapm_cli.bases.hub.digest import SHA256
from rapm_cli.core.common.errors import DiskError, InputError, Stopped, WeightsError, is_disk_full
from rapm_cli.core.common.progress import Bar
from rapm_cli.core.storage.files import is_plain

COMMIT = re.compile(r"[0-9a-f]{40}")
DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # git's sha1 of a small file, sha256 of a file in LFS
LIST_SECONDS = 5.0  # longest wait for the list of files; without a network every command waits this long
NO_HUB = "the server that answered is not the hub; does this network need a login?"


class UnreachableError(Exception):
    """The hub cannot be reached or does not work; the message says how."""


@dataclass(frozen=True)
class Entry:
    """Size in bytes and hash of one file of a repository."""

    size: int
    digest: str


@dataclass(frozen=True)
class Listing:
    """All files of a repository at one commit, by name."""

    commit: str
    entries: dict[str, Entry]


def list_files(repo: str, revision: str | None) -> Listing:
    """List all files of a repository in one request.

    Args:
        repo: `ORG/NAME`.
        revision: Commit, branch or tag; None for main.

    Raises:
        UnreachableError: The network is missing or forbidden, or the hub does not work.
        WeightsError: The repository or the revision does not exist, or the user has no access.
        InputError: The answer is not safe to use.
    """
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(repo, revision=revision or "main", files_metadata=True, timeout=LIST_SECONDS)
        entries = {file.rfilename: _entry(file) for file in info.siblings or []}
    except Exception as error:
        raise _explained(error, repo, revision) from error
    listing = Listing(str(info.sha), entries)
    _check(repo, revision, listing)
    return listing


def _entry(file: Any) -> Entry:
    size, digest = (file.lfs.size, file.lfs.sha256) if file.lfs else (file.size, file.blob_id)
    return Entry(int(size), str(digest))


def _check(repo: str, revision: str | None, listing: Listing) -> None:
    """Refuse names outside the folder, another commit than was asked for, and hashes other than those in `SHA256`."""
    commit, entries = listing.commit, listing.entries
    if not COMMIT.fullmatch(commit) or not all(DIGEST.fullmatch(entry.digest) for entry in entries.values()):
        raise UnreachableError(NO_HUB)
    if bad := [name for name in entries if not is_plain(name)]:
        raise InputError(f"{repo} has a file that would lie outside its folder: {bad[0]!r}", "use another repository")
    mirror = "do not use this mirror: set HF_ENDPOINT to another one, or unset it"
    if revision and COMMIT.fullmatch(revision) and revision != commit:
        raise InputError(f"the server gives {repo}@{commit[:12]} instead of @{revision[:12]}", mirror)
    for name, digest in SHA256.get(commit, {}).items():
        if name in entries and entries[name].digest != digest:
            raise InputError(f"the server's {name} of {repo}@{commit[:12]} is not the published file", mirror)


def download(repo: str, commit: str, name: str, bar: Bar, *, again: bool) -> Path:
    """Download one file into the user's Hugging Face cache, unless it is there.

    huggingface_hub resumes a broken connection by itself. It uses Xet, its parallel protocol, where the hub offers it.

    Args:
        repo: `ORG/NAME`.
        commit: 40 hexadecimal digits.
        name: Name of the file, with slashes.
        bar: Counts bytes.
        again: True to replace a file that is there.

    Returns:
        Path of the file in the snapshot folder.

    Raises:
        UnreachableError: The connection broke too often.
        WeightsError: The user has no access.
        DiskError: The disk is full.
        OSError: The file cannot be written.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(
            hf_hub_download(repo, name, revision=commit, force_download=again, tqdm_class=_forwarding(bar, name))
        )
    except Stopped:
        _abort_xet()
        raise
    except Exception as error:
        if is_disk_full(error):
            raise DiskError.of(error, f"{name} of {repo}") from error
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise _explained(error, repo, commit) from error


def _forwarding(bar: Bar, name: str) -> Any:
    """Return a class of progress bars that huggingface_hub may create, which show nothing and advance `bar`."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]  # the module creates its names on demand

    class Forwarding(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **(kwargs | {"disable": True}))  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            bar.advance(int(n or 0), note=name)

        def update_transfer(self, n: float) -> None:
            """Ignore Xet's second count, of compressed bytes; without this method it would create a second bar."""

        def set_transfer_postfix_str(self, *_: Any, **__: Any) -> None:
            """Ignore the speed of Xet's second count."""

    return Forwarding


def _abort_xet() -> None:
    """Stop Xet's threads, which otherwise would download to the end of the file; huggingface_hub does it for Ctrl-C."""
    from huggingface_hub.utils._xet import abort_xet_session

    abort_xet_session()  # type: ignore[no-untyped-call]


def _explained(error: Exception, repo: str, revision: str | None) -> Exception:
    """Return the error of ours that says what an error of huggingface_hub means to a user."""
    from huggingface_hub import errors

    of_httpx: Any = errors.HfHubHTTPError.__bases__[0]  # each huggingface_hub imports httpx under another name
    home = f"https://huggingface.co/{repo}"
    if isinstance(error, errors.LocalEntryNotFoundError | ValueError) and isinstance(error.__cause__, Exception):
        return _explained(error.__cause__, repo, revision)  # the first error, which that one wraps
    if isinstance(error, errors.OfflineModeIsEnabled):
        return UnreachableError("--offline or HF_HUB_OFFLINE forbids the network")
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, errors.GatedRepoError) or (
        status in (401, 403) and not isinstance(error, errors.RepositoryNotFoundError)
    ):
        return WeightsError(
            f"the hub does not give {repo} to everyone", f"accept its licence at {home}, then run: hf auth login"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return WeightsError(
            f"there is no model {repo} on the hub, or it is private", "check its name, or run: hf auth login"
        )
    if isinstance(error, errors.RevisionNotFoundError | errors.EntryNotFoundError):
        return WeightsError(f"{repo} has no revision {revision or 'main'}", f"see {home}/commits/main")
    if status:
        return UnreachableError(f"the hub answers with status {status}")
    if isinstance(error, errors.FileMetadataError | ValueError | TypeError | LookupError | AttributeError):
        return UnreachableError(NO_HUB)
    if isinstance(error, of_httpx | errors.XetDownloadError | OSError | RuntimeError):
        return UnreachableError(f"the hub cannot be reached: {(str(error).splitlines() or [type(error).__name__])[0]}")
    return error
