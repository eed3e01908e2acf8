"""Trained weights as one flat tensor, so that an update is one operation and not one for each weight."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

ALIGNED = 16  # numbers; fast kernels want addresses that are multiples of this


class MasterWeights:
    """The float32 master weights of some parameters, as views of one flat tensor.

    A float32 network computes with the masters themselves. A 16-bit network computes with copies in its own dtype,
    which `sync` renews after each update, so that no pass casts 788 small tensors. Gradients of the copies become
    gradients of the masters.

    Args:
        named: Parameters in float32, by name; from here on they hold the values that the network computes with.
        dtype: Dtype of the network.
    """

    def __init__(self, named: dict[str, nn.Parameter], dtype: torch.dtype) -> None:
        # Odd sizes come last, so that all others start at aligned addresses.
        self._named = dict(sorted(named.items(), key=lambda item: item[1].numel() % ALIGNED > 0))
        self.flat = torch.cat([value.detach().reshape(-1) for value in self._named.values()]).requires_grad_()
        self._working = self.flat.detach().to(dtype)  # the masters themselves where that is float32
        for value, part in zip(self._named.values(), self.parts(self._working).values(), strict=True):
            value.data = part

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that the network computes with; gradients are taken of these."""
        return list(self._named.values())

    @property
    def masters(self) -> dict[str, Tensor]:
        """The float32 values by name, in the parameters' shapes: detached views; call `sync` after writing to them."""
        return self.parts(self.flat.detach())

    def parts(self, flat: Tensor) -> dict[str, Tensor]:
        """Split a tensor like `flat`, such as its gradient, into views by name in the parameters' shapes."""
        parts = flat.split([value.numel() for value in self._named.values()])
        return {name: part.view(value.shape) for (name, value), part in zip(self._named.items(), parts, strict=True)}

    def set_gradients(self, gradients: Sequence[Tensor], scale: float = 1.0) -> None:
        """Set the gradient of the masters.

        Args:
            gradients: Gradients of `parameters`, in their order and shapes, in the network's dtype.
            scale: Factor by which the gradients are too large.
        """
        gradient = torch.cat([part.reshape(-1) for part in gradients]).float()
        self.flat.grad = gradient.div_(scale) if scale != 1 else gradient

    @torch.no_grad()
    def sync(self) -> None:
        """Copy the masters to the values that the network computes with."""
        if self._working.dtype != self.flat.dtype:
            self._working.copy_(self.flat)

    def state(self) -> dict[str, Tensor]:
        """Return the masters by name: float32 copies on the CPU, in the parameters' shapes."""
        return self.parts(self.flat.detach().to("cpu", copy=True))

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Load what `state` returned.

        Raises:
            ValueError: A key or a shape differs.
        """
        copy_tensors(state, self.masters)
        self.sync()


@torch.no_grad()
def copy_tensors(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Copy values in place by name.

    Raises:
        ValueError: A name or a shape differs. Nothing is copied then.
    """
    if target.keys() != source.keys():
        raise ValueError(f"keys differ: {sorted(target.keys() ^ source.keys())[:3]}")
    for name, value in target.items():
        if value.shape != source[name].shape:
            raise ValueError(f"the shape of {name} differs: {tuple(value.shape)} and {tuple(source[name].shape)}")
    for name, value in target.items():
        value.copy_(source[name])
