"""Files of one commit of a repository: those that are needed, all of them there, and found to be what was published."""

import contextlib
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.filesize import decimal

from rapm_cli.bases.hub import remote
from rapm_cli.bases.hub.cache import COMMIT, RepoCache, is_trusted, trust
from rapm_cli.bases.hub.digest import NO_BAR, is_right
from rapm_cli.bases.hub.index import check_index
from rapm_cli.bases.hub.remote import Listing, UnreachableError
from rapm_cli.bases.hub.selection import INDEX, LackingError, Selection
from rapm_cli.bases.hub.sums import SHA256
from rapm_cli.core.common.errors import ConfigError, DiskError, InputError, Stopped, WeightsError
from rapm_cli.core.common.progress import Bar, Reporter
from rapm_cli.core.storage.files import is_plain, sync
from rapm_cli.core.storage.room import require_room

if TYPE_CHECKING:
    import torch

LONG_BYTES = 10**8  # what takes longer to read than a user waits without a word


@dataclass(frozen=True)
class Snapshot:
    """Files in the Hugging Face cache.

    Args:
        repo: Name of the repository.
        commit: 40 hexadecimal digits.
        folder: Where the files are; others can lie beside them.
        files: Their names below `folder`, with slashes.
    """

    repo: str
    commit: str
    folder: Path
    files: tuple[str, ...]


def fetch(repo: str, revision: str | None, selection: Selection, reporter: Reporter) -> Snapshot:
    """The files that are needed, downloaded where they are missing; without any request where a commit is all there.

    Args:
        repo: `ORG/NAME`.
        revision: Commit, branch or tag; None for main.
        selection: Which files.
        reporter: Sees what is downloaded.

    Raises:
        ConfigError: There cannot be such a repository or revision.
        WeightsError: Files are missing and cannot be had.
        InputError: The repository is not of the wanted kind, wants to run code of its own, or bytes are wrong.
        DiskError: The cache has too little room, or cannot be written.
        Stopped: A signal came; what has arrived is kept.
    """
    if revision is not None and not is_plain(revision):
        raise ConfigError(f"{revision!r} is no revision of {repo}", "give a commit, a branch or a tag")
    fetcher = _Fetcher(RepoCache.of(repo), selection, reporter)
    try:
        return fetcher.fetch(revision)
    except OSError as error:
        raise DiskError.of(error, getattr(error, "filename", None) or fetcher.cache.folder) from error
    except Stopped as stopped:
        raise Stopped(
            stopped.number, f"what has arrived of {repo} is kept", "the same command goes on with it"
        ) from stopped


@dataclass(frozen=True)
class _Fetcher:
    cache: RepoCache
    selection: Selection
    reporter: Reporter

    def fetch(self, revision: str | None) -> Snapshot:
        commit = revision if revision and COMMIT.fullmatch(revision) else None
        if commit and (names := self._cached(commit)):
            return self._checked(commit, names, self._listing_of_copies(commit, names))
        try:
            listing = remote.list_files(self.cache.repo, revision)
        except (UnreachableError, WeightsError) as error:
            commit = commit or self.cache.commit_of(revision)
            if commit and (names := self._cached(commit)):
                if not _is_offline():
                    self.reporter.say(f"{error}; going on with {self._title(commit)} as it is in the cache")
                return self._checked(commit, names, None)
            if isinstance(error, WeightsError):
                raise
            raise self._missing(commit, revision, error) from error
        names = self._chosen(listing)
        if missing := [name for name in names if not (self.cache.snapshot(listing.commit) / name).is_file()]:
            self._download(missing, names, listing)
        self._require_index(listing.commit, names)
        self.cache.remember(revision, listing.commit)
        return self._checked(listing.commit, names, listing)

    def _cached(self, commit: str) -> list[str]:
        """The needed files of a commit where they are all here; else none."""
        here = self.cache.names(commit)
        try:
            names = self.selection.choose(here, here)
            self._check_index(commit, names)
        except LackingError:
            return []
        return names

    def _chosen(self, listing: Listing) -> list[str]:
        here = set(self.cache.names(listing.commit))
        here |= {name for name, entry in listing.entries.items() if self.cache.blob(entry.digest).is_file()}
        try:
            return self.selection.choose(listing.entries.keys(), here & listing.entries.keys())
        except LackingError as error:
            raise self._lacking(listing.commit, error) from error

    def _download(self, missing: list[str], names: list[str], listing: Listing) -> None:
        sizes = {entry.digest: entry.size for entry in (listing.entries[name] for name in missing)}
        sizes = {digest: size for digest, size in sizes.items() if not self.cache.blob(digest).is_file()}
        left = {digest: size - min(size, _size(self.cache.part(digest))) for digest, size in sizes.items()}
        with self._downloading(listing.commit, sizes, left) if sizes else nullcontext(NO_BAR) as bar:
            for name in sorted(missing, key=lambda name: name != INDEX):
                if name != INDEX:  # it has come: look at it before gigabytes follow that cannot be used
                    self._require_index(listing.commit, names)
                self._download_one(name, listing, left, bar)

    @contextmanager
    def _downloading(self, commit: str, sizes: dict[str, int], left: dict[str, int]) -> Iterator[Bar]:
        """A bar over blobs of these sizes, of which so much is still to come."""
        total, to_do = sum(sizes.values()), sum(left.values())
        require_room(self.cache.folder, to_do, f"downloading {self.cache.repo}")
        count = f"{len(sizes)} file{'s'[: len(sizes) > 1]}"
        here = f", {decimal(total - to_do)} of it here already" if to_do < total else ""
        self.reporter.say(f"downloading {self._title(commit)}: {count}, {decimal(total)}{here}, to {self.cache.folder}")
        with self.reporter.bar("downloading", total, "byte", _cpu(), total - to_do) as bar:
            yield bar

    def _download_one(self, name: str, listing: Listing, left: dict[str, int], bar: Bar) -> None:
        entry, repo, commit = listing.entries[name], self.cache.repo, listing.commit
        blob, part = self.cache.blob(entry.digest), self.cache.part(entry.digest)
        with self.cache.locked(entry.digest, name, self.reporter):
            is_new = not blob.is_file()
            if is_new:
                try:
                    remote.download(repo, commit, name, entry, part, bar, self.reporter)
                except UnreachableError as error:
                    raise WeightsError(
                        f"{name} of {repo}: {error}", "the same command goes on where it stopped"
                    ) from error
                sync(part)
                part.replace(blob)
            else:
                bar.advance(left.get(entry.digest, 0))  # of another process, or in another place of the repository
            left.pop(entry.digest, None)
            self.cache.link(entry.digest, commit, name, is_new=is_new)
            if is_new:
                trust(self.cache.snapshot(commit) / name)

    def _check_index(self, commit: str, names: list[str]) -> None:
        if INDEX in names:
            check_index(self.cache.repo, self.cache.snapshot(commit) / INDEX, names)

    def _require_index(self, commit: str, names: list[str]) -> None:
        try:
            self._check_index(commit, names)
        except LackingError as error:
            raise self._lacking(commit, error) from error

    def _listing_of_copies(self, commit: str, names: list[str]) -> Listing | None:
        """The hub's hashes, where the cache has files in place of links, which do not tell theirs."""
        folder = self.cache.snapshot(commit)
        if all(self.cache.digest(commit, name) or is_trusted(folder / name) for name in names):
            return None
        try:
            return remote.list_files(self.cache.repo, commit)
        except (UnreachableError, WeightsError):
            return None

    def _checked(self, commit: str, names: list[str], listing: Listing | None) -> Snapshot:
        """The snapshot, once each file that was never looked at has been."""
        folder = self.cache.snapshot(commit)
        digests = {name: self.cache.digest(commit, name) for name in names if not is_trusted(folder / name)}
        if listing:
            digests |= {name: listing.entries[name].digest for name in digests if name in listing.entries}
        digests |= {name: digest for name, digest in SHA256.get(commit, {}).items() if name in digests}
        known = {name: digest for name, digest in digests.items() if digest}
        total = sum(_size(folder / name) for name in known)
        is_long = total >= LONG_BYTES
        with self.reporter.bar("verifying", total, "byte", _cpu()) if is_long else nullcontext(NO_BAR) as bar:
            for name, digest in known.items():
                if not is_right(folder / name, digest, bar):
                    raise InputError(
                        f"{folder / name} is not what {self.cache.repo} published: its hash differs",
                        f"download it again: {self._command(commit, [name])} --force-download",
                    )
                trust(folder / name)
        return Snapshot(self.cache.repo, commit, folder, tuple(names))

    def _lacking(self, commit: str, error: LackingError) -> InputError:
        return InputError(f"{self._title(commit)} lacks {error}", "give a repository that has it")

    def _missing(self, commit: str | None, revision: str | None, error: UnreachableError) -> WeightsError:
        is_begun = bool(commit and self.cache.names(commit))
        wanted: Sequence[str] = self.selection.wider_globs if is_begun else self.selection.globs
        with contextlib.suppress(LackingError):
            if listed := self.cache.listed(commit) if commit else []:
                wanted = self.selection.choose(listed, self.cache.names(str(commit)))
        at, whole = commit or revision, "whole " if is_begun else ""
        return WeightsError(
            f"{self._title(at)} is not {whole}in the Hugging Face cache, {self.cache.folder.parent}, and {error}",
            f"on a machine with a network run: {self._command(at, wanted)}",
        )

    def _command(self, revision: str | None, wanted: Sequence[str]) -> str:
        """What fetches files with huggingface_hub's own program."""
        words = ["hf", "download", self.cache.repo, *(["--revision", revision] if revision else [])]
        if any("*" in name for name in wanted):
            words += [word for name in wanted for word in ("--include", name)]
        else:
            words += wanted
        return shlex.join(words)

    def _title(self, revision: str | None) -> str:
        return f"{self.cache.repo}@{revision[:12]}" if revision else self.cache.repo


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_offline() -> bool:
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def _cpu() -> "torch.device":
    import torch

    return torch.device("cpu")
