"""The verdict on a distillation: one sentence on student, undistilled base and teacher, as far as intervals allow."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from rapm_cli.core.common.randomness import generator_for
from rapm_cli.evaluate.evaluate import ModelResult, SplitResult
from rapm_cli.evaluate.models import BASE, STUDENT, TEACHER
from rapm_cli.metrics import METRICS
from rapm_cli.metrics.bootstrap import bootstrap_interval

DRAWS = 1000  # resamples of an interval
LITTLE = 0.05  # share of a distance; many prompts make even less certain
LOOK = "how good the images look these figures do not say: see the contact sheet"
UNPAIRED = (
    "Whether it worked these figures do not say: the student adds new noise, so that its images need not be those of "
    "its teacher; see the contact sheet"
)


@dataclass(frozen=True)
class Finding:
    """How the student compares with another model in one metric.

    Args:
        metric: Name of the metric.
        student: The student's value.
        other: The other model's value.
        interval: The 95 % interval of the student's shortfall less the other's, over other prompts.
    """

    metric: str
    student: float
    other: float
    interval: tuple[float, float]

    @property
    def sign(self) -> int:
        """1 where the student is better, -1 where it is worse, 0 where the interval covers no difference."""
        low, high = self.interval
        return int(high < 0) - int(low > 0)

    @property
    def is_small(self) -> bool:
        """True if a distance to the teacher differs by less than `LITTLE` of the other model's."""
        metric = METRICS[self.metric]
        ours, theirs = metric.shortfall(self.student), metric.shortfall(self.other)
        return metric.wants_teacher and abs(ours - theirs) < LITTLE * abs(theirs)

    @property
    def words(self) -> str:
        """The metric with both values."""
        metric = METRICS[self.metric]
        scale, unit = (100, " %") if metric.unit == "%" else (1, "")
        form = ".1f" if unit else metric.form
        return f"{metric.title} ({self.student * scale:{form}}{unit} against {self.other * scale:{form}}{unit})"


def verdict(split: SplitResult | None, *, is_renoised: bool = False) -> str:
    """Return the verdict; empty without a comparison.

    Args:
        split: Result of teacher, undistilled base and student on the same prompts and noise.
        is_renoised: Whether the student's sampler adds new noise, so that its images need not be its teacher's.
    """
    rows = {row.model.role: row for row in split.rows} if split else {}
    if not split or not {TEACHER, BASE, STUDENT} <= rows.keys():
        return ""
    teacher, base, student = rows[TEACHER], rows[BASE], rows[STUDENT]
    beside_base = [one for one in findings(student, base) if not (is_renoised and METRICS[one.metric].is_paired)]
    if not beside_base:
        return f"{UNPAIRED}."
    beside_teacher = findings(student, teacher)
    end = f"beside the teacher {_in_words(beside_teacher)}" if beside_teacher else LOOK
    return f"{_headline(beside_base)}: beside the undistilled base {_in_words(beside_base)}; {end}."


def findings(student: ModelResult, other: ModelResult) -> list[Finding]:
    """Return the student's findings in each metric that both models have."""
    return [
        Finding(name, value.value, other.metrics[name].value, _interval(name, student, other))
        for name, value in student.metrics.items()
        if name in other.metrics
    ]


def _interval(name: str, student: ModelResult, other: ModelResult) -> tuple[float, float]:
    """Return the interval of the difference in shortfall; it resamples the prompts of both models together."""
    bootstrap, shortfall = METRICS[name].bootstrap, METRICS[name].shortfall
    one, two = student.evidence.labelled, other.evidence.labelled
    ours, theirs = student.metrics[name].by_prompt, other.metrics[name].by_prompt

    def difference(rows: Tensor) -> float:
        if bootstrap and one is not None and two is not None:
            return shortfall(bootstrap.statistic(one[rows])) - shortfall(bootstrap.statistic(two[rows]))
        assert ours is not None  # a metric without labels is a mean over prompts
        assert theirs is not None
        return shortfall(float(ours[rows].double().mean())) - shortfall(float(theirs[rows].double().mean()))

    return bootstrap_interval(difference, len(student.evidence.prompts), generator_for("verdict", name), draws=DRAWS)


def _headline(found: Sequence[Finding]) -> str:
    """Return the answer in a few words, from the findings beside the undistilled base."""
    signs = {one.sign for one in found}
    if signs == {0}:
        return "It could not be shown that the distillation changed anything"
    if all(one.is_small for one in found if one.sign):
        return f"The distillation changed little, by less than {LITTLE:.0%} of the distance to the teacher"
    if {-1, 1} <= signs:
        return "The distillation helped in part"
    return "The distillation helped" if 1 in signs else "The distillation did harm"


def _in_words(found: Sequence[Finding]) -> str:
    """Return in which metrics the student is better and worse, and in which no difference could be shown."""
    words = {sign: ", ".join(one.words for one in found if one.sign == sign) for sign in (1, -1, 0)}
    parts = [f"the student is {how} in {words[sign]}" for sign, how in ((1, "better"), (-1, "worse")) if words[sign]]
    parts += [f"no difference could be shown in {words[0]}"] if words[0] else []
    return ", and ".join(parts)
