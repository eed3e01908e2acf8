import numpy as np
import pytest
import torch

from rapm_cli.metrics.cmmd import clip_discrepancy
from rapm_cli.metrics.neighbours import overlap
from tests.metrics.peers import peer


def drawn(count, width, seed, shift=0.0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.mark.parametrize(("count", "shift"), [(60, 0.0), (1500, 0.4), (1500, 2.0)])
def test_precision_and_recall_are_torch_fidelitys(count, shift):
    images, real = drawn(count, 6, 0, shift), drawn(count, 6, 1)
    theirs = peer("torch_fidelity.metric_prc").prc_features_to_metric(
        images.double(), real.double(), prc_neighborhood=3, prc_batch_size=500, save_cpu_ram=False, verbose=False
    )
    ours = overlap(images, real)
    assert ours.precision == pytest.approx(theirs["precision"], abs=1e-6)  # their means are float32
    assert ours.recall == pytest.approx(theirs["recall"], abs=1e-6)  # their means are float32


def test_density_and_coverage_are_their_definition():
    images, real = drawn(1100, 3, 0, 0.5).double().numpy(), drawn(900, 3, 1).double().numpy()
    to_real = np.linalg.norm(images[:, None] - real[None], axis=2)
    among_real = np.sort(np.linalg.norm(real[:, None] - real[None], axis=2), axis=1)[:, 5]  # [0] is the row itself
    found = overlap(torch.from_numpy(images), torch.from_numpy(real))
    assert found.density == pytest.approx((to_real <= among_real).sum() / (5 * 1100))
    assert found.coverage == pytest.approx((to_real <= among_real).any(axis=0).mean())


def test_the_same_set_overlaps_wholly_and_a_far_one_not_at_all():
    real = drawn(100, 5, 0)
    same, far = overlap(real, real), overlap(real + 100, real)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)
    with pytest.raises(ValueError, match="too few"):
        overlap(real[:5], real)


def test_clip_discrepancy_is_the_double_loop():
    a, b = drawn(9, 4, 0), drawn(7, 4, 1)
    x, y = ((side / side.norm(dim=1, keepdim=True)).double().numpy() for side in (a, b))

    def mean(u, v):
        return np.mean([[np.exp(-((p - q) ** 2).sum() / (2 * 10**2)) for q in v] for p in u])

    assert clip_discrepancy(a, b) == pytest.approx(1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y)), rel=1e-6)
    assert clip_discrepancy(a, 3 * a) == pytest.approx(0, abs=1e-9)  # lengths do not count


@pytest.mark.slow
def test_clip_discrepancy_is_the_same_in_blocks():
    a, b = drawn(3000, 4, 0), drawn(2500, 4, 1, 0.2)
    x, y = (torch.nn.functional.normalize(side.double(), dim=1) for side in (a, b))

    def mean(u, v):
        return float((-torch.cdist(u, v).square() / 200).exp().mean())

    assert clip_discrepancy(a, b) == pytest.approx(1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y)), rel=1e-6)
