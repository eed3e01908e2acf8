"""Check files of the hub: the hash that the hub lists, hashes that rapm knows, and files that were checked before."""

import contextlib
import hashlib
from pathlib import Path

from rapm_cli.bases.places import cache_dir
from rapm_cli.core.common.progress import Bar
from rapm_cli.core.storage.files import replace_file

CHUNK_BYTES = 2**20
SHA256_LETTERS = 64
# sha256 of files by commit, as the hub listed them when rapm was written. Every server, mirrors too, must send these.
SHA256 = {
    "462165984030d82259a11f4367a4eed129e94a7b": {  # stabilityai/stable-diffusion-xl-base-1.0
        "text_encoder/model.fp16.safetensors": "660c6f5b1abae9dc498ac2d21e1347d2abdb0cf6c0c0c8576cd796491d9a6cdd",
        "text_encoder_2/model.fp16.safetensors": "ec310df2af79c318e24d20511b601a591ca8cd4f1fce1d8dff822a356bcdb1f4",
        "unet/diffusion_pytorch_model.fp16.safetensors": (
            "83e012a805b84c7ca28e5646747c90a243c65c8ba4f070e2d7ddc9d74661e139"
        ),
        "vae/diffusion_pytorch_model.fp16.safetensors": (
            "bcb60880a46b63dea58e9bc591abe15f8350bde47b405f9c38f4be70c6161e68"
        ),
    }
}


def is_right(path: Path, digest: str, bar: Bar) -> bool:
    """Compare a file with its hash on the hub: sha256 for a file in LFS, git's sha1 for a small file.

    Args:
        path: File to read.
        digest: 64 or 40 hexadecimal digits.
        bar: Counts the bytes that were read.

    Raises:
        OSError: The file cannot be read.
    """
    if len(digest) == SHA256_LETTERS:
        found = hashlib.sha256()
    else:
        found = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            found.update(chunk)
            bar.advance(len(chunk))
    return found.hexdigest() == digest


def is_trusted(path: Path) -> bool:
    """Return True if `trust` was called for the file and nobody has written to it since."""
    try:
        return _stamp(path).exists()
    except OSError:
        return False


def trust(path: Path) -> None:
    """Remember that the bytes of a file are right, so that they are hashed only once."""
    with contextlib.suppress(OSError):  # then the next command hashes the file again
        replace_file(_stamp(path), f"{path}\n".encode())


def _stamp(path: Path) -> Path:
    real = path.resolve()
    state = real.stat()
    key = hashlib.sha256(repr((str(real), state.st_size, state.st_mtime_ns)).encode()).hexdigest()
    return cache_dir() / "verified" / key
