"""What to do about values that are not finite: skip the update, then go back with a smaller rate, then stop."""

from dataclasses import dataclass, replace

MAX_SKIPS = 3  # iterations in a row, before training goes back
MAX_RETURNS = 2  # before it stops
RATE_FACTOR = 0.5  # of both rates, at each return


@dataclass(frozen=True)
class Health:
    """How training has fared; kept with every checkpoint, so that a resumed run decides as the first would have.

    Args:
        skips: Iterations in a row up to now in which an update was skipped.
        returns: How often training went back.
    """

    skips: int = 0
    returns: int = 0

    def after(self, skipped: str) -> "Health":
        """The health after an iteration, given what it skipped."""
        return replace(self, skips=self.skips + 1 if skipped else 0)

    def returned(self) -> "Health":
        """The health after going back."""
        return Health(0, self.returns + 1)

    @property
    def must_return(self) -> bool:
        """True once skipping has not helped."""
        return self.skips >= MAX_SKIPS

    @property
    def must_stop(self) -> bool:
        """True once going back has not helped either."""
        return self.must_return and self.returns >= MAX_RETURNS

    @property
    def rate_scale(self) -> float:
        """What the rates are multiplied by."""
        return float(RATE_FACTOR**self.returns)
