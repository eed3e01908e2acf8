"""The verdict on a distillation says no more than the intervals allow."""

import pytest
import torch

from rapm_cli.evaluate.evaluate import ModelResult, SplitResult
from rapm_cli.evaluate.models import BASE, STUDENT, TEACHER, EvalModel
from rapm_cli.evaluate.plan import SamplePlan
from rapm_cli.evaluate.samples import SampleSet
from rapm_cli.evaluate.verdict import findings, verdict
from rapm_cli.metrics import METRICS
from rapm_cli.metrics.metric import Evidence, LabelledSamples, TeacherDifference

pytestmark = pytest.mark.usefixtures("all_resamples")

COUNT = 64
PLAN = SamplePlan([f"prompt {k}" for k in range(COUNT)], 0, 8)


def row(role, *, wrong=None, distance=None):
    """A model that has `wrong` of the answers wrong, one in each first prompt, and these distances from the teacher."""
    labelled = teacher = None
    if wrong is not None:
        right = torch.ones(COUNT, 4, dtype=torch.bool)
        right[:wrong, 0] = False
        labelled = LabelledSamples(torch.zeros(COUNT, 1), right, torch.ones_like(right), torch.zeros(COUNT, 1))
    if distance is not None:
        teacher = TeacherDifference(distance, distance[:, None])
    evidence = Evidence(prompts=PLAN.prompts, labelled=labelled, teacher=teacher)
    metrics = {
        name: METRICS[name].compute(evidence)
        for name in ("attributes", "pictures", "fidelity", "latents")
        if METRICS[name].is_computable(evidence)
    }
    return ModelResult(SampleSet(EvalModel(role, 4, 4, lambda z, cond: [z], role), PLAN), metrics, evidence)


def split(*rows):
    return SplitResult(PLAN, list(rows))


def noise(scale, seed=0):
    return scale + torch.randn(COUNT, generator=torch.Generator().manual_seed(seed)).double()


def signs(student, other):
    return {one.metric: one.sign for one in findings(student, other)}


def test_a_student_between_base_and_teacher_helped_and_is_worse_than_its_teacher():
    teacher, base, student = row(TEACHER, wrong=1), row(BASE, wrong=40), row(STUDENT, wrong=20)
    assert signs(student, base) == {"attributes": 1, "pictures": 1}
    assert signs(student, teacher) == {"attributes": -1, "pictures": -1}
    words = verdict(split(teacher, base, student))
    assert words.count(". ") == 0  # one sentence
    for value in ("68.8 %", "37.5 %", "98.4 %"):  # of the images, those without a wrong answer
        assert value in words


def test_equal_models_are_said_to_show_no_difference():
    rows = [row(role, wrong=10) for role in (TEACHER, BASE, STUDENT)]
    assert set(signs(rows[2], rows[1]).values()) == {0}
    assert "could not be shown" in verdict(split(*rows))


def test_a_difference_of_one_prompt_in_64_is_not_one():
    assert set(signs(row(STUDENT, wrong=9), row(BASE, wrong=10)).values()) == {0}


def test_the_interval_of_a_mean_over_prompts_is_that_of_paired_differences():
    """Both models vary much more from prompt to prompt than they differ."""
    hard, step = noise(0.0) * 10 + 50, 0.1 * noise(0.0, seed=1) - 0.2
    (found, _) = findings(row(STUDENT, distance=hard + step), row(BASE, distance=hard))
    margin = 1.96 * float(step.std()) / COUNT**0.5
    assert found.interval == pytest.approx((float(step.mean()) - margin, float(step.mean()) + margin), abs=0.01)
    assert found.sign == 1  # nearer is better


def test_without_labels_the_distance_to_the_teacher_is_what_is_known():
    base, student = row(BASE, distance=noise(20)), row(STUDENT, distance=noise(10, 1))
    assert "contact sheet" in verdict(split(row(TEACHER), base, student))
    worse = verdict(split(row(TEACHER), row(BASE, distance=noise(10)), row(STUDENT, distance=noise(20, 1))))
    assert "harm" in worse


def test_a_student_that_adds_new_noise_is_not_judged_by_its_distance_to_the_teacher():
    rows = [row(TEACHER), row(BASE, distance=noise(10)), row(STUDENT, distance=noise(20, 1))]
    assert "harm" not in verdict(split(*rows), is_renoised=True)
    labelled = [
        row(TEACHER, wrong=0),
        row(BASE, wrong=40, distance=noise(9)),
        row(STUDENT, wrong=3, distance=noise(20)),
    ]
    assert "image difference" not in verdict(split(*labelled), is_renoised=True)


def test_without_a_comparison_there_is_no_verdict():
    assert verdict(None) == ""
    assert verdict(split(row(TEACHER), row(BASE))) == ""


def test_a_small_difference_that_is_certain_is_called_little():
    hard, step = noise(50), 0.01 * noise(0.0, seed=1)
    rows = [row(TEACHER), row(BASE, distance=hard), row(STUDENT, distance=hard + step - 0.1)]
    assert signs(*rows[:0:-1]) == {"fidelity": 1, "latents": 1}
    assert "little" in verdict(split(*rows))
    assert "helped" not in verdict(split(*rows))
