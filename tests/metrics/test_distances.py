import functools

import numpy as np
import pytest
import scipy.linalg
import torch

from rapm_cli.metrics import METRICS
from rapm_cli.metrics.bootstrap import bootstrap_interval
from rapm_cli.metrics.frechet import frechet_distance
from rapm_cli.metrics.gap_closed import FEWEST_SAMPLES, gap_closed
from rapm_cli.metrics.kernel import distance_error, kernel_distance, paired_kernel_distance, subset_distances
from rapm_cli.metrics.metric import FILTERS, Evidence, LabelledSamples, ReferenceFeatures, TeacherDifference
from rapm_cli.metrics.moments import Moments, RunningMoments, moments
from tests.metrics.peers import peer

pytestmark = pytest.mark.usefixtures("all_resamples")


def features(count, width, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator) / width**0.5
    return torch.randn(count, width, generator=generator) @ mix + shift


# (D, N): below, at and above full rank
SIZES = [(2, 3), (2, 40), (64, 20), (64, 64), (64, 2000)]
BELOW, ABOVE = (2048, 100), (2048, 2500)  # as many features as Inception has
FEWER, MORE = (512, 100), (512, 700)  # for the peers, which take up to half a minute for 2,048


def sizes(*large):
    slow = [pytest.param(*size, marks=pytest.mark.slow) for size in large]
    return pytest.mark.parametrize(("width", "count"), [*SIZES, *slow])


@functools.cache
def two_sets(width, count):
    """Of unlike covariances and sizes."""
    return features(count, width, 0), 1.1 * features(count + 1, width, 1, 0.3)


@functools.cache
def ours(width, count):
    """The distance between them, which every peer is asked for too."""
    return frechet_distance(*map(moments, two_sets(width, count)))


def exact(a, b):
    """From the features, where few rows make singular covariances: the cross term is a nuclear norm.

    With S = X^T X / (n - 1), the trace of (S_a S_b)^(1/2) is the sum of the singular values of X Y^T, scaled.
    """
    x, y = ((side.double() - side.double().mean(dim=0)) / (len(side) - 1) ** 0.5 for side in (a, b))
    cross = torch.linalg.svdvals(x @ y.T if len(x) < x.shape[1] else _triangle(x) @ _triangle(y).T).sum()
    means = (a.double().mean(dim=0) - b.double().mean(dim=0)).square().sum()
    return float(means + x.square().sum() + y.square().sum() - 2 * cross)


def _triangle(x):
    return torch.linalg.qr(x, mode="r").R


def numpys(features):
    x = features.double().numpy()
    return x.mean(axis=0), np.cov(x, rowvar=False)


@sizes(BELOW, ABOVE)
def test_frechet_is_exact(width, count):
    a, b = two_sets(width, count)
    assert ours(width, count) == pytest.approx(exact(a, b), rel=1e-6)


# Theirs is off where covariances are singular; by as much as is allowed here (reference figure: 2e-7 to 1e-3).
def allowed(width, count):
    return 1e-6 if count > width else 2e-3


@sizes()
def test_frechet_is_scipys_matrix_square_root(width, count):
    a, b = two_sets(width, count)
    (m, s), (n, t) = numpys(a), numpys(b)
    expected = ((m - n) ** 2).sum() + np.trace(s + t) - 2 * np.trace(scipy.linalg.sqrtm(s @ t)).real
    assert ours(width, count) == pytest.approx(expected, rel=allowed(width, count))


@sizes(FEWER)
def test_frechet_is_torchmetrics(width, count):
    p, q = map(moments, two_sets(width, count))
    expected = peer("torchmetrics.image.fid")._compute_fid(p.mean, p.covariance, q.mean, q.covariance).item()
    assert ours(width, count) == pytest.approx(expected, rel=allowed(width, count))


@sizes(MORE)
def test_frechet_is_torch_fidelitys(width, count):
    metric, (p, q) = peer("torch_fidelity.metric_fid"), (moments(side) for side in two_sets(width, count))
    stats = [{"mu": m.mean.numpy(), "sigma": m.covariance.numpy()} for m in (p, q)]
    expected = metric.fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
    assert ours(width, count) == pytest.approx(expected, rel=allowed(width, count))


@pytest.mark.filterwarnings("ignore:The `disp` argument is deprecated")
@sizes(FEWER, MORE)
def test_frechet_is_pytorch_fids(width, count):
    theirs, (a, b) = peer("pytorch_fid.fid_score").calculate_frechet_distance, two_sets(width, count)
    expected = theirs(*numpys(a), *numpys(b))
    assert ours(width, count) == pytest.approx(expected, rel=allowed(width, count))


@pytest.mark.filterwarnings("ignore:The `disp` argument is deprecated")
@sizes(FEWER, MORE)
def test_frechet_is_clean_fids(width, count):
    theirs, (a, b) = peer("cleanfid.fid").frechet_distance, two_sets(width, count)
    expected = theirs(*numpys(a), *numpys(b))
    assert ours(width, count) == pytest.approx(expected, rel=allowed(width, count))


def test_frechet_refuses_what_is_no_covariance():
    zero = torch.zeros(2, dtype=torch.float64)
    good = Moments(zero, torch.eye(2, dtype=torch.float64), 9)
    askew = Moments(zero, torch.tensor([[1.0, 0.5], [0.0, 1.0]], dtype=torch.float64), 9)
    negative = Moments(zero, torch.tensor([[1.0, 0.0], [0.0, -0.1]], dtype=torch.float64), 9)
    with pytest.raises(ValueError, match="symmetric"):
        frechet_distance(good, askew)
    with pytest.raises(ValueError, match=r"eigenvalue -0\.1"):
        frechet_distance(negative, good)


def test_moments_in_parts_are_those_of_the_whole_far_from_zero():
    x = features(1000, 8, 5) * 1e-3 + 1e4  # float32 rounds here, float64's sums of squares would cancel
    running = RunningMoments(8)
    for part in (x[:1], x[1:700], x[700:700], x[700:]):
        running.add(part)
    found, (mean, covariance) = running.result(), numpys(x)
    assert found.count == 1000
    torch.testing.assert_close(found.mean, torch.from_numpy(mean), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.covariance, torch.from_numpy(covariance), rtol=1e-9, atol=1e-12)
    assert not found.is_singular
    assert moments(x[:8]).is_singular


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


@pytest.mark.slow
def test_subsets_have_the_mean_of_the_whole():
    a, b = features(1200, 4, 0), features(1200, 4, 1) + 0.5
    whole = kernel_distance(a, b, are_paired=True)
    assert paired_kernel_distance(a, b, torch.Generator().manual_seed(0)) == pytest.approx(whole, rel=0.02)
    few = a[:50], b[:50]
    assert paired_kernel_distance(*few, torch.Generator()) == kernel_distance(*few, are_paired=True)


@pytest.mark.parametrize("width", [16, 2048])
def test_one_subset_of_full_size_is_both_peers_kid(width):
    a, b = features(300, width, 0), features(300, width, 1) + 0.1
    ours = float(subset_distances(a, b, torch.Generator(), subsets=1, size=300))
    fidelity = peer("torch_fidelity.metric_kid").kid_features_to_metric(
        a.double(), b.double(), kid_subsets=1, kid_subset_size=300, verbose=False
    )
    clean = peer("cleanfid.fid").kernel_distance(a.double().numpy(), b.double().numpy(), 1, 300)
    assert ours == pytest.approx(fidelity["kernel_inception_distance_mean"], rel=1e-9)
    assert ours == pytest.approx(clean, rel=1e-9)


def test_kid_is_the_mean_of_its_subsets_and_known_from_its_seed():
    a, b = features(500, 4, 0), features(450, 4, 1) + 0.5
    drawn = [subset_distances(a, b, torch.Generator().manual_seed(seed), size=100) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert float(drawn[0].mean()) == pytest.approx(kernel_distance(a, b), rel=0.1)


@pytest.mark.slow
def test_the_interval_of_a_kernel_distance_holds_the_true_one_nineteen_times_in_twenty():
    generator = torch.Generator().manual_seed(0)

    def drawn(count, shift):
        return torch.randn(count, 4, generator=generator) + shift

    truth = kernel_distance(drawn(6000, 0), drawn(6000, 0.3))
    pairs = [(drawn(150, 0), drawn(200, 0.3)) for _ in range(300)]
    held = [abs(kernel_distance(*pair) - truth) <= 1.96 * distance_error(*pair, generator) for pair in pairs]
    assert 0.91 < np.mean(held) < 0.98


@pytest.mark.slow
def test_some_rows_tell_the_error_of_a_kernel_distance_as_well_as_all(monkeypatch):
    a, b = features(3000, 4, 0), features(2500, 4, 1) + 0.5
    whole = distance_error(a, b, torch.Generator().manual_seed(0))
    monkeypatch.setattr("rapm_cli.metrics.kernel.ERROR_ROWS", 600)
    assert distance_error(a, b, torch.Generator().manual_seed(0)) == pytest.approx(whole, rel=0.25)


def test_the_bootstrap_of_a_mean_is_its_standard_error():
    x = torch.randn(400, generator=torch.Generator().manual_seed(0))
    low, high = bootstrap_interval(lambda k: float(x[k].mean()), 400, torch.Generator().manual_seed(1), draws=2000)
    assert (high - low) / 2 == pytest.approx(1.96 * float(x.std()) / 20, rel=0.1)
    assert (high + low) / 2 == pytest.approx(float(x.mean()), abs=0.01)


def evidence(samples, other, texts, off):
    """Evidence of every kind: features of one set under every extractor, and those of the reference."""
    names = {metric.extractor for metric in map(METRICS.__getitem__, METRICS.names()) if metric.extractor}
    return Evidence(
        moments={name: moments(samples.features) for name in names},
        features=dict.fromkeys(names, samples.features),
        reference={name: ReferenceFeatures(moments(other), other) for name in names},
        texts=texts,
        labelled=samples,
        teacher=TeacherDifference(torch.full((8,), off), torch.full((8, 4), off)),
    )


OF_FEATURES = [
    name for name in METRICS.names() if not METRICS[name].wants_images and METRICS[name].extractor != FILTERS
]


@pytest.mark.parametrize("name", OF_FEATURES)
def test_every_metric_of_features_tells_better_from_worse(name):
    """Samples like the reference beat shifted ones, in the direction that the metric states."""
    truth, other = features(200, 6, 0), features(200, 6, 1)
    asked = torch.ones(200, 8, dtype=torch.bool)
    asked[:50, 3:6] = False
    wrong = asked & (torch.rand(200, 8, generator=torch.Generator().manual_seed(0)) < 0.8)
    metric = METRICS[name]
    better = metric.compute(evidence(LabelledSamples(other, asked, asked, truth), truth, other, 1.0)).value
    worse = metric.compute(evidence(LabelledSamples(other + 2, wrong, asked, truth), truth, other, 2.0)).value
    assert better > worse if metric.is_higher_better else better < worse
    assert metric.column.startswith(metric.title)


def test_an_attribute_that_a_prompt_does_not_ask_for_cannot_be_wrong():
    asked = torch.tensor([[True, False], [True, True]])
    right = torch.tensor([[True, False], [True, False]])
    samples = LabelledSamples(torch.zeros(2, 1), right, asked, torch.zeros(2, 1))
    assert METRICS["attributes"].bootstrap.statistic(samples) == pytest.approx(2 / 3)
    assert METRICS["pictures"].bootstrap.statistic(samples) == pytest.approx(1 / 2)


def test_an_interval_holds_no_share_above_one():
    """Three of eight images have a wrong attribute of four; the bootstrap's own upper bound is 1.003 here."""
    right = torch.ones(8, 4, dtype=torch.bool)
    right[:3, 0] = False
    found = LabelledSamples(torch.zeros(8, 2), right, torch.ones_like(right), torch.zeros(8, 2))
    got = METRICS["attributes"].compute(Evidence(labelled=found))
    assert got.value == 29 / 32
    assert 0.8 < got.low < got.value
    assert got.high == 1


def labelled(shift, count=1000):
    """Features whose mean is `shift` from the reference's, with the same covariance: their distance is shift^2."""
    reference = torch.randn(count, 4, generator=torch.Generator().manual_seed(0))
    right = torch.ones(count, 2, dtype=torch.bool)
    return LabelledSamples(reference + torch.tensor([shift, 0, 0, 0]), right, right, reference)


def test_the_gap_closed_is_the_share_of_the_way_from_base_to_teacher():
    teacher, base = labelled(1.0), labelled(3.0)
    assert gap_closed(teacher, base, labelled(2.0)).value == pytest.approx((9 - 4) / (9 - 1), rel=1e-3)
    assert gap_closed(teacher, base, labelled(5.0)).value == pytest.approx(-2, rel=1e-3)


def test_the_interval_of_the_gap_closed_resamples_all_three_models_together():
    """Every distance varies with the prompts; a student equal to its teacher closes all of it in every resample."""
    found = gap_closed(labelled(1.0), labelled(3.0), labelled(1.0))
    assert (found.low, found.value, found.high) == pytest.approx((1, 1, 1))


def test_there_is_no_gap_closed_of_few_prompts_or_of_a_base_as_near_as_its_teacher():
    few = [labelled(shift, FEWEST_SAMPLES - 1) for shift in (1.0, 3.0, 2.0)]
    assert gap_closed(*few) is None
    assert gap_closed(labelled(1.0), labelled(1.0), labelled(2.0)) is None
