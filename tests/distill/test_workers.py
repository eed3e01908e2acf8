"""Two processes on one machine, over gloo: against one with twice the batch, and how they end failure."""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed import HashStore

from rapm_cli.bases import find_base
from rapm_cli.bases.device import describe_machine
from rapm_cli.cli.console import Output
from rapm_cli.core.common.errors import ConfigError, PeerEnded
from rapm_cli.core.training.job_store import JobStore
from rapm_cli.distill import failure
from rapm_cli.distill.resolve_run import settings_without_weights
from rapm_cli.runs import signals
from tests.distill.faulty import prepare
from tests.forked import Forked
from tests.messages import names, naming
from tests.small_demo import use_small_demo

WORK = [
    "--base",
    "demo",
    "--iterations",
    "3",
    "--trajectories",
    "6",
    "--samples",
    "0",
    "--checkpoint-every",
    "2",
    "--fine-steps",
    "2",
    "--rank",
    "1",
    "--discriminator",
    "latent",
]
PAIR = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture
def start(small_folder):
    """Start `rapm distill` on the small demo base in as many processes as there are faults, without a launcher."""

    def started(home, *argv, faults=(None,)):
        ranks = [{} for _ in faults]
        if len(faults) > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                job = {"WORLD_SIZE": len(faults), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1]}
            ranks = [job | {"RANK": rank} for rank in range(len(faults))]
        usual = functools.partial(use_small_demo, small_folder)
        return [
            Forked(
                ["distill", *argv],
                {name: str(value) for name, value in {"RAPM_HOME": home, **rank}.items()},
                functools.partial(prepare, fault, small_folder) if fault else usual,
            )
            for rank, fault in zip(ranks, faults, strict=True)
        ]

    return started


def ended(processes):
    """The exit codes, standard outputs and standard errors of all processes."""
    said = [process.communicate(timeout=300) for process in processes]
    return [process.returncode for process in processes], *zip(*said, strict=True)


def run_of(home):
    (run,) = (home / "data" / "runs").iterdir()
    return run


def log_of(home):
    return [json.loads(line) for line in (run_of(home) / "metrics.jsonl").read_text().splitlines()]


def distance(one, other):
    """How far apart two LoRAs are, for their size: of B, which begins at zero."""
    a, b = (load_file(run_of(home) / "lora.safetensors") for home in (one, other))
    names = [name for name in a if ".lora_B." in name]
    apart = sum(float((a[name] - b[name]).square().sum()) for name in names)
    return (apart / sum(float(a[name].square().sum()) for name in names)) ** 0.5


@pytest.mark.slow
def test_two_processes_with_one_trajectory_each_are_one_with_two(start, tmp_path):
    pair, alone = tmp_path / "pair", tmp_path / "alone"
    both = [
        start(pair, *WORK, "--batch-size", "1", faults=(None, None)),
        start(alone, *WORK, "--batch-size", "2"),
    ]
    for processes in both:
        codes, outs, errs = ended(processes)
        assert set(codes) == {0}, errs
        assert "".join(outs).count("lora") == 1  # one of the two talks
    mine, theirs = log_of(pair), log_of(alone)
    for slot, other in zip(mine[0]["slots"], theirs[0]["slots"], strict=True):  # before rounding has grown
        assert slot["distance"] == pytest.approx(other["distance"], rel=1e-4)
        assert slot["discriminator"] == pytest.approx(other["discriminator"], rel=1e-4)
    assert mine[2]["slots"][0]["distance"] == pytest.approx(theirs[2]["slots"][0]["distance"], rel=1e-2)
    assert distance(pair, alone) < 0.02


@pytest.mark.slow
def test_a_stopped_pair_goes_on_as_one_process_and_as_a_pair(start, small_folder, tmp_path):
    home = tmp_path / "home"
    longer = [*WORK, "--iterations", "200", "--batch-size", "1"]
    command = [sys.executable, *PAIR, "-m", "tests.small_demo", str(small_folder), "distill", *longer]
    environment = os.environ | {"RAPM_HOME": str(home)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while not list(home.glob("data/runs/*/commits/00000002")) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert names(err, "rapm distill --resume")
    done = max(int(path.name) for path in home.glob("data/runs/*/commits/[0-9]*"))
    for processes in (2, 1):
        iterations = ("--iterations", str(done + 3 - processes))
        codes, _, errs = ended(start(home, "--resume", run_of(home).name, *iterations, faults=(None,) * processes))
        err = "".join(errs)
        assert set(codes) == {0}, err
        assert names(err, done + (processes == 1))
        assert names(err, "warning:", "2 processes") == (processes == 1)  # it ends with other bits, and says so
    assert len(log_of(home)) == done + 2


def test_processes_that_cannot_share_a_batch_are_refused():
    base, cpu, out = find_base("demo", Output()), torch.device("cpu"), Output()
    stored = settings_without_weights(base, {"batch_size": 1}, None, cpu, out)
    with pytest.raises(ConfigError, match=naming("2 processes", 1)):
        settings_without_weights(base, {}, None, cpu, out, stored, processes=2)


@pytest.mark.slow
def test_a_follower_that_fails_ends_the_first_one_which_tells_why(start, tmp_path):
    codes, _, (first, follower) = ended(start(tmp_path, *WORK, faults=("nothing", "out_of_memory_in_training")))
    assert (codes, follower) == ([6, 6], "")
    assert names(first, "stopped:", "process 1", f"rapm distill --resume {run_of(tmp_path).name}")
    assert not first.count("Traceback")
    assert not (run_of(tmp_path) / "lock.json").exists()  # it has ended as ever, not been broken off


@pytest.mark.slow
def test_the_followers_of_a_first_one_that_fails_end_silently_with_its_code(start, tmp_path):
    codes, _, (first, follower) = ended(start(tmp_path, *WORK, faults=("bad_weights", "nothing")))
    assert (codes, follower) == ([3, 3], "")
    assert first.endswith("error: the weights are bad; bring others\n")


@pytest.mark.slow
def test_followers_of_a_finished_run_end_silently(start, tmp_path):
    more = ["--iterations", "1", "--output", str(tmp_path / "run")]
    assert ended(start(tmp_path, *WORK, *more, "--batch-size", "2"))[0] == [0]
    codes, _, (_, follower) = ended(start(tmp_path, *WORK, *more, "--batch-size", "1", faults=(None, None)))
    assert (codes, follower) == ([0, 0], "")


@pytest.mark.slow
def test_a_signal_to_one_among_the_trajectories_stops_both_after_their_batches(start, tmp_path):
    codes, _, (first, follower) = ended(start(tmp_path, *WORK, faults=("nothing", "signal_in_first_write")))
    kept = 2 * len(list(tmp_path.glob("cache/trajectories/*/0*")))
    assert (codes, follower) == ([143, 143], "")
    assert names(first, "stopped:", kept, 6, "rapm distill --resume")
    assert kept >= 4


@pytest.mark.slow
def test_a_signal_to_a_follower_in_training_stops_both_after_an_iteration(start, tmp_path):
    codes, _, (first, follower) = ended(start(tmp_path, *WORK, faults=("nothing", "signal_in_first_iteration")))
    done = max(int(path.name) for path in run_of(tmp_path).glob("commits/[0-9]*"))
    assert (codes, follower) == ([143, 143], "")
    assert names(first, "stopped:", done, 3, "rapm distill --resume")
    assert done in (1, 2)  # the first one may have decided on one before it hears


def test_the_first_word_on_the_jobs_counts_and_is_news_to_the_others():
    store = HashStore()
    boards = [JobStore(store, rank, 3) for rank in range(3)]
    assert boards[0].peer_exit() is None
    assert boards[0].request_stop() is None
    boards[1].report_exit(6, "out of memory")
    boards[0].report_exit(1, "another is gone")
    assert boards[1].peer_exit() is None
    assert [jobs.peer_exit().exit_code for jobs in boards[::2]] == [6] * 2
    assert all(names(jobs.peer_exit().message, "process 1", "out of memory") for jobs in boards[::2])
    assert [boards[2].request_stop(15), boards[1].request_stop(2), boards[0].request_stop()] == [15] * 3
    boards[1].detach()
    assert [boards[0].all_detached([1], 0), boards[0].all_detached([1, 2], 0)] == [True, False]


def test_the_end_of_another_process_is_raised_in_patient_work(monkeypatch):
    monkeypatch.setattr(failure, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(failure, "GRACE_SECONDS", 0.1)
    store = HashStore()
    work, other = JobStore(store, 0, 2), JobStore(store, 1, 2)
    threading.Timer(0.1, other.report_exit, (5, "the disk is full")).start()

    def toil():
        with signals.handled(), failure.ending_together(work, Output()), signals.deferred("this"):
            while True:
                time.sleep(0.01)

    with pytest.raises(PeerEnded, match=naming("process 1", "the disk is full")) as caught:
        toil()
    assert caught.value.exit_code == 5


def test_a_follower_that_has_nothing_to_do_asks_a_jobs_that_goes_for_nothing_more(monkeypatch):
    jobs, asked = JobStore(HashStore(), 1, 2), []
    monkeypatch.setattr(jobs, "report_exit", lambda *word: asked.append(word))
    monkeypatch.setattr(jobs, "all_detached", lambda *world: asked.append(world))
    with pytest.raises(PeerEnded) as caught, failure.ending_together(jobs, Output()):
        raise PeerEnded("process 0 has ended: there is nothing to do", 0)
    assert (caught.value.message, caught.value.exit_code, asked) == ("", 0, [])


def test_a_process_that_cannot_be_interrupted_says_why_and_is_gone():
    code = """if True:
        import ctypes, threading
        from torch.distributed import HashStore
        from rapm_cli.cli.console import Output
        from rapm_cli.core.training.job_store import JobStore
        from rapm_cli.distill import failure
        failure.POLL_SECONDS, failure.INSIST_SECONDS = 0.01, 0.2
        store = HashStore()
        with failure.ending_together(JobStore(store, 0, 2), Output()):
            JobStore(store, 1, 2).report_exit(5, "the disk is full")
            ctypes.CDLL(None).sleep(60)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert done.returncode == 5
    assert names(done.stderr, "warning:", "process 1", "the disk is full")


def test_a_follower_says_nothing_before_it_is_led(rapm, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert rapm("distill", "--base", "demo", "--dry-run") == (0, "", "")


@pytest.mark.parametrize(
    ("set_to", "named"),
    [
        ({"WORLD_SIZE": "2"}, ("WORLD_SIZE", 2, "torchrun")),
        ({"WORLD_SIZE": "two"}, ("WORLD_SIZE", "'two'", "torchrun")),
    ],
)
def test_processes_that_were_not_started_together_are_refused_in_a_line(rapm, monkeypatch, set_to, named):
    for name, value in set_to.items():
        monkeypatch.setenv(name, value)
    code, out, err = rapm("distill", "--base", "demo")
    assert (code, out) == (2, "")
    assert names(err.splitlines()[-1], "error:", *named)


def test_a_machine_is_described_with_its_processes_where_there_are_several():
    one, two = (describe_machine(torch.device("cpu"), count) for count in (1, 2))
    assert two == f"{one}, 2 processes"
