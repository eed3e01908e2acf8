"""Weights that are trained, in one piece, so that what updates them runs once and not once for each of them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

ALIGNED = 16  # numbers


class MasterWeights:
    """float32 masters of some parameters as parts of one tensor, and what the network computes with.

    In a float32 network the two are one. In a 16-bit network it computes with copies in its own dtype, made anew after
    each update, so that no pass casts 788 small tensors; gradients are taken of the copies and go to the masters.

    Args:
        named: Parameters in float32, by name; from here on they hold what is computed with.
        dtype: That the network computes in.
    """

    def __init__(self, named: dict[str, nn.Parameter], dtype: torch.dtype) -> None:
        # Odd sizes last, so that all others begin at addresses that fast kernels take.
        self._named = dict(sorted(named.items(), key=lambda item: item[1].numel() % ALIGNED > 0))
        self.flat = torch.cat([value.detach().reshape(-1) for value in self._named.values()]).requires_grad_()
        self._working = self.flat.detach().to(dtype)  # the masters themselves where that is float32
        for value, part in zip(self._named.values(), self.parts(self._working).values(), strict=True):
            value.data = part

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What the network computes with, which gradients are taken of."""
        return list(self._named.values())

    @property
    def masters(self) -> dict[str, Tensor]:
        """The float32 values by name, detached; writing to them takes effect with `sync`."""
        return self.parts(self.flat.detach())

    def parts(self, flat: Tensor) -> dict[str, Tensor]:
        """A tensor like `flat`, such as its gradient, as views by name in the shapes of the parameters."""
        parts = flat.split([value.numel() for value in self._named.values()])
        return {name: part.view(value.shape) for (name, value), part in zip(self._named.items(), parts, strict=True)}

    def set_gradients(self, gradients: Sequence[Tensor], scale: float = 1.0) -> None:
        """Set the masters' gradient from those of the parameters, which are `scale` times too large."""
        gradient = torch.cat([part.reshape(-1) for part in gradients]).float()
        self.flat.grad = gradient.div_(scale) if scale != 1 else gradient

    @torch.no_grad()
    def sync(self) -> None:
        """Let the network compute with the masters' present values."""
        if self._working.dtype != self.flat.dtype:
            self._working.copy_(self.flat)

    def state(self) -> dict[str, Tensor]:
        """The masters by name, on the CPU."""
        return self.parts(self.flat.detach().to("cpu", copy=True))

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go back to what `state` returned.

        Raises:
            ValueError: A key or a shape differs.
        """
        copy_tensors(state, self.masters)
        self.sync()


@torch.no_grad()
def copy_tensors(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Copy values in place by name.

    Raises:
        ValueError: A name or a shape differs; nothing was copied.
    """
    if target.keys() != source.keys():
        raise ValueError(f"keys differ: {sorted(target.keys() ^ source.keys())[:3]}")
    for name, value in target.items():
        if value.shape != source[name].shape:
            raise ValueError(f"the shape of {name} differs: {tuple(value.shape)} and {tuple(source[name].shape)}")
    for name, value in target.items():
        value.copy_(source[name])
