"""A running average of weights while they are trained."""

import torch
from torch import Tensor

from rapm_cli.core.network.flat_weights import MasterWeights, copy_tensors


class WeightAverage:
    """An exponential moving average of the masters, once an iteration.

    Args:
        weights: That are averaged; now as they begin.
        decay: What the average keeps of itself in an iteration, in [0, 1); less at first, where it knows little.
    """

    def __init__(self, weights: MasterWeights, decay: float) -> None:
        self._weights, self._decay = weights, decay
        self.flat = weights.flat.detach().clone()

    @torch.no_grad()
    def follow(self, iteration: int) -> None:
        """Take in the weights after an iteration, counted from 0."""
        kept = min(self._decay, (1 + iteration) / (10 + iteration))
        self.flat.lerp_(self._weights.flat, 1 - kept)

    def sync(self) -> None:
        """Put the average in the weights' place."""
        self._weights.load_state(self.state())

    def state(self) -> dict[str, Tensor]:
        """The average by name, on the CPU."""
        return self._weights.parts(self.flat.to("cpu", copy=True))

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go back to what `state` returned.

        Raises:
            ValueError: A key or a shape differs.
        """
        copy_tensors(state, self._weights.parts(self.flat))
