import json

import pytest

from rapm_cli.core.common.errors import ConfigError, InputError
from rapm_cli.core.common.registry import Registry
from rapm_cli.core.method.config import (
    TeacherConfig,
    TrainConfig,
    declared,
    from_json,
    option_name,
    options,
    to_json,
)
from tests.messages import names, naming


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rank", 0), ("alpha", 0.0), ("alpha", float("nan")), ("iterations", 0), ("batch_size", 0),
        ("learning_rate", 0.0), ("learning_rate", 1.0), ("learning_rate", float("nan")),
        ("discriminator_learning_rate", 2.0), ("relative_weight", -1.0), ("absolute_weight", float("inf")),
        ("adversarial_weight", -0.1), ("slot_weights", (1.0, -1.0)),
        ("slot_weights", (float("nan"), 1.0)), ("start_from", "noise"),
        ("discriminators", "neither"), ("warmup", -1), ("weight_decay", -0.1),
        ("weight_decay", 1e300), ("seed", -3), ("max_grad_norm", 0.0),
        ("lora_init", "zeros"), ("min_lr_ratio", 1.1), ("ema_decay", 1.0),
        ("discriminator_noise", "some"), ("lcm_timesteps", 0), ("lcm_timesteps", 600), ("slot_weights", (0.0, 0.0)),
    ],
)  # fmt: skip
def test_training_values_out_of_range_are_named_with_a_remedy(field, value):
    with pytest.raises(ConfigError) as refused:
        TrainConfig(**{field: value})
    assert field.replace("_", "-") in refused.value.message
    assert refused.value.remedy


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_slots", 3), ("fine_steps", 1), ("fine_steps", 500), ("delta", 0), ("delta", 10), ("trajectories", 0),
        ("guidance_scale", 0.5), ("seed", -1), ("precision", "fp8"),
    ],
)  # fmt: skip
def test_teacher_values_out_of_range_are_refused(field, value):
    with pytest.raises(ConfigError) as refused:
        TeacherConfig(base="demo", **{field: value})
    assert str(value) in refused.value.message + refused.value.remedy


def test_weights_that_are_no_numbers_are_named():
    for values in (["a"], ("a", 1.0), [None], "a"):
        with pytest.raises(ConfigError, match=naming("--slot-weights")):
            TrainConfig(slot_weights=values)


@pytest.mark.parametrize("name", ["lcm_timesteps", "gradient_checkpointing"])
def test_a_setting_under_its_old_and_its_new_name_is_refused(name):
    old = declared(TrainConfig)[name].alias
    default = getattr(TrainConfig(), name)
    with pytest.raises(ConfigError) as refused:
        TrainConfig(**{old: default, name: default})
    assert names(refused.value.message, f"--{name.replace('_', '-')}", old, name)


def test_the_declaration_of_every_setting_names_its_range():
    for name, *_ in options():
        kind, rest = (TrainConfig, {}) if name in declared(TrainConfig) else (TeacherConfig, {"base": "demo"})
        with pytest.raises(ConfigError) as refused:
            kind(**rest, **{name: object()})
        assert option_name(name) in refused.value.message
        assert "another value" not in refused.value.remedy, name


def test_a_run_without_any_loss_is_refused():
    with pytest.raises(ConfigError, match="loss"):
        TrainConfig(relative_weight=0, absolute_weight=0, discriminators="none")


def test_configs_survive_json():
    training = TrainConfig(rank=3, slot_weights=(1.0, 0.5))
    back = json.loads(json.dumps(to_json(training)))
    assert (back["rank"], back["slot_weights"]) == (3, [1.0, 0.5])
    teacher = TeacherConfig(base="demo", guidance_scale=3.5)
    assert from_json(TeacherConfig, json.loads(json.dumps(to_json(teacher)))) == teacher
    assert from_json(TrainConfig, back) == training


@pytest.mark.parametrize("record", [None, [], {"rank": "3"}, {"rank": True}, {"rnak": 3}, {"rank": 0}, {"seed": 1.5}])
def test_settings_of_wrong_types_are_refused_when_read(record):
    with pytest.raises(InputError):
        from_json(TrainConfig, record)


def test_alpha_is_the_rank_unless_said_otherwise():
    assert (TrainConfig(rank=8).alpha, TrainConfig(rank=8, alpha=2.0).alpha) == (8.0, 2.0)


def test_the_fingerprint_tells_every_setting_apart():
    changes = [{}, {"fine_steps": 5}, {"delta": 2}, {"guidance_scale": 2.0}, {"trajectories": 5}, {"seed": 1}]
    prints = {TeacherConfig(base="demo", **change).fingerprint("prompts") for change in changes}
    assert len(prints) == len(changes)
    assert TeacherConfig(base="demo").fingerprint("a") != TeacherConfig(base="demo").fingerprint("b")


def test_a_registry_refuses_doubles_and_names_what_exists():
    things: Registry[int] = Registry("thing")
    things.add("one")(1)
    with pytest.raises(ValueError, match="one"):
        things.add("one")(2)
    with pytest.raises(ConfigError) as refused:
        things["onne"]
    assert "'one'" in refused.value.remedy
