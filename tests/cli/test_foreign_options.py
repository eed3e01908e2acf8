"""Options of other programs: each means an option of rapm, or is answered with what to type."""

import pytest
import typer

from rapm_cli.cli.app import app
from rapm_cli.cli.foreign_options import ANSWERS, SAME
from rapm_cli.cli.renamed import Command
from tests.messages import names

COMMANDS = typer.main.get_command(app).commands
FLAGS = {name: {flag for one in command.params for flag in one.opts} for name, command in COMMANDS.items()}


@pytest.fixture
def parsed(rapm, monkeypatch):
    """Run a command up to its work; return its parameters."""

    def run(*argv):
        seen = {}
        monkeypatch.setattr(Command, "invoke", lambda self, context: seen.update(context.params))
        assert rapm(*argv)[0] == 0
        return {name: value for name, value in seen.items() if name != "config"}

    return run


@pytest.mark.parametrize(("foreign", "own"), SAME.items())
def test_a_name_of_another_program_means_an_option_of_some_command(foreign, own):
    having = [name for name, flags in FLAGS.items() if f"--{own}" in flags]
    assert having
    assert not any(f"--{foreign}" in FLAGS[name] for name in having)


def test_no_answer_hides_an_option():
    hidden = {(command, name) for name in ANSWERS for command, flags in FLAGS.items() if f"--{name}" in flags}
    assert hidden == {("distill", "guidance")}


@pytest.mark.parametrize(
    ("command", "foreign", "own"),
    [
        ("distill", "--lr 1e-3", "--learning-rate 1e-3"),
        ("distill", "--lr=1e-3", "--learning-rate=1e-3"),
        ("distill", "--learning_rate 1e-3", "--learning-rate 1e-3"),
        ("distill", "--guidance_scale 3", "--guidance 3"),
        ("distill", "--max_train_steps 9", "--iterations 9"),
        ("generate", "-n 3", "--num-images 3"),
        ("generate", "--num_inference_steps 5", "--steps 5"),
        ("generate", "-- -n", "-- -n"),
    ],
)
def test_other_names_of_options_work(parsed, command, foreign, own):
    assert parsed(command, *foreign.split()) == parsed(command, *own.split())


@pytest.mark.parametrize("key", ["lr", "learning_rate", "learning-rate"])
def test_other_names_work_in_a_config_file(parsed, tmp_path, key):
    (tmp_path / "x.toml").write_text(f"{key} = 1e-3\n", encoding="utf-8-sig")
    assert parsed("distill", "--config", str(tmp_path / "x.toml")) == parsed("distill", "--learning-rate", "1e-3")


@pytest.mark.parametrize("name", ANSWERS)
def test_other_options_are_answered(rapm, tmp_path, name):
    flag = f"-{name}" if len(name) == 1 else f"--{name}"
    code, out, err = rapm("generate", "a red cube", flag, "1")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert names(err, flag)
    (tmp_path / "x.toml").write_text(f"{name} = 1\n")
    code, _, err = rapm("generate", "a red cube", "--config", str(tmp_path / "x.toml"))
    assert (code, len(err.splitlines())) == (2, 1)
    assert names(err, tmp_path / "x.toml", repr(name))


def test_an_option_without_its_value_is_not_answered_as_foreign(rapm):
    code, _, err = rapm("distill", "--guidance")
    assert code == 2
    assert names(err, "--guidance", "distill")


def test_the_last_of_several_numbers_counts_and_is_named(rapm, parsed):
    assert parsed("generate", "--steps", "5", "--steps=8") == parsed("generate", "--steps", "8")
    code, _, err = rapm("generate", "--steps", "5", "--steps=8")
    assert (code, len(err.splitlines())) == (0, 1)
    assert names(err, "warning:", "--steps", 2)
