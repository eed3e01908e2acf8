"""Launchers that start fewer processes than they were asked for."""

import pytest

from rapm_cli.runs.launcher import lone_process_warning

# What accelerate 1.15 gives to its process: MASTER_ADDR comes with --num_processes above 1 alone.
ACCELERATE = {"ACCELERATE_USE_CPU": "True", "ACCELERATE_MIXED_PRECISION": "no"}
NAMES = ("WORLD_SIZE", "RANK", "MASTER_ADDR", *ACCELERATE, "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")


@pytest.mark.parametrize(
    ("given", "warns"),
    [
        ({}, False),
        (ACCELERATE, False),
        (ACCELERATE | {"MASTER_ADDR": "127.0.0.1"}, True),
        (ACCELERATE | {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "RANK": "0"}, False),
        ({"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "1", "RANK": "0"}, False),  # torchrun --nproc-per-node 1
        ({"MASTER_ADDR": "login"}, False),  # a cluster's own variable
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
    ],
)
def test_a_process_that_is_alone_where_several_were_asked_for_says_so(monkeypatch, given, warns):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert bool(lone_process_warning()) == warns
    assert ("torchrun" in lone_process_warning()) == warns
