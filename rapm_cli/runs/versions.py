"""Versions of rapm and of the libraries that a measured value can depend on."""

import functools
from importlib.metadata import PackageNotFoundError, version

from rapm_cli import __version__

LIBRARIES = ("torch", "diffusers", "transformers", "pillow", "numpy", "torch-fidelity")


@functools.cache
def versions() -> dict[str, str]:
    """Return name to version, of rapm and of the `LIBRARIES` that are installed."""
    found = {"rapm": __version__}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
