"""AdamW on master weights, and their moving average; nothing here waits for the device."""

import torch
from torch import Tensor, nn

from rapm_cli.core.common.errors import require_shortage
from rapm_cli.core.network.flat_weights import MasterWeights, copy_tensors


class GuardedAdamW:
    """AdamW that skips an update whose loss or gradient is not finite.

    Args:
        weights: Weights to train.
        learning_rate: Learning rate until `set_rate` changes it.
        betas: Decay of the two moments.
        weight_decay: Decoupled weight decay.

    Attributes:
        loss_scale: Factor of the loss in backward.
    """

    def __init__(
        self,
        weights: MasterWeights,
        learning_rate: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float,
    ) -> None:
        self.weights, self.learning_rate = weights, learning_rate
        self.loss_scale = 1.0
        self._adam = torch.optim.AdamW(
            [weights.flat], lr=learning_rate, betas=betas, weight_decay=weight_decay, fused=True
        )

    def set_rate(self, learning_rate: float) -> None:
        """Set the learning rate of the updates from here on."""
        self._adam.param_groups[0]["lr"] = learning_rate

    def init_state(self) -> None:
        """Allocate the optimizer's moments, by a step that is skipped."""
        if not self._adam.state:
            try:
                self._step(torch.ones((), device=self.weights.flat.device))
            except RuntimeError as error:
                require_shortage(error)
                self._adam.state.clear()  # torch would take a part of the moments for all of them
                raise

    def backward(self, loss: Tensor) -> Tensor:
        """Compute the gradient of a scalar loss for the next update; return the loss as `update` takes it."""
        return backward(loss, self)

    def update(self, loss: Tensor, max_norm: float, must_skip: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Clip the gradient, update the weights unless something is not finite, and drop the gradient.

        Args:
            loss: Scalar: the mean over all processes of what `backward` returned.
            max_norm: Greatest norm of the gradient.
            must_skip: Scalar: 1 to make no update whatever the gradient is, else 0.

        Returns:
            Scalar True if the loss is finite; scalar 1 if the loss or the gradient is not finite, else 0. Both are on
            the device.
        """
        norm = nn.utils.clip_grad_norm_(self.weights.flat, max_norm)
        is_loss_finite = loss.isfinite()
        skip = (~(norm.isfinite() & is_loss_finite)).float()
        self._step(skip if must_skip is None else torch.maximum(skip, must_skip))
        self.weights.sync()
        self.zero_grad()
        return is_loss_finite, skip

    def zero_grad(self) -> None:
        """Drop the gradient that waits for an update."""
        self.weights.flat.grad = None

    def _step(self, skip: Tensor) -> None:
        if skip.device.type == "mps" and skip:
            return  # before torch 2.13 its fused kernel ignores found_inf, and NaN would stay in the weights
        self._adam.found_inf = skip  # type: ignore[attr-defined]  # the fused kernel makes no update where it is 1
        self._adam.step()

    def state(self) -> dict[str, Tensor]:
        """Return the state on the CPU, such as `step` and `exp_avg.mid_block.resnets.0.conv1.lora_A.weight`."""
        made: dict[str, Tensor] = {}
        for kind, value in self._adam.state_dict()["state"].get(0, {}).items():
            kept = value.detach().to("cpu", copy=True)
            parts = self.weights.parts(kept) if kept.dim() else {}
            made |= {f"{kind}.{name}": part for name, part in parts.items()} or {kind: kept}
        return made

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Load what `state` returned; settings such as the learning rate do not change.

        Raises:
            ValueError: A name or a shape differs from this optimizer's.
        """
        entry: dict[str, Tensor] = {}
        for kind in dict.fromkeys(key.partition(".")[0] for key in state):
            if kind in state:
                entry[kind] = state[kind].clone()
                continue
            entry[kind] = torch.empty_like(self.weights.flat, requires_grad=False)
            named = {key.partition(".")[2]: value for key, value in state.items() if key.startswith(f"{kind}.")}
            copy_tensors(named, self.weights.parts(entry[kind]))
        groups = self._adam.state_dict()["param_groups"]
        self._adam.load_state_dict({"state": {0: entry} if entry else {}, "param_groups": groups})


def backward(loss: Tensor, *optimizers: GuardedAdamW) -> Tensor:
    """Compute the gradient of one loss for the next updates of several optimizers, in one backward pass.

    Args:
        loss: Scalar loss in a graph that holds every weight of the optimizers, or none of some.
        optimizers: Their weights receive the gradient, divided by the loss scale of the first.

    Returns:
        The loss outside its graph, float32, for `GuardedAdamW.update`.
    """
    scale = optimizers[0].loss_scale
    parameters = [optimizer.weights.parameters for optimizer in optimizers]
    scaled = loss * scale if scale != 1 else loss
    gradients = torch.autograd.grad(scaled, [p for part in parameters for p in part], materialize_grads=True)
    start = 0
    for optimizer, part in zip(optimizers, parameters, strict=True):
        optimizer.weights.set_gradients(gradients[start : start + len(part)], scale)
        start += len(part)
    return loss.detach().float()


class WeightAverage:
    """An exponential moving average of master weights, which follows them once an iteration.

    Args:
        weights: Weights to average; the average starts at their present values.
        decay: Share of the average that each iteration keeps, in [0, 1); less in the first iterations.
    """

    def __init__(self, weights: MasterWeights, decay: float) -> None:
        self._weights, self._decay = weights, decay
        self.flat = weights.flat.detach().clone()

    @torch.no_grad()
    def follow(self, iteration: int) -> None:
        """Include the weights after an iteration, counted from 0."""
        kept = min(self._decay, (1 + iteration) / (10 + iteration))
        self.flat.lerp_(self._weights.flat, 1 - kept)

    def sync(self) -> None:
        """Replace the weights by the average."""
        self._weights.load_state(self.state())

    def state(self) -> dict[str, Tensor]:
        """Return the average by name, on the CPU."""
        return self._weights.parts(self.flat.to("cpu", copy=True))

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Load what `state` returned.

        Raises:
            ValueError: A key or a shape differs.
        """
        copy_tensors(state, self._weights.parts(self.flat))
