"""Metrics of images beside the teacher's: closed forms, identities, and independent implementations."""

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import scipy.stats
import torch

from rapm_cli.extractors import EXTRACTORS, Opening
from rapm_cli.extractors.filters import cosine_filters
from rapm_cli.metrics import METRICS
from rapm_cli.metrics.diversity import distance_at_scales
from rapm_cli.metrics.frequencies import BANDS, band_amplitudes, edge_contrast
from rapm_cli.metrics.metric import FILTERS, Evidence
from rapm_cli.metrics.paired_images import read_images, share_of_teacher, shrink
from rapm_cli.metrics.patches import patch_distance, pyramid, sliced_wasserstein
from rapm_cli.metrics.two_sample import discriminant, halves, told_apart, wilson


def seeded(number):
    return torch.Generator().manual_seed(number)


def wave(frequency, amplitude, size=(64, 96)):
    """A grey wave across an image."""
    across = 0.5 + amplitude * torch.sin(2 * torch.pi * frequency * torch.arange(size[1]))
    return across.expand(1, 3, *size)


@pytest.mark.parametrize(("frequency", "band"), [(0.05, 0), (0.12, 1), (0.24, 2)])
def test_a_wave_has_its_amplitude_in_its_own_band(frequency, band):
    """The root mean square of a wave is its amplitude over the root of 2."""
    found = band_amplitudes(wave(frequency, 0.2))[0]
    assert float(found[band]) == pytest.approx(0.2 / 2**0.5, rel=0.01)
    assert float(found[[k for k in range(3) if k != band]].max()) < 0.01


@pytest.mark.parametrize("size", [(48, 64), (49, 63)])
def test_all_bands_together_have_the_images_power(size, monkeypatch):
    """Parseval: with one band for all frequencies, the amplitude is the windowed image's own."""
    monkeypatch.setitem(BANDS, "coarse", (0.0, 1.0))
    images = torch.rand(2, 1, *size, generator=seeded(0)).expand(2, 3, *size)
    window = torch.outer(torch.hann_window(size[0]), torch.hann_window(size[1]))
    luma = (images[:, 0] - images[:, 0].mean(dim=(1, 2), keepdim=True)) * window
    expected = (luma.square().sum(dim=(1, 2)) / window.square().sum()).sqrt()
    torch.testing.assert_close(band_amplitudes(images)[:, 0], expected)


def test_edge_contrast_is_the_quantile_of_neighbours_differences():
    image = np.random.default_rng(0).random((1, 3, 20, 30)).astype(np.float32)
    luma = np.tensordot((0.299, 0.587, 0.114), image[0], 1)
    steps = np.concatenate([np.abs(np.diff(luma, axis=axis)).ravel() for axis in (0, 1)])
    assert float(edge_contrast(torch.from_numpy(image))) == pytest.approx(np.quantile(steps, 0.99), rel=1e-4)
    assert float(edge_contrast(torch.full((1, 3, 8, 8), 0.3))) == 0


def test_a_share_of_the_teacher_is_exact_where_it_is_the_same_for_every_prompt():
    teacher = torch.rand(50, generator=seeded(0)) + 0.5
    found = share_of_teacher(0.8 * teacher, teacher, "edges")
    assert (found.value, found.low, found.high) == pytest.approx((0.8, 0.8, 0.8))
    assert float(found.by_prompt.mean()) == pytest.approx(0.8)


def test_the_distance_at_scales_of_a_flat_shift_is_the_shift_and_of_noise_far_less():
    images = torch.rand(2, 3, 32, 40, generator=seeded(0)) / 2
    assert distance_at_scales(images, images).tolist() == [0, 0]
    shifted = distance_at_scales(images, images + 10 / 255)
    assert shifted.tolist() == pytest.approx([10, 10], rel=1e-4)
    noise = torch.randn(2, 3, 256, 256, generator=seeded(1)) / 255
    scales = [2.0**-k for k in range(6)]  # the mean of four is half as noisy
    assert distance_at_scales(noise, 0 * noise).tolist() == pytest.approx([np.mean(scales)] * 2, rel=0.05)


def directions(width, count=16):
    return torch.nn.functional.normalize(torch.randn(width, count, generator=seeded(9)), dim=0)


def test_the_sliced_distance_of_a_shift_is_its_mean_length_in_the_directions():
    a, shift, chosen = torch.randn(20, 5, 3, generator=seeded(0)), torch.tensor([1.0, -2.0, 0.5]), directions(3)
    parts = sliced_wasserstein(a, a + shift, chosen)
    assert float(parts.mean()) == pytest.approx(float((shift @ chosen).abs().mean()), rel=1e-5)
    assert float(sliced_wasserstein(a, a, chosen).abs().max()) == 0


def test_the_sliced_distance_equals_scipys():
    a, b, chosen = (torch.randn(12, 4, 6, generator=seeded(k)) for k in (0, 1)), None, directions(6)
    a, b = a
    b = 1.7 * b + 0.3
    x, y = (side.flatten(0, 1) @ chosen for side in (a, b))
    expected = [scipy.stats.wasserstein_distance(x[:, k], y[:, k]) for k in range(chosen.shape[1])]
    assert float(sliced_wasserstein(a, b, chosen).mean()) == pytest.approx(np.mean(expected), rel=1e-5)


def test_the_sliced_distance_of_two_normal_distributions():
    """In one dimension the distance of N(0, 1) and N(0, s^2) is |s - 1| times the root of 2 / pi."""
    a = torch.randn(4000, 5, 1, generator=seeded(0))
    found = float(sliced_wasserstein(a, 1.5 * a.flip(0), torch.ones(1, 1)).mean())
    assert found == pytest.approx(0.5 * (2 / np.pi) ** 0.5, rel=0.02)


def test_a_pyramid_adds_up_to_the_image():
    images = torch.rand(1, 3, 70, 64, generator=seeded(0))
    levels = pyramid(images)
    assert [tuple(level.shape[2:]) for level in levels] == [(70, 64), (35, 32), (17, 16)]
    found = levels[-1]
    for level in levels[-2::-1]:
        size = level.shape[2:]
        found = level + torch.nn.functional.interpolate(found, size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(found, images)
    assert torch.equal(shrink(images)[0, 0, 0, 0], images[0, 0, :2, :2].mean())


def test_patches_of_the_same_images_have_no_distance():
    images = [(lambda k=k: np.random.default_rng(k).integers(0, 256, (40, 32, 3), np.uint8)) for k in range(20)]
    assert float(patch_distance(images, images).abs().max()) == 0
    brighter = [(lambda read=read: np.minimum(read(), 205) + np.uint8(50)) for read in images]
    assert float(patch_distance(brighter, images).mean()) > 10


def test_equal_prompts_are_in_the_same_half():
    assert halves(["a", "b", "a", "c", "b"]).tolist() == [False, True, False, False, True]


def test_the_discriminant_solves_fishers_equations():
    """The ridge turns it by little where there are many images."""
    a, b = (
        torch.randn(300, 4, generator=seeded(0)),
        torch.randn(300, 4, generator=seeded(1)) + torch.tensor([1.0, 0, 2, 0]),
    )
    direction, middle = discriminant(a, b)
    x, y = a.double().numpy(), b.double().numpy()
    within = (np.cov(x.T, bias=True) + np.cov(y.T, bias=True)) / 2
    expected = np.linalg.solve(within, y.mean(0) - x.mean(0))
    cosine = float(direction.numpy() @ expected / np.linalg.norm(direction) / np.linalg.norm(expected))
    assert cosine > 0.999
    assert float(middle) == pytest.approx(float((a.mean(0) + b.mean(0)).double() @ direction) / 2)


def test_the_same_distribution_cannot_be_told_apart_and_a_far_one_always_can():
    a, b = (torch.randn(2000, 30, generator=seeded(k)) for k in (0, 1))
    second = halves([str(k) for k in range(2000)])
    share = float(told_apart(a, b, second).mean())
    low, high = wilson(share, 2000)
    assert low < 0.5 < high
    assert float(told_apart(a, b + 5, second).mean()) == 1
    assert told_apart(a, a, second).tolist() == [0.5] * 2000
    assert torch.equal(told_apart(a, b, second), told_apart(a, b, second))


def test_two_normal_distributions_are_told_apart_as_often_as_theory_says():
    """With means 2 d apart and unit deviation, the best rule is right with probability Phi(d)."""
    a, b = (torch.randn(4000, 5, generator=seeded(k)) for k in (2, 3))
    b[:, 0] += 2.0
    share = float(told_apart(a, b, halves([str(k) for k in range(4000)])).mean())
    assert share == pytest.approx(scipy.stats.norm.cdf(1.0), abs=0.015)


@pytest.mark.parametrize(("share", "count"), [(0.5, 64), (1.0, 20), (0.0, 20), (0.83, 200)])
def test_the_interval_of_a_share_is_wilsons(share, count):
    found = scipy.stats.binomtest(round(share * count), count).proportion_ci(method="wilson")
    assert wilson(share, count) == pytest.approx((found.low, found.high))


@pytest.fixture(scope="module")
def filters():
    return EXTRACTORS["filters"](Opening(torch.device("cpu"), None))


def test_filters_do_not_respond_to_a_flat_image_and_are_the_same_each_time(filters):
    flat = torch.full((1, 3, 20, 24), 0.4)
    found = filters.network(flat)[0]
    assert found.shape == (filters.width,)
    torch.testing.assert_close(found[:48], torch.full((48,), 0.4))
    assert float(found[51:].max()) < np.log(2e-3 + 1e-5)
    noise = torch.rand(3, 3, 20, 24, generator=seeded(0))
    torch.testing.assert_close(torch.cat([filters.network(one[None]) for one in noise]), filters.network(noise))


def test_the_filters_are_scipys_cosines_at_right_angles():
    found = cosine_filters(5)[:, 0]
    torch.testing.assert_close(found.flatten(1) @ found.flatten(1).T, torch.eye(24), atol=1e-6, rtol=0)
    image = np.random.default_rng(0).random((5, 5))
    ours = (found.double().numpy() * image).sum((1, 2))
    assert ours == pytest.approx(scipy.fft.dctn(image, norm="ortho").ravel()[1:], abs=1e-6)


def test_half_a_pixel_of_blur_is_told_from_sharp_images(filters):
    """Of 32 prompts it has learned from 16."""
    rng = np.random.default_rng(0)
    sharp = [rng.integers(0, 2, (6, 6, 3)).repeat(8, 0).repeat(8, 1) * 160 + 40 for _ in range(32)]
    blurred = [scipy.ndimage.gaussian_filter(image.astype(float), (0.5, 0.5, 0)).round() for image in sharp]
    one, two = (
        torch.cat(list(filters.features([lambda image=image: image.astype(np.uint8) for image in side])))
        for side in (sharp, blurred)
    )
    evidence = Evidence(
        prompts=[str(k) for k in range(32)],
        features={FILTERS: two},
        teacher_features={FILTERS: one},
        true_features={FILTERS: torch.cat([one, one])},  # of more prompts than the model has images of
    )
    found = METRICS["told-apart"].compute(evidence)
    assert found.value > 0.95
    assert METRICS["told-true"].compute(evidence).value == found.value


def test_images_are_read_in_order_as_shares_of_white():
    readers = [(lambda k=k: np.full((4, 5, 3), k, np.uint8)) for k in range(40)]
    found = torch.cat(list(read_images(readers)))
    assert found.shape == (40, 3, 4, 5)
    torch.testing.assert_close(found[:, 0, 0, 0] * 255, torch.arange(40.0))
