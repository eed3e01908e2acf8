"""How commands find a run folder among others."""

import errno
import json
import os
import socket

from rapm_cli.runs.lock import HOLDER
from rapm_cli.runs.run import Run
from tests.messages import names
from tests.resuming import DISTILL, state_of, unfinished

LEFTOVERS = (["lock"], ["lock", "commits"], ["commits", "commits/.rapm-tmp-1-settings-001"])


def leave(place, leftover):
    place.mkdir()
    for name in leftover:
        (place / name).touch() if name == "lock" else (place / name).mkdir()


def test_processes_killed_before_their_first_commit_are_in_nobodys_way(rapm, again, tmp_path):
    unfinished(again, "00000004")
    for number, leftover in enumerate(LEFTOVERS):
        leave(again.folder.parent / f"demo-newer-{number}", leftover)
    code, _, err = rapm("distill", "--resume")
    assert (code, names(err, again.folder)) == (0, True), err
    for number, leftover in enumerate(LEFTOVERS):
        mine = tmp_path / f"mine-{number}"
        leave(mine, leftover)
        code, _, err = rapm(*DISTILL[:-1], "1", "--output", str(mine))
        assert code == 0, err
        assert Run(mine).has_lora


def test_a_finished_runs_damaged_lora_is_named_and_made_again(rapm, again):
    wanted = state_of(again)
    data = again.lora.read_bytes()
    again.lora.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    again_command = f"rapm distill --resume {again.folder.name}"
    exports = [("export", str(place)) for place in (again.folder, again.lora)]
    for argv in (*exports, ("generate", "a red cube"), ("eval", "--samples", "8")):
        code, _, err = rapm(*argv, "--base", "demo") if argv[0] != "export" else rapm(*argv)
        assert code == 3, err
        assert names(err, again.lora.name, "sha256", again_command)
    assert names(rapm("inspect", str(again.folder))[1], again_command)
    assert rapm(*again_command.split()[1:])[0] == 0
    assert state_of(again) == wanted


def test_a_run_that_cannot_be_looked_into_is_in_nobodys_way(rapm, again, monkeypatch):
    from rapm_cli.runs import run

    unfinished(again, "00000004")
    (again.folder.parent / "of-another-user").mkdir()
    real = run._changed_at

    def changed_at(folder):
        if folder.name == "of-another-user":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return real(folder)

    monkeypatch.setattr(run, "_changed_at", changed_at)
    code, _, err = rapm("distill", "--resume")
    assert (code, names(err, again.folder)) == (0, True), err


def test_two_runs_of_one_second_have_folders_of_their_own(home, monkeypatch):
    from rapm_cli.runs.run import new_run

    monkeypatch.setattr("time.strftime", lambda *a: "now")
    assert len({new_run("demo", None).folder for _ in range(3)}) == 3


def test_where_there_is_no_run_the_lora_that_generate_would_use_is_shown(rapm, home, shipped_lora):
    code, out, err = rapm("inspect")
    assert code == 0
    assert names(out, shipped_lora)
    assert names(err, "demo")


def test_a_run_that_another_process_trains_is_named_with_that_process(rapm, again):
    unfinished(again, "00000004")
    alive = os.getppid()
    (again.folder / HOLDER).write_text(json.dumps({"pid": alive, "host": socket.gethostname(), "since": "now"}))
    for argv in (["inspect"], ["export", str(again.folder)], ["inspect", str(again.folder)]):
        _, out, err = rapm(*argv)
        assert names(out + err, alive)
        assert "--resume" not in out + err


def test_where_no_run_has_a_lora_yet_the_unfinished_one_is_named(rapm, again):
    unfinished(again, "00000004")
    code, _, err = rapm("inspect")
    assert code == 3
    assert names(err, f"rapm distill --resume {again.folder.name}")
