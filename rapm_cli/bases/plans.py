"""Memory plans of training: which activations are recomputed, and whether the frozen weights are rounded to 8 bits."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rapm_cli.core.common.errors import OutOfMemoryError
from rapm_cli.core.network.backbone import BLOCKS

GIB = 2**30
MARGIN = 1.08  # factor on a predicted peak, for libraries and fragmentation
LIBRARY_BYTES = GIB // 2  # constant memory of the libraries


@dataclass(frozen=True)
class Plan:
    """A memory plan.

    Args:
        name: Memory of the smallest suitable card in GB, as `--vram` takes it.
        recomputed: Parts of the network whose activations are recomputed in the backward pass.
        is_quantised: Whether the frozen linear layers have 8-bit weights. The student then adapts to the rounded base;
            trajectories always come from the base in full precision.
    """

    name: str
    recomputed: tuple[str, ...] = ()
    is_quantised: bool = False

    @property
    def words(self) -> str:
        """Short description of the plan."""
        kept = {(): "keeps all activations", BLOCKS: "recomputes activations"}
        words = kept.get(self.recomputed, "recomputes a part of the activations")
        return f"{words}, 8-bit base" if self.is_quantised else words


PLANS = {
    plan.name: plan
    for plan in (
        Plan("24"),
        Plan("16", ("up_blocks",)),
        Plan("12", BLOCKS),
        Plan("8", BLOCKS, is_quantised=True),
    )
}


def is_rounded(vram: str) -> bool:
    """Return True if this value of `--vram` trains on a base in 8 bits; "auto" never does."""
    return vram in PLANS and PLANS[vram].is_quantised


def lower(plan: Plan) -> Plan | None:
    """Return the next plan that needs less memory, or None; never an 8-bit plan, which the user must request."""
    plans = list(PLANS.values())
    after = plans[plans.index(plan) + 1 :]
    return after[0] if after and not after[0].is_quantised else None


def choose_plan(plans: Iterable[Plan], peak_of: Callable[[Plan], int], free_bytes: int) -> Plan:
    """Return the first plan that fits, which is the fastest.

    Args:
        plans: Plans, fastest first; the last one is 8-bit and only named in the error.
        peak_of: Function from a plan to its predicted peak in bytes.
        free_bytes: Free memory of the device in bytes.

    Raises:
        OutOfMemoryError: No plan fits without rounding the base.
    """
    least = 0
    for plan in plans:
        least, before = needed(peak_of(plan)), least
        if plan.is_quantised:
            remedy = f"close other programs, or give --vram {plan.name}: {plan.words}, {least / GIB:.1f} GiB"
            break
        if least <= free_bytes:
            return plan
    raise OutOfMemoryError(
        f"training needs {before / GIB:.1f} GiB of the device, {free_bytes / GIB:.1f} GiB are free", remedy
    )


def needed(peak_bytes: int) -> int:
    """Return the free bytes that a predicted peak requires."""
    return int(MARGIN * peak_bytes) + LIBRARY_BYTES
