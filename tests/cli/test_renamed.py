"""Old names of options: every one is accepted in every place, with one line that names the new one."""

import json
import os

import pytest

from rapm_cli.cli.console import Output
from rapm_cli.cli.renamed import RENAMED, Command
from rapm_cli.cli.study_file import read_study
from rapm_cli.core.common.errors import ConfigError
from rapm_cli.core.method.config import TrainConfig, declared, option_name
from tests.messages import names

VALUES = {  # values other than the defaults; None for a switch
    "min-lr-ratio": 0.25,
    "discriminator-noise": "edge",
    "lcm-timesteps": 25,
    "no-cuda-graphs": None,
    "gradient-checkpointing": None,
    "checkpoint-every": 7,
    "teacher-samples": 3,
    "split": "seen",
    "compare-lora": "other",
    "eval-seed": 5,
}
OPTIONS = [(command, old, new) for command in ("distill", "eval") for old, new in RENAMED[command].items()]
KEYS = [(command, old, new) for command in ("distill", "study") for old, new in RENAMED[command].items()]
every_option = pytest.mark.parametrize(("command", "old", "new"), OPTIONS)


@pytest.fixture
def parsed(rapm, monkeypatch):
    """Run a command up to its work; return its parameters and the lines on standard error."""

    def run(*argv):
        seen = {}
        monkeypatch.setattr(Command, "invoke", lambda self, context: seen.update(context.params))
        code, _, err = rapm(*argv)
        assert code == 0, err
        seen.pop("config", None)
        return seen, err.splitlines()

    return run


def in_toml(name):
    value = VALUES[name]
    return "true" if value is None else repr(value)


@every_option
def test_an_old_flag_works_and_names_the_new_one(parsed, command, old, new):
    value, default = VALUES[new], parsed(command)
    assert default[1] == []
    for form in ("{}",) if value is None else ("{} {}", "{}={}"):
        now, quiet = parsed(command, *form.format(f"--{new}", value).split())
        before, lines = parsed(command, *form.format(f"--{old}", value).split())
        assert (quiet, len(lines)) == ([], 1)
        assert now == before != default[0]
        assert names(lines[0], "warning:", f"--{old}", f"--{new}")


@every_option
def test_an_old_name_in_the_environment_works_and_names_the_new_one(parsed, monkeypatch, command, old, new):
    variables = [f"RAPM_{command}_{name}".upper().replace("-", "_") for name in (old, new)]
    seen = []
    for variable in variables:
        with monkeypatch.context() as patch:
            patch.setenv(variable, "1" if VALUES[new] is None else str(VALUES[new]))
            seen.append(parsed(command))
    (before, lines), (now, quiet) = seen
    assert now == before != parsed(command)[0]
    assert (quiet, len(lines)) == ([], 1)
    assert names(lines[0], "warning:", *variables)
    assert not set(variables) & set(os.environ)


@every_option
def test_an_old_key_of_a_config_file_works_and_names_the_new_one(parsed, tmp_path, command, old, new):
    path = tmp_path / "run.toml"
    seen = []
    for key in (new, old, old.replace("-", "_")):
        path.write_text(f"{key} = {in_toml(new)}\n")
        seen.append((key, *parsed(command, "--config", str(path))))
    (_, now, quiet), *before = seen
    assert quiet == []
    assert now != parsed(command)[0]
    for key, parameters, lines in before:
        assert parameters == now
        assert len(lines) == 1
        assert names(lines[0], "warning:", path, key, new)


@pytest.fixture
def study(tmp_path, capfd):
    """Read a study; return what it holds and the lines on standard error."""
    path = tmp_path / "study.toml"

    def read(text):
        path.write_text(text)
        made = read_study(path, Output())
        return (made.held_out, made.exam_seed, made.given, made.rows), capfd.readouterr().err.splitlines()

    return read


@pytest.mark.parametrize(("command", "old", "new"), KEYS)
def test_an_old_key_of_a_study_works_and_names_the_new_one(study, tmp_path, command, old, new):
    value = in_toml(new)
    places = {"": "seeds = [0]\n{} = {}\nrows = [{{ name = 'a' }}]"}
    if command == "distill":
        places = {"[options]": "seeds = [0]\noptions = {{ {} = {} }}\nrows = [{{ name = 'a' }}]"}
    if command == "distill" and new != "checkpoint-every":
        places["row 'a'"] = "seeds = [0]\nrows = [{{ name = 'a', options = {{ {} = {} }} }}]"
        places["row 'b'"] = "seeds = [0]\nrows = [{{ name = 'b', best-of = {{ {} = [{}] }} }}]"
    for place, text in places.items():
        (now, quiet), (before, lines) = study(text.format(new, value)), study(text.format(old, value))
        assert now == before
        assert (quiet, len(lines)) == ([], 1)
        assert names(lines[0], "warning:", tmp_path / "study.toml", place, old, new)


@pytest.mark.parametrize(("command", "old", "new"), KEYS)
def test_an_old_and_the_new_key_together_are_refused(study, tmp_path, command, old, new):
    both = ", ".join(f"{name} = {in_toml(new)}" for name in (old, new))
    text = f"rows = [{{ name = 'a', options = {{ {both} }} }}]" if command == "distill" else both.replace(", ", "\n")
    with pytest.raises(ConfigError) as refused:
        study("seeds = [0]\n" + text + ("" if command == "distill" else "\nrows = [{ name = 'a' }]"))
    assert names(refused.value.message, tmp_path / "study.toml", old, new)


@pytest.mark.parametrize("command", ["distill", "eval"])
def test_help_and_completion_offer_only_new_names(rapm, monkeypatch, capfd, command):
    code, out, _ = rapm(command, "--help")
    for name, value in (("_RAPM_COMPLETE", "complete_bash"), ("COMP_WORDS", f"rapm {command} --"), ("COMP_CWORD", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        rapm()
    offered = capfd.readouterr().out.split()
    assert code == 0
    for old, new in RENAMED[command].items():
        assert f"--{new}" in offered
        assert f"--{old}" not in offered
        assert names(out, f"--{new}")
        assert not names(out, f"--{old}")


def test_inspect_shows_stored_settings_under_the_names_of_today(rapm, shipped_lora):
    _, out, _ = rapm("inspect", str(shipped_lora))
    stored = json.loads(rapm("inspect", str(shipped_lora), "--json")[1])["recipe"]["training"]
    renamed = {field.alias for field in declared(TrainConfig).values() if field.alias}
    assert set(stored) >= renamed
    for name in renamed:
        assert names(out, option_name(name), stored[name])
        assert f" {name} " not in out
