"""The comparison at the end of a distillation: teacher, undistilled base and student on the same prompts and noise."""

from collections.abc import Sequence
from dataclasses import replace

from rapm_cli.bases import Base, LoadedBase
from rapm_cli.core.common.errors import DamagedError, InputError, OutOfMemoryError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.method.sizes import Size
from rapm_cli.evaluate.evaluate import SplitResult, evaluate_model
from rapm_cli.evaluate.models import TEACHER, EvalModel
from rapm_cli.evaluate.plan import SamplePlan, labelled_plan
from rapm_cli.evaluate.request import unseen_prompts

# Metrics that 64 prompts say something about; a distance between distributions needs ten times as many.
METRICS_OF_FEW = ("attributes", "pictures", "told-apart", "edges", "fine", "fidelity", "latents")
UNSEEN, NEW_NOISE = "prompts that training did not see", "training prompts with new noise"  # names of the samples


class Comparison:
    """Comparison of models, added one by one while a base is loaded; the teacher comes first.

    A comparison that cannot be made is left out with a warning, because the LoRA is good without it.

    Args:
        base: The base.
        loaded: The same base, loaded.
        count: Number of prompts; 0 for no comparison.
        seed: Seed of prompts and noise.
        prompts: Prompts of the training.
        reporter: Reporter of progress.
        is_strict: Whether damage to kept samples is an error; otherwise they are sampled again.
        size: Size of the images; None for the base's own.

    Attributes:
        result: Result so far; None if no comparison is wanted or possible.
    """

    def __init__(
        self,
        base: Base,
        loaded: LoadedBase,
        count: int,
        seed: int,
        prompts: Sequence[str],
        reporter: Reporter,
        *,
        is_strict: bool,
        size: Size | None = None,
    ) -> None:
        self._loaded, self._reporter, self._is_strict = loaded, reporter, is_strict
        plan = comparison_plan(base, count, seed, prompts, reporter, size) if count else None
        self.result = SplitResult(plan, []) if plan else None

    def add(self, models: Sequence[EvalModel]) -> None:
        """Evaluate some models.

        Raises:
            DamagedError: Kept samples are damaged, and the comparison is strict.
            Stopped: A signal came; the samples so far are kept.
        """
        try:
            for model in models:
                self._add(model)
        except DamagedError:
            raise
        except (OutOfMemoryError, InputError) as error:
            self._reporter.warn(f"the comparison at the end is left out: {error.message}")
            self.result = None

    def _add(self, model: EvalModel) -> None:
        if self.result:
            teacher = next((row.samples for row in self.result.rows if row.model.role == TEACHER), None)
            plan, loaded, strict = self.result.plan, self._loaded, self._is_strict
            row = evaluate_model(model, plan, METRICS_OF_FEW, loaded, self._reporter, is_strict=strict, teacher=teacher)
            self.result.rows.append(row)


def comparison_plan(
    base: Base, count: int, seed: int, prompts: Sequence[str], reporter: Reporter, size: Size | None = None
) -> SamplePlan:
    """Return a plan that keeps the images and latents of all its prompts.

    The prompts are the base's labelled ones; else prompts of the base that training does not see; else, because a
    user's own prompts have no others like them, those of the training with new noise.

    Args:
        base: The base.
        count: Number of prompts.
        seed: Seed of prompts and noise.
        prompts: Prompts of the training.
        reporter: Reporter of downloads.
        size: Size of the images; None for the base's own, at which alone labels are read.
    """
    if base.labelled_prompts and size is None:
        return replace(labelled_plan(base, count, seed, True, reporter), images=count, positions=count)
    if list(prompts) == base.training_prompts(len(prompts), seed):
        chosen, name = unseen_prompts(base, set(prompts), count, seed), UNSEEN
    else:
        chosen, name = [prompts[k % len(prompts)] for k in range(count)], NEW_NOISE
    return SamplePlan(chosen, seed, base.defaults.image_batch, images=count, positions=count, name=name, size=size)
