"""The help page of `rapm distill`: what most runs need stands first, with the defaults that hold."""

import pytest

from rapm_cli.bases import BASES
from rapm_cli.core.method.config import options

OF_BASES = [(name, option.shown_default) for name, _, option in options() if option.is_bases and name != "alpha"]


@pytest.mark.parametrize(("name", "shown"), OF_BASES)
def test_the_defaults_shown_are_those_of_the_bases(name, shown):
    real, _, demo = shown.partition(", demo: ")
    assert float(real) == getattr(BASES["sdxl"].defaults, name) == getattr(BASES["sd15"].defaults, name)
    assert float(demo or real) == getattr(BASES["demo"].defaults, name)


def test_what_most_runs_need_stands_before_everything_else(rapm):
    code, out, _ = rapm("distill", "--help")
    assert code == 0
    shown = [line.split()[1] for line in out.splitlines() if line.startswith(("│ --", "| --"))]
    assert shown[:4] == ["--base", "--prompts", "--trajectories", "--rank"]
    assert shown.index("--resume") < shown.index("--device") < shown.index("--steps")
    every = BASES["sdxl"].defaults.checkpoint_every, BASES["demo"].defaults.checkpoint_every
    assert "{}, demo: {}".format(*every) in " ".join(out.split())
