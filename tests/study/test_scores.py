import pytest
import torch

from rapm_cli.evaluate.demo_scores import Part, Row, score
from rapm_cli.evaluate.models import EvalModel
from rapm_cli.metrics.registry import Readings
from rapm_cli.study import scores as module
from rapm_cli.study.scores import scores

COUNT = 1000


def readings(shift, noise=0, wrong=0.1):
    """Features whose mean lies about `shift` from the reference's; a share of the attributes is wrong."""
    reference = torch.randn(COUNT, 4, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(noise + 1)
    features = reference + torch.tensor([shift, 0, 0, 0]) + 0.3 * torch.randn(COUNT, 4, generator=generator)
    right = torch.rand(COUNT, 2, generator=generator) >= wrong
    return Readings(features, right, torch.ones_like(right), reference)


TEACHER, BASE = readings(1.0), readings(3.0)


def part(student):
    rows = []
    for role, seen in (("teacher", TEACHER), ("base", BASE), ("student", student)):
        contestant = EvalModel(role, 4, 4, lambda z, cond: [z], role)
        rows.append(Row(contestant, 0.1, seen, {"fd-demo": score(seen, "fd-demo")}))
    return Part("held-out scenes", COUNT, 0, rows)


def test_with_one_seed_scores_and_intervals_are_those_of_a_comparison():
    student = readings(2.0, noise=5)
    found = scores(TEACHER, BASE, [[student]])[2]
    closed, right = part(student).closed, score(student, "attributes")
    got = (found["closed"].mean, found["closed"].low, found["closed"].high)
    assert got == pytest.approx((closed.value, closed.low, closed.high), rel=1e-6)
    got = (found["attributes"].mean, found["attributes"].low, found["attributes"].high)
    assert got == pytest.approx((right.value, right.low, right.high), rel=1e-6)
    assert found["closed"].spread is None


def test_a_row_differs_from_itself_by_nothing_and_from_its_twin_neither():
    row = [readings(2.0, noise=5), readings(2.2, noise=6), readings(1.9, noise=7)]
    _, _, first, twin = scores(TEACHER, BASE, [row, list(row)])
    for estimate in (first["difference"], twin["difference"]):
        assert (estimate.mean, estimate.low, estimate.high, estimate.spread) == (0, 0, 0, 0)


def test_a_paired_difference_is_known_better_than_either_of_its_rows():
    """Seeds scatter both rows alike, and the same prompts are in both: what is left of them is little."""
    shifts = (2.0, 2.4, 1.6)
    near = [readings(shift, noise) for noise, shift in enumerate(shifts)]
    far = [readings(shift + 0.1, noise) for noise, shift in enumerate(shifts)]
    _, _, first, second = scores(TEACHER, BASE, [near, far])
    assert second["difference"].mean == pytest.approx(second["closed"].mean - first["closed"].mean)
    assert second["difference"].high < 0
    assert first["closed"].low < second["closed"].mean
    width = second["difference"].high - second["difference"].low
    assert width < 0.5 * (second["closed"].high - second["closed"].low)


def test_seeds_widen_the_interval():
    same = [readings(2.0, noise=5)] * 3
    other = [readings(2.0, noise=5), readings(2.6, noise=5), readings(1.4, noise=5)]
    _, _, alike, scattered = scores(TEACHER, BASE, [same, other])
    assert alike["closed"].spread == 0
    width = {name: row["closed"].high - row["closed"].low for name, row in (("a", alike), ("b", scattered))}
    assert width["b"] > 3 * width["a"]


def test_the_seeds_part_of_an_interval_is_students_t():
    """Without an error of the prompts it is mean +- t s / sqrt(S), t of 2 degrees of freedom being 4.303."""
    (made,) = module._estimates([[1.0, 2.0, 3.0]], [[[2.0, 2.0, 2.0]]] * 10)
    assert (made.mean, made.spread) == (2, 1)
    assert (made.high - made.mean, made.mean - made.low) == pytest.approx((4.303 / 3**0.5,) * 2, rel=0.03)


def test_a_row_without_scores_hides_no_other_and_is_compared_with_by_none():
    _, _, none, row = scores(TEACHER, BASE, [[], [readings(2.0)]])
    assert none == {}
    assert "closed" in row
    assert "difference" not in row


def test_closed_is_left_out_where_the_distance_means_nothing(monkeypatch):
    row = [readings(2.0)]
    assert "closed" not in scores(TEACHER, TEACHER, [row])[2]
    monkeypatch.setattr(module, "MIN_FRECHET", COUNT + 1)
    assert "closed" not in scores(TEACHER, BASE, [row])[2]
    assert scores(TEACHER, BASE, [])[1]["fd-demo"].mean > 0
