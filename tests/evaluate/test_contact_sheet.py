"""The prompts of a sheet, and the samples of the comparison at the end."""

import pytest

from rapm_cli.bases import BASES
from rapm_cli.bases.demo.world import BACKGROUNDS, SHAPES
from rapm_cli.cli.console import Output
from rapm_cli.core.common.errors import OutOfMemoryError
from rapm_cli.evaluate import comparison
from rapm_cli.evaluate.comparison import Comparison, comparison_plan
from rapm_cli.evaluate.contact_sheet import CANDIDATES, COLUMNS, varied

OUT = Output(quiet=True)


@pytest.mark.parametrize("seed", range(5))
def test_a_sheet_shows_every_background_and_shape(seed):
    chosen = varied(BASES["demo"].labelled_prompts(CANDIDATES, seed, True).prompts, COLUMNS)
    words = set(" ".join(chosen).split())
    assert len(chosen) == len(set(chosen)) == COLUMNS
    assert words >= {*BACKGROUNDS, *SHAPES}


def test_a_longer_sheet_begins_with_a_shorter_one_and_a_few_prompts_are_all_shown():
    prompts = BASES["sdxl"].training_prompts(CANDIDATES, 0)
    assert varied(prompts, 8)[:4] == varied(prompts, 4)
    assert varied(prompts, 4)[0] == prompts[0]
    assert varied(["a cat", "a dog", "a cat"], 8) == ["a cat", "a dog"]


def test_a_bases_own_prompts_are_compared_on_others_than_those_of_the_training():
    base = BASES["sdxl"]
    trained = base.training_prompts(100, 3)
    plan = comparison_plan(base, 64, 3, trained, OUT)
    assert len(set(plan.prompts)) == 64
    assert not set(plan.prompts) & set(trained)
    assert plan.images == plan.positions == 64


def test_a_users_own_prompts_are_compared_with_new_noise():
    plan = comparison_plan(BASES["sdxl"], 8, 0, ["a cat", "a dog", "a bird"], OUT)
    assert plan.prompts == [("a cat", "a dog", "a bird")[k % 3] for k in range(8)]
    assert plan.purpose != "trajectory"  # whose noise the training saw


def test_a_comparison_that_does_not_fit_is_left_out_with_a_warning(monkeypatch, capsys):
    def fail(*args, **named):
        raise OutOfMemoryError("4 images at once do not fit", "give less")

    monkeypatch.setattr(comparison, "evaluate_model", fail)
    made = Comparison(BASES["sdxl"], None, 8, 0, ["x"], OUT, is_strict=False)
    made.add([None])
    assert made.result is None
    assert "warning" in capsys.readouterr().err
