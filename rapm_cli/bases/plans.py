"""How phase 2 fits a card: what is recomputed instead of kept, and whether the frozen weights are rounded to 8 bits."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rapm_cli.core.common.errors import OutOfMemoryError
from rapm_cli.core.network.backbone import BLOCKS

GIB = 2**30
MARGIN = 1.08  # of a predicted peak, for what the libraries take and for holes in the memory
LIBRARY_BYTES = GIB // 2  # that they take for themselves, however small the work is


@dataclass(frozen=True)
class Plan:
    """One way to train.

    Args:
        name: Memory of the smallest card that it is for, in GB, as `--vram` takes it.
        recomputed: Parts of the network whose activations are computed again in backward.
        is_quantised: Whether the frozen linear layers are in 8 bits. The student then adapts to the rounded base;
            trajectories always come from the whole one.
    """

    name: str
    recomputed: tuple[str, ...] = ()
    is_quantised: bool = False

    @property
    def words(self) -> str:
        """What it does, in a few words."""
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
    """Whether a base is trained on in 8 bits under what `--vram` takes; "auto" never rounds it."""
    return vram in PLANS and PLANS[vram].is_quantised


def lower(plan: Plan) -> Plan | None:
    """The plan that needs less, or None; never one with a rounded base, which has to be asked for."""
    plans = list(PLANS.values())
    after = plans[plans.index(plan) + 1 :]
    return after[0] if after and not after[0].is_quantised else None


def choose_plan(plans: Iterable[Plan], peak_of: Callable[[Plan], int], free_bytes: int) -> Plan:
    """The first plan that fits, and with it the fastest.

    Args:
        plans: The fastest first; the last one has a rounded base and is only named.
        peak_of: Predicted bytes of a plan.
        free_bytes: Of the device.

    Raises:
        OutOfMemoryError: None fits without a rounded base.
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
    """What has to be free for a predicted peak."""
    return int(MARGIN * peak_bytes) + LIBRARY_BYTES
