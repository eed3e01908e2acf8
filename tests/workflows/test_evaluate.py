import pytest
import torch

from rapm_cli.metrics.registry import Readings
from rapm_cli.workflows.evaluate import Contestant, Part, Row, Score, score


def row(role, distance):
    return Row(Contestant(role, 4, 4, lambda z, cond: z), 0.1, {"fd-demo": Score(distance, distance, distance)})


def test_closed_is_the_share_of_the_way_from_base_to_teacher():
    part = Part("held-out scenes", 1000, 0, [row("teacher", 10.0), row("base", 110.0), row("student", 30.0)])
    assert part.closed() == pytest.approx(0.8)
    worse = Part("held-out scenes", 1000, 0, [row("teacher", 10.0), row("base", 110.0), row("student", 210.0)])
    assert worse.closed() == pytest.approx(-1)


def test_closed_is_unknown_without_all_three():
    rows = [row("teacher", 10.0), row("base", 110.0)]
    assert Part("held-out scenes", 1000, 0, rows).closed() is None
    assert Part("held-out scenes", 64, 0, [*rows, row("student", 30.0)]).closed() is None


def test_an_interval_holds_no_share_above_one():
    """Three of eight pictures have a wrong attribute of four; the bootstrap's own upper bound is 1.003 here."""
    right = torch.ones(8, 4, dtype=torch.bool)
    right[:3, 0] = False
    features = torch.zeros(8, 2)
    got = score(Readings(features, right, torch.ones_like(right), features), "attributes")
    assert got.value == 29 / 32
    assert 0.8 < got.low < got.value
    assert got.high == 1
