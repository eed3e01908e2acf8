"""Weights with the AdamW that trains them; nothing in here waits for the device."""

import torch
from torch import Tensor, nn

from rapm_cli.core.common.errors import require_shortage
from rapm_cli.core.network.flat_weights import MasterWeights, copy_tensors


class GuardedAdamW:
    """AdamW on some weights, which makes no update from what is not finite.

    Args:
        weights: That it trains.
        learning_rate: Of the updates, until `set_rate`.
        betas: Of the moments.
        weight_decay: Decoupled.
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
        self.loss: Tensor | None = None  # that the gradient which waits for an update is of
        self._adam = torch.optim.AdamW(
            [weights.flat], lr=learning_rate, betas=betas, weight_decay=weight_decay, fused=True
        )

    def set_rate(self, learning_rate: float) -> None:
        """Of the updates from here on."""
        self._adam.param_groups[0]["lr"] = learning_rate

    def init_state(self) -> None:
        """Let the optimizer lay out its moments, by a step that is skipped."""
        if not self._adam.state:
            try:
                self._step(torch.ones((), device=self.weights.flat.device))
            except RuntimeError as error:
                require_shortage(error)
                self._adam.state.clear()  # a part of the moments would count as all
                raise

    def backward(self, loss: Tensor) -> None:
        """Take the gradient of a loss for the next update."""
        backward(loss, self)

    def update(self, loss: Tensor, max_norm: float, is_lost: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Clip the gradient to a norm and make an update of it, unless something is not finite; then drop it.

        Args:
            loss: That the gradient is of, in all processes.
            max_norm: Of the gradient.
            is_lost: 1 where no update may be made, whatever the gradient.

        Returns:
            Whether the loss is finite; 1 where loss or gradient is not, else 0.
        """
        norm = nn.utils.clip_grad_norm_(self.weights.flat, max_norm)
        is_loss_finite = loss.isfinite()
        skip = (~(norm.isfinite() & is_loss_finite)).float()
        self._step(skip if is_lost is None else torch.maximum(skip, is_lost))
        self.weights.sync()
        self.zero_grad()
        return is_loss_finite, skip

    def zero_grad(self) -> None:
        """Make no update of the gradient that was taken."""
        self.weights.flat.grad = self.loss = None

    def _step(self, skip: Tensor) -> None:
        if skip.device.type == "mps" and skip:
            return  # the fused kernel of torch before 2.13 does not look there, and NaN would stay in the weights
        self._adam.found_inf = skip  # type: ignore[attr-defined]  # what the fused kernel looks at
        self._adam.step()

    def state(self) -> dict[str, Tensor]:
        """The optimizer's on the CPU, such as `step` and `exp_avg.mid_block.resnets.0.conv1.lora_A.weight`."""
        made: dict[str, Tensor] = {}
        for kind, value in self._adam.state_dict()["state"].get(0, {}).items():
            kept = value.detach().to("cpu", copy=True)
            parts = self.weights.parts(kept) if kept.dim() else {}
            made |= {f"{kind}.{name}": part for name, part in parts.items()} or {kind: kept}
        return made

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go back to what `state` returned; settings such as the rate stay as they are.

        Raises:
            ValueError: A name or a shape is not this optimizer's.
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


def backward(loss: Tensor, *learners: GuardedAdamW) -> None:
    """Take the gradient of one loss for several learners' next updates, in one pass back through a scaled loss."""
    scale = learners[0].loss_scale
    parameters = [learner.weights.parameters for learner in learners]
    scaled = loss * scale if scale != 1 else loss
    gradients = torch.autograd.grad(scaled, [p for part in parameters for p in part], materialize_grads=True)
    start = 0
    for learner, part in zip(learners, parameters, strict=True):
        learner.weights.set_gradients(gradients[start : start + len(part)], scale)
        learner.loss = loss.detach().float()
        start += len(part)


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
