"""Recovery from values that are not finite: skip updates, then go back with a smaller rate, then stop."""

from dataclasses import dataclass, replace

NETWORK = "network"  # value of `skipped`: the trained weights are not finite, and no later update can mend them
MAX_SKIPS = 3  # skipped iterations in a row before training goes back
MAX_RETURNS = 2  # times that training goes back before it stops
RATE_FACTOR = 0.5  # of all learning rates, each time training goes back


@dataclass(frozen=True)
class Health:
    """The record of skipped updates; every checkpoint keeps it, so that a resumed run decides the same.

    Args:
        skips: Number of iterations in a row, up to now, with a skipped update.
        returns: Number of times that training went back.
        is_lost: True if the trained weights are not finite.
    """

    skips: int = 0
    returns: int = 0
    is_lost: bool = False

    def after(self, skipped: str) -> "Health":
        """Return the health after an iteration; `skipped` names what was not finite, empty if all was well."""
        return replace(self, skips=self.skips + 1 if skipped else 0, is_lost=skipped == NETWORK)

    def returned(self) -> "Health":
        """Return the health after going back."""
        return Health(0, self.returns + 1)

    @property
    def must_return(self) -> bool:
        """True if skipping has not helped, or cannot help."""
        return self.is_lost or self.skips >= MAX_SKIPS

    @property
    def must_stop(self) -> bool:
        """True if going back has not helped either."""
        return self.must_return and self.returns >= MAX_RETURNS

    @property
    def rate_scale(self) -> float:
        """The factor of all learning rates."""
        return float(RATE_FACTOR**self.returns)
