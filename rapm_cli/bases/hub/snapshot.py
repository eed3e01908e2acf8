"""Files of one commit of a repository: the needed ones, complete and verified, in the user's Hugging Face cache."""

import contextlib
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.filesize import decimal

from rapm_cli.bases.hub import remote
from rapm_cli.bases.hub.digest import SHA256, is_right, is_trusted, trust
from rapm_cli.bases.hub.remote import COMMIT, DIGEST, Listing, UnreachableError
from rapm_cli.bases.hub.selection import INDEX, LackingError, Selection, check_index
from rapm_cli.core.common.errors import ConfigError, DiskError, InputError, Stopped, WeightsError
from rapm_cli.core.common.progress import NO_BAR, Bar, Reporter
from rapm_cli.core.storage.files import is_plain, replace_file, sync
from rapm_cli.core.storage.room import require_room

if TYPE_CHECKING:
    import torch

LONG_BYTES = 10**8  # hashing more than this takes long enough to show a bar


@dataclass(frozen=True)
class Snapshot:
    """Files in the Hugging Face cache.

    Args:
        repo: `ORG/NAME`.
        commit: 40 hexadecimal digits.
        folder: Snapshot folder of the commit; it can hold other files too.
        files: Names of the needed files below `folder`, with slashes.
    """

    repo: str
    commit: str
    folder: Path
    files: tuple[str, ...]


def fetch(repo: str, revision: str | None, selection: Selection, reporter: Reporter) -> Snapshot:
    """Return the needed files and download those that are missing; a complete commit needs no request.

    Args:
        repo: `ORG/NAME`.
        revision: Commit, branch or tag; None for main.
        selection: Which files are needed.
        reporter: Shows the download.

    Raises:
        ConfigError: The repository's or revision's name is not valid.
        WeightsError: Files are missing and cannot be downloaded.
        InputError: The repository is of another kind, asks to run its own code, or its bytes are wrong.
        DiskError: The cache has too little room, or cannot be written.
        Stopped: A signal came; complete files are kept.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # the module creates its names on demand

    if revision is not None and not is_plain(revision):
        raise ConfigError(f"{revision!r} is no revision of {repo}", "give a commit, a branch or a tag")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"{repo!r} is no name of a repository", "write it as ORG/NAME") from error
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
    try:
        return _Fetcher(repo, folder, selection, reporter).fetch(revision)
    except OSError as error:
        raise DiskError.of(error, getattr(error, "filename", None) or folder) from error
    except Stopped as stopped:
        raise Stopped(
            stopped.number, f"the complete files of {repo} are kept", "the same command downloads the rest"
        ) from stopped


@dataclass(frozen=True)
class _Fetcher:
    repo: str
    folder: Path  # of the repository in the cache
    selection: Selection
    reporter: Reporter

    def fetch(self, revision: str | None) -> Snapshot:
        commit = revision if revision and COMMIT.fullmatch(revision) else None
        if commit and (names := self._complete(commit)):
            return self._verified(commit, names, None)
        try:
            listing = remote.list_files(self.repo, revision)
        except (UnreachableError, WeightsError) as error:
            commit = commit or self._commit_of(revision)
            if commit and (names := self._complete(commit)):
                if not _is_offline():
                    self.reporter.say(f"{error}; using {self._title(commit)} from the cache")
                return self._verified(commit, names, None)
            if isinstance(error, WeightsError):
                raise
            raise self._missing(commit, revision, error) from error
        names = self._chosen(listing)
        self._download([name for name in names if not self._path(listing.commit, name).is_file()], names, listing)
        self._require_index(listing.commit, names)
        if revision != listing.commit != self._commit_of(revision):
            replace_file(self.folder / "refs" / (revision or "main"), listing.commit.encode())
        return self._verified(listing.commit, names, listing)

    def _path(self, commit: str, name: str = "") -> Path:
        return self.folder / "snapshots" / commit / name

    def _blob(self, digest: str) -> Path:
        return self.folder / "blobs" / digest

    def _cached(self, commit: str) -> list[str]:
        """Return the names of a commit's cached files, without links to missing blobs."""
        folder = self._path(commit)
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

    def _commit_of(self, revision: str | None) -> str | None:
        """Return the commit of a branch or tag at the last request to the hub; None before any request."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            commit = (self.folder / "refs" / (revision or "main")).read_text().strip()
            return commit if COMMIT.fullmatch(commit) else None
        return None

    def _complete(self, commit: str) -> list[str]:
        """Return the names of the needed files if all of them are cached; empty otherwise."""
        cached = self._cached(commit)
        try:
            names = self.selection.choose(cached, cached)
            self._check_index(commit, names)
        except LackingError:
            return []
        return names

    def _chosen(self, listing: Listing) -> list[str]:
        cached = set(self._cached(listing.commit))
        cached |= {name for name, entry in listing.entries.items() if self._blob(entry.digest).is_file()}
        try:
            return self.selection.choose(listing.entries.keys(), cached & listing.entries.keys())
        except LackingError as error:
            raise self._lacking(listing.commit, error) from error

    def _download(self, missing: list[str], names: list[str], listing: Listing, *, again: bool = False) -> None:
        """Download files one after the other, each in parallel pieces where the hub offers Xet, and check each."""
        entries = {name: listing.entries[name] for name in missing}
        sizes = {
            entry.digest: entry.size for entry in entries.values() if again or not self._blob(entry.digest).is_file()
        }
        with self._downloading(listing.commit, sizes) if sizes else nullcontext(NO_BAR) as bar:
            for name in sorted(missing, key=lambda name: name != INDEX):
                if name != INDEX:  # the index is here; refuse a pipeline that needs code before its weights come
                    self._require_index(listing.commit, names)
                try:
                    path = remote.download(self.repo, listing.commit, name, bar, again=again)
                except UnreachableError as error:
                    raise WeightsError(
                        f"{name} of {self.repo}: {error}", "the same command downloads the files that are missing"
                    ) from error
                bar.advance(0, note=f"{name}: verifying")
                self._check_download(path, name, listing)

    def _check_download(self, path: Path, name: str, listing: Listing) -> None:
        if not is_right(path, listing.entries[name].digest, NO_BAR):
            blob = path.resolve()
            path.unlink()
            blob.unlink(missing_ok=True)
            raise InputError(
                f"{name} of {self._title(listing.commit)} did not arrive as it was published: its hash differs",
                "the network changes bytes: try again, or use another network",
            )
        sync(path)
        trust(path)

    @contextmanager
    def _downloading(self, commit: str, sizes: dict[str, int]) -> Iterator[Bar]:
        """Check the free disk space, report the download, and show a bar of bytes."""
        total = sum(sizes.values())
        require_room(self.folder, total, f"downloading {self.repo}")
        count = f"{len(sizes)} file{'s'[: len(sizes) > 1]}"
        self.reporter.say(f"downloading {self._title(commit)}: {count}, {decimal(total)}, to {self.folder}")
        with self.reporter.bar("downloading", total, "byte", _cpu()) as bar:
            yield bar

    def _verified(self, commit: str, names: list[str], listing: Listing | None) -> Snapshot:
        """Verify all files that were not verified before, download damaged ones again, and return the snapshot."""
        unchecked = [name for name in names if not is_trusted(self._path(commit, name))]
        digests = {name: self._digest(commit, name, listing) for name in unchecked}
        if not listing and not all(digests.values()):  # copies instead of links: only the hub knows their hashes
            with contextlib.suppress(UnreachableError, WeightsError):
                listing = remote.list_files(self.repo, commit)
                digests = {name: self._digest(commit, name, listing) for name in unchecked}
        known = {name: digest for name, digest in digests.items() if digest}
        total = sum(self._path(commit, name).stat().st_size for name in known)
        damaged = []
        with (
            self.reporter.bar("verifying", total, "byte", _cpu()) if total >= LONG_BYTES else nullcontext(NO_BAR) as bar
        ):
            for name, digest in known.items():
                path = self._path(commit, name)
                if is_right(path, digest, bar):
                    trust(path)
                else:
                    damaged.append(name)
        if damaged:
            self._replace(damaged, names, commit, listing)
        return Snapshot(self.repo, commit, self._path(commit), tuple(names))

    def _replace(self, damaged: list[str], names: list[str], commit: str, listing: Listing | None) -> None:
        paths = [self._path(commit, name) for name in damaged]
        try:
            listing = listing or remote.list_files(self.repo, commit)
        except (UnreachableError, WeightsError) as error:
            raise InputError(
                f"{paths[0]} is not what {self.repo} published: its hash differs",
                f"download it again: {self._command(commit, damaged)} --force-download",
            ) from error
        self.reporter.warn(f"{paths[0]} is damaged: its hash differs; downloading it again")
        for path in paths:
            if not path.is_symlink():  # huggingface_hub replaces blobs, but no copies
                path.unlink()
        self._download(damaged, names, listing, again=True)

    def _digest(self, commit: str, name: str, listing: Listing | None) -> str | None:
        """Return the expected hash of a file, from rapm, the hub or the blob's name; None if unknown."""
        if digest := SHA256.get(commit, {}).get(name):
            return digest
        if listing and name in listing.entries:
            return listing.entries[name].digest
        with contextlib.suppress(OSError):
            blob = Path(os.readlink(self._path(commit, name))).name  # a blob can itself link to a shared store
            return blob if DIGEST.fullmatch(blob) else None
        return None

    def _check_index(self, commit: str, names: list[str]) -> None:
        if INDEX in names:
            check_index(self.repo, self._path(commit, INDEX), names)

    def _require_index(self, commit: str, names: list[str]) -> None:
        try:
            self._check_index(commit, names)
        except LackingError as error:
            raise self._lacking(commit, error) from error

    def _lacking(self, commit: str, error: LackingError) -> InputError:
        return InputError(f"{self._title(commit)} lacks {error}", "give a repository that has it")

    def _missing(self, commit: str | None, revision: str | None, error: UnreachableError) -> WeightsError:
        """Return the error for files that are not cached, with the `hf download` command that fetches them."""
        is_begun = bool(commit and self._cached(commit))
        wanted: Sequence[str] = self.selection.wider_globs if is_begun else self.selection.globs
        with contextlib.suppress(LackingError):
            if listed := self._listed(commit) if commit else []:
                wanted = self.selection.choose(listed, self._cached(str(commit)))
        at, whole = commit or revision, "complete " if is_begun else ""
        return WeightsError(
            f"{self._title(at)} is not {whole}in the Hugging Face cache, {self.folder.parent}, and {error}",
            f"on a machine with a network run: {self._command(at, wanted)}",
        )

    def _listed(self, commit: str) -> list[str]:
        """Return the names of all files of a commit, from huggingface_hub's own list; empty without that list."""
        from huggingface_hub import get_cached_repo_tree
        from huggingface_hub.errors import CachedRepoTreeNotFoundError

        with contextlib.suppress(CachedRepoTreeNotFoundError):
            return [
                file.path for file in get_cached_repo_tree(self.repo, revision=commit, cache_dir=self.folder.parent)
            ]
        return []

    def _command(self, revision: str | None, wanted: Sequence[str]) -> str:
        """Return the `hf download` command that fetches files."""
        words = ["hf", "download", self.repo, *(["--revision", revision] if revision else [])]
        if any("*" in name for name in wanted):
            words += [word for name in wanted for word in ("--include", name)]
        else:
            words += wanted
        return shlex.join(words)

    def _title(self, revision: str | None) -> str:
        return f"{self.repo}@{revision[:12]}" if revision else self.repo


def _is_offline() -> bool:
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def _cpu() -> "torch.device":
    import torch

    return torch.device("cpu")
