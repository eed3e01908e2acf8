"""Fidelity: how far a model's images and latents are from its teacher's, for the same prompts and noise."""

from collections.abc import Callable

from torch import Tensor

from rapm_cli.metrics.metric import (
    BLUR,
    CAST,
    COMPRESSION,
    METRICS,
    NOISE,
    OTHER_PROMPT,
    Estimate,
    Evidence,
    Metric,
    TeacherDifference,
    mean_estimate,
)

ALL_BUT_COLLAPSE = (BLUR, NOISE, COMPRESSION, CAST, OTHER_PROMPT)
QUALITY = "quality: another image that is as good counts as far off"


def _add(
    name: str,
    title: str,
    choose: Callable[[TeacherDifference], Tensor],
    form: str,
    *,
    sees: tuple[str, ...],
    blind_to: str,
    wants_positions: bool = True,
) -> None:
    def compute(evidence: Evidence) -> Estimate:
        assert evidence.teacher is not None
        return mean_estimate(choose(evidence.teacher))

    METRICS.add(name)(
        Metric(
            title, False, compute, wants_teacher=True, wants_positions=wants_positions, is_paired=True, is_usual=True,
            form=form, sees=sees, blind_to=blind_to,
        )
    )  # fmt: skip


def _at_edges(found: TeacherDifference) -> Tensor:
    assert found.positions is not None
    return found.positions


_add(
    "fidelity", "image difference", lambda found: found.images, ".2f", sees=ALL_BUT_COLLAPSE, wants_positions=False,
    blind_to=QUALITY,
)  # fmt: skip
_add(
    "latents", "latent difference", lambda found: _at_edges(found)[:, 0], ".3f", sees=(OTHER_PROMPT,),
    blind_to=QUALITY,
)  # fmt: skip
_add(
    "position", "position difference", lambda found: _at_edges(found).mean(dim=1), ".3f", sees=(OTHER_PROMPT,),
    blind_to=QUALITY,
)  # fmt: skip
