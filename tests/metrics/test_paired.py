import numpy as np
import pytest
import scipy.stats
import torch

from rapm_cli.metrics.paired import paired_difference, sign_test

pytestmark = pytest.mark.usefixtures("all_resamples")


def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (5, 5), (3, 0), (9, 21), (600, 700), (15_200, 14_800)])
def test_the_sign_test_is_scipys_exact_one(first, second):
    expected = scipy.stats.binomtest(first, first + second).pvalue if first + second else 1
    assert sign_test(first, second) == pytest.approx(expected, rel=1e-9)


def test_the_exchange_of_signs_is_scipys_permutation_test():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.25, 1, 60), rng.normal(0, 1, 60)
    theirs = scipy.stats.permutation_test(
        (a, b), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", vectorized=True, rng=1
    )
    found = paired_difference(torch.from_numpy(a), torch.from_numpy(b), generator())
    assert found.p_value == pytest.approx(theirs.pvalue, abs=0.02)
    assert found.mean == pytest.approx((a - b).mean())
    assert (found.first, found.second) == ((a > b).sum(), (a < b).sum())
    error = 1.96 * (a - b).std(ddof=1) / 60**0.5
    assert (found.high - found.low) / 2 == pytest.approx(error, rel=0.15)


@pytest.mark.slow
def test_few_prompts_prove_nothing_and_many_alike_neither():
    """Five wins of five come by chance once in 16 times; p-values of equal models are spread evenly."""
    five = paired_difference(torch.ones(5) + torch.rand(5), torch.zeros(5), generator())
    assert five.p_value == pytest.approx(1 / 16, abs=0.01)
    assert five.p_sign == pytest.approx(1 / 16)
    rows = torch.randn(200, 2, 40, generator=generator())
    below = np.mean([paired_difference(a, b, generator()).p_value < 0.1 for a, b in rows])
    assert 0.04 < below < 0.17


def test_equal_models_differ_in_nothing():
    same = torch.rand(10)
    found = paired_difference(same, same, generator())
    assert (found.mean, found.low, found.high, found.first, found.second) == (0, 0, 0, 0, 0)
    assert (found.p_value, found.p_sign) == (1, 1)
