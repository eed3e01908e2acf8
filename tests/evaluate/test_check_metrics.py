"""Judges are judged: every metric grows with the damage that it claims to see."""

from itertools import pairwise

import numpy as np
import pytest
import scipy.ndimage
import torch

from rapm_cli.bases import BASES
from rapm_cli.cli.console import Output
from rapm_cli.evaluate.check_metrics import CONTROL, NONE, Judges, Subject, answers, smallest_seen
from rapm_cli.evaluate.damages import DAMAGES, blur, collapsed, damaged, sources
from rapm_cli.evaluate.plan import labelled_plan
from rapm_cli.extractors import EXTRACTORS, Opening
from rapm_cli.metrics import METRICS, NAMES
from rapm_cli.metrics.metric import BLUR

QUIET, CPU = Output(quiet=True), torch.device("cpu")
COUNT = 32
OF_TEACHER = [name for name in NAMES if METRICS[name].wants_teacher]
LABELLED = ["attributes", "pictures"]
CLAIMS = [(name, one) for name in (*OF_TEACHER, *LABELLED) for one in DAMAGES if one.name in METRICS[name].sees]


def blocks(seed):
    """Grey blocks with sharp edges, off JPEG's grid, and a little colour."""
    rng = np.random.default_rng(seed)
    grey = rng.integers(0, 2, (7, 7, 1)) * 40 + 90 + rng.integers(-4, 5, (7, 7, 3))
    return grey.repeat(7, 0).repeat(7, 1).astype(np.uint8)


def readers(first):
    return [(lambda k=k: blocks(first + k)) for k in range(COUNT)]


@pytest.fixture(scope="module")
def made():
    latents = torch.randn(COUNT, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    subject = Subject([f"prompt {k}" for k in range(COUNT)], readers(0), readers(COUNT), latents)
    filters = EXTRACTORS["filters"](Opening(CPU, QUIET))
    found = answers(subject, Judges(OF_TEACHER, {"filters": filters}, {}), QUIET, CPU)
    plan = labelled_plan(BASES["demo"], 12, 0, True, QUIET)
    true = (plan.labels.known.true_images(range(12)) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    images = [(lambda image=image: image) for image in true]
    shown = Subject(plan.prompts, images, images)
    read = answers(shown, Judges(LABELLED, {}, {}, labels=plan.labels), QUIET, CPU)
    return {**dict.fromkeys(OF_TEACHER, found), **dict.fromkeys(LABELLED, read)}


@pytest.mark.parametrize(("name", "damage"), CLAIMS, ids=lambda one: getattr(one, "name", one))
def test_every_metric_grows_with_the_damage_that_it_claims_to_see(made, name, damage):
    assert smallest_seen(name, damage, made[name]) is not None
    asked = [one for one in made[name] if one.damage in (NONE, damage)]
    shortfalls = [METRICS[name].shortfall(one.values[name].value) for one in asked]
    assert shortfalls[-1] > shortfalls[0]
    assert all(later >= earlier - 0.05 * shortfalls[-1] for earlier, later in pairwise(shortfalls))


@pytest.mark.parametrize("name", ["told-apart", "edges", "fine", "patches", "fidelity"])
def test_half_a_pixel_of_blur_is_seen(made, name):
    damage = next(one for one in DAMAGES if one.name == BLUR)
    assert smallest_seen(name, damage, made[name]) <= 0.5


def test_the_teachers_own_images_are_found_alike(made):
    own = next(one.values for one in made["edges"] if one.damage is NONE)
    exact = {"told-apart": 0.5, "patches": 0, "fidelity": 0, "latents": 0, "position": 0}
    exact |= dict.fromkeys(("edges", "coarse", "middle", "fine", "diversity"), 1)
    assert {name: value.value for name, value in own.items()} == pytest.approx(exact, abs=1e-9)


def test_other_noise_is_not_told_apart(made):
    control = next(one.values for one in made["edges"] if one.damage is CONTROL)
    assert control["told-apart"].low < 0.5 < control["told-apart"].high
    assert "latents" not in control


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_says_what_it_does_not_see(name):
    assert METRICS[name].blind_to
    assert {*METRICS[name].sees} <= {damage.name for damage in DAMAGES}


@pytest.mark.parametrize("sigma", [0.3, 0.5, 2.0])
def test_a_blur_is_scipys(sigma):
    image = blocks(3)
    expected = scipy.ndimage.gaussian_filter(image.astype(float), (sigma, sigma, 0), mode="nearest")
    assert np.abs(blur(image, sigma, 0).astype(float) - expected).max() <= 1


@pytest.mark.parametrize("damage", [one for one in DAMAGES if one.change], ids=lambda one: one.name)
def test_a_larger_damage_changes_an_image_more_and_the_same_each_time(damage):
    image = blocks(5)
    off = [
        np.abs(damaged([lambda: image], damage, amount)[0]().astype(float) - image).mean() for amount in damage.amounts
    ]
    assert off == sorted(off)
    assert off[-1] > 0
    again = [damaged([lambda: image], damage, damage.amounts[-1])[0]() for _ in range(2)]
    assert np.array_equal(*again)


def test_swaps_and_collapses_hit_the_share_of_the_prompts_that_they_say():
    assert [sum(k != row for k, row in enumerate(sources(40, share))) for share in (0, 10, 25, 100)] == [0, 4, 10, 40]
    images, others = [object() for _ in range(8)], [object() for _ in range(8)]
    assert sum(a is b for a, b in zip(images, collapsed(images, others, 25), strict=True)) == 2
