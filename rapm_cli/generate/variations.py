"""A student sampled otherwise than alone at full weight: other LoRAs beside it, another weight or sampler."""

from collections.abc import Sequence
from dataclasses import replace

from rapm_cli.bases.merged import with_loras
from rapm_cli.core.common.errors import ConfigError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.method.samplers import SAMPLERS
from rapm_cli.formats.lora_ref import LoraRef
from rapm_cli.runs.fused_base import FusedBase
from rapm_cli.runs.resolve_lora import ResolvedLora

Model = ResolvedLora | FusedBase


def beside(chosen: Model, loras: Sequence[LoraRef], reporter: Reporter) -> Model:
    """Return a model with other LoRAs beside its own; they are merged into the base, and so into its teacher.

    Raises:
        InputError: A LoRA does not fit the base.
    """
    return replace(chosen, base=with_loras(chosen.base, loras, reporter)) if loras else chosen


def weighted(chosen: Model, weight: float) -> Model:
    """Return a model whose LoRA has a weight.

    Raises:
        ConfigError: The LoRA is in the base's weights.
    """
    if weight == 1:
        return chosen
    if isinstance(chosen, FusedBase):
        raise ConfigError(f"--lora-weight {weight:g}: {chosen.origin} has its LoRA in its weights", "leave it out")
    return replace(chosen, weight=weight)


def sampled_with(chosen: Model, sampler: str, steps: int) -> Model:
    """Return a model that is sampled with a sampler from `SAMPLERS`, in a number of steps.

    Raises:
        ConfigError: There is no such sampler, or it cannot take so many steps.
    """
    named = {"name": sampler, **SAMPLERS[sampler].recipe(steps)}
    if isinstance(chosen, FusedBase):
        return replace(chosen, recipe={**chosen.recipe, "sampler": named})
    return replace(chosen, lora=replace(chosen.lora, recipe={**chosen.recipe, "sampler": named}))
