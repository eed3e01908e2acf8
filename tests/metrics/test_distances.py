import numpy as np
import pytest
import scipy.linalg
import torch
from torchmetrics.image.fid import _compute_fid

from rapm_cli.metrics.bootstrap import bootstrap_interval
from rapm_cli.metrics.frechet import frechet_distance, moments
from rapm_cli.metrics.kernel import kernel_distance, paired_kernel_distance
from rapm_cli.metrics.registry import METRICS, Readings


def features(count, width, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator) / width**0.5
    return torch.randn(count, width, generator=generator) @ mix + shift


PAIRS = [
    (features(500, 16, 0), features(400, 16, 1, 0.3)),
    (features(2000, 64, 2), features(2000, 64, 3)),
    (features(300, 64, 4), features(300, 64, 4) * 1.1),
]


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_frechet_is_scipys_matrix_square_root(a, b):
    x, y = a.double().numpy(), b.double().numpy()
    s, t = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s + t - 2 * scipy.linalg.sqrtm(s @ t).real)
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_frechet_is_torchmetrics(a, b):
    p, q = moments(a), moments(b)
    expected = _compute_fid(p.mean, p.covariance, q.mean, q.covariance).item()
    assert frechet_distance(p, q) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_frechet_is_torch_fidelitys(a, b):
    metric = pytest.importorskip(
        "torch_fidelity.metric_fid", reason="torch-fidelity needs torchvision", exc_type=Exception
    )
    stats = [{"mu": m.mean.numpy(), "sigma": m.covariance.numpy()} for m in (moments(a), moments(b))]
    expected = metric.fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(expected, rel=1e-6)


def test_frechet_of_gaussians_in_one_dimension_is_its_closed_form():
    a, b = torch.randn(1000, 1) * 2 + 1, torch.randn(800, 1)
    expected = (a.double().mean() - b.double().mean()) ** 2 + (a.double().std() - b.double().std()) ** 2
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(expected.item(), rel=1e-9)


def test_frechet_to_itself_is_zero_with_fewer_samples_than_dimensions():
    few = features(20, 64, 7)
    assert frechet_distance(moments(few), moments(few)) == pytest.approx(0, abs=1e-5)


def test_moments_refuse_what_is_not_finite():
    with pytest.raises(ValueError, match="finite"):
        moments(torch.tensor([[1.0], [float("nan")]]))


def test_kernel_distance_is_the_double_loop():
    a, b = features(12, 5, 0).double(), features(9, 5, 1).double()

    def k(x, y):
        return (x @ y / 5 + 1) ** 3

    xx = sum(k(a[i], a[j]) for i in range(12) for j in range(12) if i != j) / (12 * 11)
    yy = sum(k(b[i], b[j]) for i in range(9) for j in range(9) if i != j) / (9 * 8)
    xy = sum(k(x, y) for x in a for y in b) / (12 * 9)
    assert kernel_distance(a, b) == pytest.approx((xx + yy - 2 * xy).item(), rel=1e-9)


def test_kernel_distance_is_unbiased_between_equal_distributions():
    values = [kernel_distance(torch.randn(60, 8), torch.randn(60, 8)) for _ in range(200)]
    mean, error = np.mean(values), np.std(values) / len(values) ** 0.5
    assert abs(mean) < 4 * error


def test_pairs_of_the_same_scene_do_not_make_it_too_low():
    """Rows of one distribution, alike in pairs: the true distance is zero."""

    def values(are_paired):
        made = []
        for _ in range(200):
            scene = torch.randn(40, 8)
            views = (scene + 0.3 * torch.randn(40, 8) for _ in range(2))
            made.append(kernel_distance(*views, are_paired=are_paired))
        return np.mean(made), np.std(made) / len(made) ** 0.5

    mean, error = values(True)
    assert abs(mean) < 4 * error
    mean, error = values(False)
    assert mean < -4 * error


def test_subsets_have_the_mean_of_the_whole():
    a, b = features(1200, 4, 0), features(1200, 4, 1) + 0.5
    whole = kernel_distance(a, b, are_paired=True)
    assert paired_kernel_distance(a, b, torch.Generator().manual_seed(0)) == pytest.approx(whole, rel=0.02)
    few = a[:50], b[:50]
    assert paired_kernel_distance(*few, torch.Generator()) == kernel_distance(*few, are_paired=True)


def test_the_bootstrap_of_a_mean_is_its_standard_error():
    x = torch.randn(400, generator=torch.Generator().manual_seed(0))
    low, high = bootstrap_interval(lambda k: float(x[k].mean()), 400, torch.Generator().manual_seed(1), draws=2000)
    assert (high - low) / 2 == pytest.approx(1.96 * float(x.std()) / 20, rel=0.1)
    assert (high + low) / 2 == pytest.approx(float(x.mean()), abs=0.01)


@pytest.mark.parametrize("name", METRICS.names())
def test_every_metric_tells_better_from_worse(name):
    """Readings of true pictures beat readings of shifted ones, in the direction that the metric states."""
    truth, other = features(200, 6, 0), features(200, 6, 1)
    asked = torch.ones(200, 8, dtype=torch.bool)
    asked[:50, 3:6] = False
    good = Readings(other, asked.clone(), asked, truth)
    bad = Readings(
        other + 2, asked & (torch.rand(200, 8, generator=torch.Generator().manual_seed(0)) < 0.8), asked, truth
    )
    metric = METRICS[name]
    better, worse = metric.compute(good), metric.compute(bad)
    assert better > worse if metric.is_higher_better else better < worse


def test_what_a_prompt_does_not_ask_for_cannot_be_wrong():
    asked = torch.tensor([[True, False], [True, True]])
    right = torch.tensor([[True, False], [True, False]])
    readings = Readings(torch.zeros(2, 1), right, asked, torch.zeros(2, 1))
    assert METRICS["attributes"].compute(readings) == pytest.approx(2 / 3)
    assert METRICS["pictures"].compute(readings) == pytest.approx(1 / 2)
