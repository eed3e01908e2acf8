"""One repository in the Hugging Face cache, laid out as huggingface_hub does: blobs by their hash, snapshots of links.

Source: https://huggingface.co/docs/huggingface_hub/guides/manage-cache. What is written here other programs find, and
the other way round.
"""

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rapm_cli.bases.places import cache_dir
from rapm_cli.core.common.errors import ConfigError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.storage.files import replace_file

COMMIT = re.compile(r"[0-9a-f]{40}")
DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # git's sha1 of a small file, sha256 of one in LFS
LOCK_SECONDS = 0.1  # before the user is told that somebody else downloads the same file


@dataclass(frozen=True)
class RepoCache:
    """The place of a repository.

    Args:
        repo: Its name on the hub.
        folder: Where it is or will be.
        has_links: False where the user wants files in place of links.
    """

    repo: str
    folder: Path
    has_links: bool

    @classmethod
    def of(cls, repo: str) -> "RepoCache":
        """The place of a repository in the cache that huggingface_hub uses.

        Raises:
            ConfigError: There cannot be such a repository.
        """
        from huggingface_hub import constants
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.file_download import repo_folder_name
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # its names are made when asked for

        try:
            validate_repo_id(repo)
        except HFValidationError as error:
            raise ConfigError(f"{repo!r} is no name of a repository", "write it as ORG/NAME") from error
        folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
        return cls(repo, folder, not constants.HF_HUB_DISABLE_SYMLINKS)

    def commit_of(self, revision: str | None) -> str | None:
        """The commit that a branch or tag stood for when it was last looked up; None where it never was."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            commit = (self.folder / "refs" / (revision or "main")).read_text().strip()
            return commit if COMMIT.fullmatch(commit) else None
        return None

    def remember(self, revision: str | None, commit: str) -> None:
        """Note what a branch or tag stands for."""
        if revision != commit and self.commit_of(revision) != commit:
            replace_file(self.folder / "refs" / (revision or "main"), commit.encode())

    def snapshot(self, commit: str) -> Path:
        """The folder of a commit's files."""
        return self.folder / "snapshots" / commit

    def blob(self, digest: str) -> Path:
        """Where the bytes of that hash are."""
        return self.folder / "blobs" / digest

    def part(self, digest: str) -> Path:
        """Where they are until they are all there; `hf cache` knows such files as unfinished."""
        return self.blob(digest).with_name(f"{digest}.incomplete")

    def listed(self, commit: str) -> list[str]:
        """All names in a commit, where huggingface_hub noted them; else none."""
        from huggingface_hub import get_cached_repo_tree
        from huggingface_hub.errors import CachedRepoTreeNotFoundError

        try:
            tree = get_cached_repo_tree(self.repo, revision=commit, cache_dir=self.folder.parent)
        except CachedRepoTreeNotFoundError:
            return []
        return [file.path for file in tree]

    def names(self, commit: str) -> list[str]:
        """The files of a commit that are here; a link whose blob is gone is none."""
        folder = self.snapshot(commit)
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

    def digest(self, commit: str, name: str) -> str | None:
        """What the cache says is the hash of a file; None where it is no link to a blob."""
        path = self.snapshot(commit) / name
        with contextlib.suppress(OSError):
            target = Path(os.readlink(path)).name  # one step: blobs can be links to a store of many repositories
            return target if DIGEST.fullmatch(target) else None
        return None

    def link(self, digest: str, commit: str, name: str, *, is_new: bool) -> None:
        """Put a blob into a snapshot; where there are no links, a new blob is moved there.

        Raises:
            OSError: It cannot be written.
        """
        blob, path = self.blob(digest), self.snapshot(commit) / name
        if path.is_file():
            return  # another process was faster, and may be reading it
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # a link whose blob was removed
        with contextlib.suppress(OSError):
            if self.has_links:
                path.symlink_to(os.path.relpath(blob, path.parent))
                return
        if is_new:
            blob.replace(path)
        else:
            shutil.copyfile(blob, path)  # links of other commits may lead to it

    @contextmanager
    def locked(self, digest: str, name: str, reporter: Reporter) -> Iterator[None]:
        """Hold a blob, by the lock that huggingface_hub takes too.

        Raises:
            OSError: The lock cannot be written.
        """
        from filelock import Timeout
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # its names are made when asked for

        path = self.folder.parent / ".locks" / self.folder.name / f"{digest}.lock"
        for place in (path, self.blob(digest)):
            place.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                stack.enter_context(WeakFileLock(path, timeout=LOCK_SECONDS))
            except Timeout:
                reporter.say(f"waiting for another process, which downloads {name} of {self.repo}")
                stack.enter_context(WeakFileLock(path))
            yield


def is_trusted(path: Path) -> bool:
    """True for a file whose bytes were once found to be right, and that has not been written since."""
    try:
        return _stamp(path).exists()
    except OSError:
        return False


def trust(path: Path) -> None:
    """Note that the bytes of a file are right."""
    with contextlib.suppress(OSError):  # then they are looked at again
        replace_file(_stamp(path), f"{path}\n".encode())


def _stamp(path: Path) -> Path:
    real = path.resolve()
    state = real.stat()
    key = hashlib.sha256(repr((str(real), state.st_size, state.st_mtime_ns)).encode()).hexdigest()
    return cache_dir() / "verified" / key
