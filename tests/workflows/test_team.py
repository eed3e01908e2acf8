"""Two processes on one machine, over gloo, against one with twice the batch."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

WORK = ["--base", "demo", "--iterations", "3", "--trajectories", "6", "--samples", "0", "--save-every", "2"]
PAIR = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "rapm_cli"]


def start(home, *argv, processes=1):
    environment = os.environ | {"RAPM_HOME": str(home), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *(PAIR if processes == 2 else ["-m", "rapm_cli"]), "distill", *argv]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process, code=0):
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    return out, err


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
def test_two_processes_with_one_trajectory_each_are_one_with_two(tmp_path):
    pair, alone = tmp_path / "pair", tmp_path / "alone"
    both = [
        start(pair, *WORK, "--batch-size", "1", processes=2),
        start(alone, *WORK, "--batch-size", "2"),
    ]
    for process in both:
        out, _ = finish(process)
        assert out.count("lora") == 1  # one of the two talks
    mine, theirs = log_of(pair), log_of(alone)
    for slot, other in zip(mine[0]["slots"], theirs[0]["slots"], strict=True):  # before rounding has grown
        assert slot["absolute"] == pytest.approx(other["absolute"], rel=1e-4)
        assert slot["relative"] == pytest.approx(other["relative"], rel=1e-4)
        assert slot["discriminator"] == pytest.approx(other["discriminator"], rel=1e-4)
    assert mine[2]["slots"][0]["absolute"] == pytest.approx(theirs[2]["slots"][0]["absolute"], rel=1e-2)
    assert distance(pair, alone) < 0.02


@pytest.mark.slow
def test_a_stopped_pair_goes_on_as_one_process_and_as_a_pair(tmp_path):
    home = tmp_path / "home"
    longer = [*WORK, "--iterations", "40"]
    process = start(home, *longer, "--batch-size", "1", processes=2)
    deadline = time.monotonic() + 200
    while not list(home.glob("data/runs/*/commits/00000002")) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "iterations are saved; go on with: rapm distill --resume" in err
    done = max(int(path.name) for path in home.glob("data/runs/*/commits/[0-9]*"))
    for processes in (2, 1):
        _, err = finish(
            start(home, "--resume", run_of(home).name, "--iterations", str(done + 3 - processes), processes=processes)
        )
        assert f"going on after iteration {done + (processes == 1)}" in err
    assert len(log_of(home)) == done + 2


def test_processes_that_cannot_share_a_batch_are_refused(tmp_path):
    home = tmp_path / "home"
    finish(start(home, *WORK, "--iterations", "1", "--batch-size", "1"))
    process = start(home, "--resume", run_of(home).name, "--iterations", "2", processes=2)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "2 processes cannot share batches of 1" in err
