"""Fidelity: how far a model's images and latents are from its teacher's, for the same prompts and noise."""

from collections.abc import Callable

from torch import Tensor

from rapm_cli.metrics.metric import METRICS, Estimate, Evidence, Metric, TeacherDifference, mean_estimate


def _add(name: str, title: str, choose: Callable[[TeacherDifference], Tensor], form: str) -> None:
    def compute(evidence: Evidence) -> Estimate:
        assert evidence.teacher is not None
        return mean_estimate(choose(evidence.teacher))

    METRICS.add(name)(Metric(title, False, compute, wants_teacher=True, is_usual=True, form=form))


_add("fidelity", "image difference", lambda found: found.images, ".2f")
_add("latents", "latent difference", lambda found: found.positions[:, 0], ".3f")
_add("position", "position difference", lambda found: found.positions.mean(dim=1), ".3f")
