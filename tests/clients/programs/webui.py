"""Read a PNG's `parameters` with A1111's or Forge's own code, and ask its DDIM for its timesteps.

`python webui.py CHECKOUT TEXT` prints JSON. Everything of the page that is not needed is replaced by a stand-in.
"""

import importlib.abc
import importlib.machinery
import json
import sys
import types
from pathlib import Path

REAL = {
    "modules", "modules.infotext_utils", "modules.infotext_versions", "modules.sd_samplers", "modules.sd_schedulers",
    "modules.sd_samplers_common", "modules.sd_samplers_kdiffusion", "modules.sd_samplers_lcm",
    "modules.sd_samplers_timesteps",
}  # fmt: skip
FAKED = ("modules", "modules_forge", "backend", "gradio", "k_diffusion", "ldm", "sgm", "ldm_patched")


class _AnyType(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything

    def __iter__(cls):
        return iter(())


class Anything(metaclass=_AnyType):
    """Stands for any object of the page."""

    def __init__(self, *args, **options):
        pass

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()

    def __call__(self, *args, **options):
        return args[0] if args and callable(args[0]) else Anything()

    def __iter__(self):
        return iter(())

    def __add__(self, other):
        return self

    def __len__(self):
        return 0

    def __bool__(self):
        return False


class Settings:
    """The page's settings, of which nearly all are off."""

    infotext_styles = "Ignore"

    def __getattr__(self, name):
        return False


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every module of the page that is not needed."""

    def find_spec(self, name, path=None, target=None):
        is_fake = name.split(".")[0] in FAKED and name not in REAL
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if is_fake else None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__path__ = []
        module.__getattr__ = _AnyType.__getattr__.__get__(Anything)
        module.device = "cpu"  # of `modules.devices`
        return module

    def exec_module(self, module):
        pass


def main() -> None:
    checkout, text = Path(sys.argv[1]), Path(sys.argv[2]).read_text(encoding="utf-8")
    sys.meta_path.insert(0, StandIns())
    sys.path.insert(0, str(checkout))
    from modules import infotext_utils, sd_samplers, sd_samplers_timesteps, shared

    shared.opts = Settings()
    sd_samplers_timesteps.opts = infotext_utils.shared.opts = shared.opts
    infotext_utils.infotext_versions.backcompat = lambda read: None
    read = infotext_utils.parse_generation_parameters(text, [])
    sampler, schedule = sd_samplers.get_sampler_and_scheduler(read.get("Sampler"), read.get("Schedule type"))
    names = ("Prompt", "Steps", "CFG scale", "Seed", "Size-1", "Size-2")
    ddim = object.__new__(sd_samplers_timesteps.CompVisSampler)
    ddim.config = None
    times = sd_samplers_timesteps.CompVisSampler.get_timesteps(ddim, Anything(), 4)
    facts = {name: read.get(name) for name in names} | {"sampler": sampler, "schedule": schedule}
    facts |= {"its own DDIM": [int(t) for t in times[1:].flip(0)]}
    sys.stdout.write(json.dumps(facts))


if __name__ == "__main__":
    main()
