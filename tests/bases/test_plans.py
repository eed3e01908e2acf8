from typing import get_args

import pytest

from rapm_cli.bases.plans import GIB, LIBRARY_BYTES, MARGIN, PLANS, choose_plan, lower, needed
from rapm_cli.core.common.errors import ConfigError, OutOfMemoryError
from rapm_cli.core.method.config import TrainConfig, Vram
from tests.messages import names, naming

PEAKS = {"24": 14 * GIB, "16": 11 * GIB, "12": 6 * GIB, "8": 4 * GIB}


def peak_of(plan):
    return PEAKS[plan.name]


@pytest.mark.parametrize(("free", "name"), [(80, "24"), (15.7, "24"), (15.5, "16"), (12, "12"), (7, "12")])
def test_the_first_plan_that_fits_is_chosen(free, name):
    assert choose_plan(PLANS.values(), peak_of, int(free * GIB)).name == name


def test_what_is_needed_is_the_peak_with_a_margin_and_the_libraries_own():
    assert needed(10 * GIB) == int(MARGIN * 10 * GIB) + LIBRARY_BYTES


def test_no_plan_rounds_the_base_unasked_and_the_error_says_how_to_ask():
    with pytest.raises(OutOfMemoryError, match=naming("7.0 GiB", "6.0 GiB")) as caught:
        choose_plan(PLANS.values(), peak_of, 6 * GIB)
    assert names(caught.value.remedy, "--vram 8", "8-bit", "4.8 GiB")


def test_plans_are_lowered_one_by_one_and_never_to_a_rounded_base():
    assert [getattr(lower(plan), "name", None) for plan in PLANS.values()] == ["16", "12", None, None]


def test_a_plan_that_does_not_exist_is_refused_with_those_that_do():
    assert list(get_args(Vram)) == ["auto", *PLANS]
    with pytest.raises(ConfigError, match=naming("--vram", 10)) as caught:
        TrainConfig(vram="10")
    assert names(caught.value.remedy, *get_args(Vram))
