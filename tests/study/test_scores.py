import pytest
import torch

from rapm_cli.metrics import bootstrap_of
from rapm_cli.metrics.gap_closed import gap_closed
from rapm_cli.metrics.metric import LabelledSamples
from rapm_cli.study import scores as module
from rapm_cli.study.scores import scores

COUNT = 1000


def samples(shift, noise=0, wrong=0.1):
    """Features whose mean is about `shift` from the reference's; a share of the attributes is wrong."""
    reference = torch.randn(COUNT, 4, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(noise + 1)
    features = reference + torch.tensor([shift, 0, 0, 0]) + 0.3 * torch.randn(COUNT, 4, generator=generator)
    right = torch.rand(COUNT, 2, generator=generator) >= wrong
    return LabelledSamples(features, right, torch.ones_like(right), reference)


TEACHER, BASE = samples(1.0), samples(3.0)


def numbers(estimate):
    return estimate.value, estimate.low, estimate.high


def test_with_one_seed_values_and_intervals_are_those_of_an_evaluation():
    student = samples(2.0, noise=5)
    found = scores(TEACHER, BASE, [[student]])[2]
    closed, right = gap_closed(TEACHER, BASE, student), bootstrap_of("attributes").estimate("attributes", student)
    assert numbers(found["closed"]) == pytest.approx(numbers(closed), rel=1e-6)
    assert numbers(found["attributes"]) == pytest.approx(numbers(right), rel=1e-6)
    assert found["closed"].spread is None


def test_a_row_differs_from_itself_by_nothing_and_from_its_twin_neither():
    row = [samples(2.0, noise=5), samples(2.2, noise=6), samples(1.9, noise=7)]
    _, _, first, twin = scores(TEACHER, BASE, [row, list(row)])
    for estimate in (first["difference"], twin["difference"]):
        assert (estimate.value, estimate.low, estimate.high, estimate.spread) == (0, 0, 0, 0)


def test_a_paired_difference_is_known_better_than_either_of_its_rows():
    """Seeds scatter both rows alike, and the same prompts are in both: what is left of them is little."""
    shifts = (2.0, 2.4, 1.6)
    near = [samples(shift, noise) for noise, shift in enumerate(shifts)]
    far = [samples(shift + 0.1, noise) for noise, shift in enumerate(shifts)]
    _, _, first, second = scores(TEACHER, BASE, [near, far])
    assert second["difference"].value == pytest.approx(second["closed"].value - first["closed"].value)
    assert second["difference"].high < 0
    assert first["closed"].low < second["closed"].value
    width = second["difference"].high - second["difference"].low
    assert width < 0.5 * (second["closed"].high - second["closed"].low)


def test_seeds_widen_the_interval():
    same = [samples(2.0, noise=5)] * 3
    other = [samples(2.0, noise=5), samples(2.6, noise=5), samples(1.4, noise=5)]
    _, _, alike, scattered = scores(TEACHER, BASE, [same, other])
    assert alike["closed"].spread == 0
    width = {name: row["closed"].high - row["closed"].low for name, row in (("a", alike), ("b", scattered))}
    assert width["b"] > 3 * width["a"]


def test_the_seeds_part_of_an_interval_is_students_t():
    """Without an error of the prompts it is mean +- t s / sqrt(S), t of 2 degrees of freedom being 4.303."""
    (made,) = module._estimates([[1.0, 2.0, 3.0]], [[[2.0, 2.0, 2.0]]] * 10)
    assert (made.value, made.spread) == (2, 1)
    assert (made.high - made.value, made.value - made.low) == pytest.approx((4.303 / 3**0.5,) * 2, rel=0.03)


def test_a_row_without_scores_hides_no_other_and_is_compared_with_by_none():
    _, _, none, row = scores(TEACHER, BASE, [[], [samples(2.0)]])
    assert none == {}
    assert "closed" in row
    assert "difference" not in row


def test_closed_is_left_out_where_the_distance_means_nothing(monkeypatch):
    row = [samples(2.0)]
    assert "closed" not in scores(TEACHER, TEACHER, [row])[2]
    monkeypatch.setattr(module, "FEWEST_SAMPLES", COUNT + 1)
    assert "closed" not in scores(TEACHER, BASE, [row])[2]
    assert scores(TEACHER, BASE, [])[1]["fd-demo"].value > 0
