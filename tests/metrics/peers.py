"""The peers' mathematics, called with features; their networks, which want torchvision, are never built."""

import importlib
import sys
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest


class _EmptyClass(type):
    def __getattr__(cls, name: str):
        return _EmptyClass(name, (), {})


class _Empty(ModuleType):
    """Has whatever is asked of it: a class that has whatever is asked of it."""

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return _EmptyClass(name, (), {})


class _NoTorchvision(MetaPathFinder, Loader):
    """Stands in for torchvision and all below it."""

    def find_spec(self, name, path, target=None):
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] == "torchvision" else None

    def create_module(self, spec):
        return _Empty(spec.name)

    def exec_module(self, module):
        pass


def peer(module: str):
    """A module of a peer, imported beside a torchvision that does nothing where none for this torch is installed."""
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install --no-deps -r .ci/peers.txt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            importlib.import_module("torchvision")
        except Exception:  # noqa: BLE001  # a build for another torch raises what it likes
            sys.meta_path.insert(0, _NoTorchvision())
        try:
            return importlib.import_module(module)
        finally:
            sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _NoTorchvision)]
            for name in [n for n, made in sys.modules.items() if isinstance(made, _Empty)]:
                del sys.modules[name]
