"""What to do about values that are not finite: skip the update, then go back with a smaller rate, then stop."""

from dataclasses import dataclass, replace

NETWORK = "network"  # as what is not finite, all that is trained: no later update can mend it
MAX_SKIPS = 3  # iterations in a row, before training goes back
MAX_RETURNS = 2  # before it stops
RATE_FACTOR = 0.5  # of both rates, at each return


@dataclass(frozen=True)
class Health:
    """How training has fared; kept with every checkpoint, so that a resumed run decides as the first would have.

    Args:
        skips: Iterations in a row up to now in which an update was skipped.
        returns: How often training went back.
        is_lost: The weights themselves are not finite.
    """

    skips: int = 0
    returns: int = 0
    is_lost: bool = False

    def after(self, skipped: str) -> "Health":
        """The health after an iteration, given what was not finite in it; empty where all was well."""
        return replace(self, skips=self.skips + 1 if skipped else 0, is_lost=skipped == NETWORK)

    def returned(self) -> "Health":
        """The health after going back."""
        return Health(0, self.returns + 1)

    @property
    def must_return(self) -> bool:
        """True once skipping has not helped, or cannot."""
        return self.is_lost or self.skips >= MAX_SKIPS

    @property
    def must_stop(self) -> bool:
        """True once going back has not helped either."""
        return self.must_return and self.returns >= MAX_RETURNS

    @property
    def rate_scale(self) -> float:
        """What the rates are multiplied by."""
        return float(RATE_FACTOR**self.returns)
