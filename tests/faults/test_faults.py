"""Short forms of the commands in this folder."""

import os
from functools import partial
from importlib.util import find_spec

import pytest

from rapm_cli.core.common.errors import is_disk_full
from tests.faults import boundaries, flips, fuzz
from tests.forked import Forked

pytestmark = pytest.mark.skipif(os.name == "nt", reason="forks")


@pytest.mark.parametrize("subject", boundaries.SUBJECTS, ids=lambda subject: subject.title)
def test_a_kill_at_every_boundary_of_a_commit_leaves_the_old_or_the_new(subject):
    made = boundaries.try_all(subject)
    assert made.kills > 10
    assert made.neither == []
    assert (made.litter, made.redone) == (0, made.kills)
    assert made.old + made.new == made.kills


@pytest.mark.slow
def test_damage_of_every_kind_is_found_named_and_got_around():
    for kind, counts in flips.main(5, is_exhaustive=False).items():
        assert len(set(counts)) == 1, kind


@pytest.mark.slow
def test_malformed_inputs_end_with_a_line_and_a_code():
    tallies = fuzz.main(450)
    assert all(sum(made.codes.values()) >= 20 for made in tallies.values())


@pytest.fixture
def with_small_demo(small_folder):
    """A statement that makes the small demo base `demo`."""
    return f"import pathlib; from tests import small_demo as s; s.use_small_demo(pathlib.Path({str(small_folder)!r}))"


def assert_holds(code: str, before: str = "") -> None:
    """Evaluate a condition in a fork, after a statement: forks need a parent that has computed nothing."""
    head = "from rapm_cli.evaluate import contact_sheet; from tests.faults import bits, disk, kill, overhead, samples"
    code = f"{head}; contact_sheet.COLUMNS = 1; {before or 'pass'}; raise SystemExit(not ({code}))"
    process = Forked([], {}, partial(exec, code, {}))
    said = process.communicate(timeout=600)
    assert process.returncode == 0, said


@pytest.mark.slow
def test_a_killed_distillation_ends_as_one_that_was_not(with_small_demo):
    assert_holds(
        "(m := kill.main(3, kill.SHORT, 3.0)).runs == m.equal > 0 and m.most_repeated <= kill.SAVE_EVERY",
        before=with_small_demo,
    )


@pytest.mark.slow
def test_a_killed_evaluation_ends_with_the_same_images_and_scores():
    if find_spec("torch_fidelity") is None:
        pytest.skip("torch_fidelity is not installed: pip install --no-deps -r .ci/peers.txt")
    assert_holds("(m := samples.main(2, 40, 3.0)).evaluations == m.equal > 0 and m.lost == m.litter == 0")


@pytest.mark.slow
def test_a_full_disk_costs_nothing_but_time():
    assert_holds("all(m.code == 5 and not m.litter and m.is_equal for m in disk.main(is_short=True))")


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_deterministic_runs_end_with_the_same_bits_stopped_or_not(with_small_demo, device):
    assert_holds(
        f"all(m.is_equal for m in bits.main({device!r}, 2, bits.SHORT) if {device!r} == 'cpu' or bits.FLAG in m.title)",
        before=with_small_demo,
    )


@pytest.mark.slow
def test_commits_log_and_bars_are_a_small_part_of_training():
    """Not a measurement: that is the command's to make, alone on its machine."""
    assert_holds("0 < overhead.main(1, 3, 4, 2) < 0.2")


def test_torchs_own_words_for_a_full_disk_are_known(tmp_path):
    import resource

    import torch

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises((RuntimeError, OSError)) as raised:
            torch.save(torch.zeros(100_000), tmp_path / "x.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert is_disk_full(raised.value), raised.value
