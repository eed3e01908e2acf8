import dataclasses

import pytest

from rapm_cli.core.method.config import LATER, TeacherConfig, TrainConfig
from rapm_cli.runs.settings import Settings

MADE = Settings(
    source="demo",
    base_name="demo",
    base_identity="x",
    teacher=TeacherConfig(base="demo"),
    training=TrainConfig(),
    prompts=("a",),
    samples=8,
    checkpoint_every=1,
)


def with_training(**changes):
    return dataclasses.replace(MADE, training=dataclasses.replace(MADE.training, **changes))


def test_runs_outlive_settings_that_came_after_them():
    assert MADE.fingerprint == "ad2ac347c9122d79"  # what it was before the last four of them came


def test_equal_weights_are_the_same_base_under_any_name():
    other = dataclasses.replace(MADE, source="/y", base_name="y", teacher=dataclasses.replace(MADE.teacher, base="y"))
    assert MADE.differences(other, may_round=False) == []
    assert other.named_as(MADE) == dataclasses.replace(MADE, source="/y")
    assert other.named_as(MADE).fingerprint == MADE.fingerprint != other.fingerprint
    changed = dataclasses.replace(other, base_identity="z")
    assert len(MADE.differences(changed, may_round=False)) == 1
    assert changed.named_as(MADE) == changed


@pytest.mark.parametrize("name", LATER)
def test_a_setting_that_came_later_makes_another_run(name):
    other = {
        "method": "pcm",
        "lora_init": "gaussian",
        "discriminator_times": "all",
        "fake_updates": 1,
        "lcm_times": 10,
    }
    fields = {"discriminator_times": "discriminator_noise", "lcm_times": "lcm_timesteps", "final_rate": "min_lr_ratio"}
    if name == "sizes":
        changed = dataclasses.replace(MADE, teacher=dataclasses.replace(MADE.teacher, sizes=("64x96",)))
    else:
        changed = with_training(**{fields.get(name, name): other.get(name, 0.5)})
    assert changed.fingerprint != MADE.fingerprint
    assert MADE.differences(changed, may_round=True)
