from dataclasses import replace

import pytest
import torch

from rapm_cli.evaluate.demo_scores import Part, Row, Score, score
from rapm_cli.evaluate.models import EvalModel
from rapm_cli.metrics.registry import Readings


def row(role, shift, count=1000):
    """Features whose mean lies `shift` from the reference's, with the same covariance: their distance is shift^2."""
    reference = torch.randn(count, 4, generator=torch.Generator().manual_seed(0))
    right = torch.ones(count, 2, dtype=torch.bool)
    readings = Readings(reference + torch.tensor([shift, 0, 0, 0]), right, right, reference)
    scores = {"fd-demo": Score(shift**2, shift**2, shift**2)}
    return Row(EvalModel(role, 4, 4, lambda z, cond: [z], role), 0.1, readings, scores)


def test_closed_is_the_share_of_the_way_from_base_to_teacher():
    others = [row("teacher", 1.0), row("base", 3.0)]
    part = Part("held-out scenes", 1000, 0, [*others, row("student", 2.0)])
    assert part.closed.value == pytest.approx((9 - 4) / (9 - 1), rel=1e-3)
    worse = Part("held-out scenes", 1000, 0, [*others, row("student", 5.0)])
    assert worse.closed.value == pytest.approx(-2, rel=1e-3)


def test_the_interval_of_closed_resamples_all_three_together():
    """Every distance varies with the prompts; a student equal to its teacher closes all of it in every resample."""
    teacher, base = row("teacher", 1.0), row("base", 3.0)
    twin = replace(teacher, contestant=replace(teacher.contestant, role="student"))
    closed = Part("held-out scenes", 1000, 0, [teacher, base, twin]).closed
    assert (closed.low, closed.value, closed.high) == pytest.approx((1, 1, 1))


def test_closed_is_unknown_without_all_three():
    rows = [row("teacher", 1.0), row("base", 3.0)]
    assert Part("held-out scenes", 1000, 0, rows).closed is None
    assert Part("held-out scenes", 64, 0, [*rows, row("student", 2.0)]).closed is None


def test_closed_is_unknown_where_the_base_is_as_near_as_its_teacher():
    rows = [row("teacher", 1.0), row("base", 1.0), row("student", 2.0)]
    assert Part("held-out scenes", 1000, 0, rows).closed is None


def test_an_interval_holds_no_share_above_one():
    """Three of eight pictures have a wrong attribute of four; the bootstrap's own upper bound is 1.003 here."""
    right = torch.ones(8, 4, dtype=torch.bool)
    right[:3, 0] = False
    features = torch.zeros(8, 2)
    got = score(Readings(features, right, torch.ones_like(right), features), "attributes")
    assert got.value == 29 / 32
    assert 0.8 < got.low < got.value
    assert got.high == 1
