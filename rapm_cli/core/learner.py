"""Weights with the AdamW that trains them; nothing in here waits for the device."""

import torch
from torch import Tensor, nn

from rapm_cli.core.errors import require_shortage
from rapm_cli.core.trained import TrainedWeights, copy_tensors


class Learner:
    """AdamW on some weights, which makes no update from what is not finite.

    Args:
        weights: That it trains.
        learning_rate: At first.
        betas: Of the moments.
        weight_decay: Decoupled.
    """

    def __init__(
        self,
        weights: TrainedWeights,
        learning_rate: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float,
    ) -> None:
        self.weights = weights
        self._adam = torch.optim.AdamW(
            [weights.flat], lr=learning_rate, betas=betas, weight_decay=weight_decay, fused=True
        )

    def set_rate(self, learning_rate: float) -> None:
        """Of the updates from here on."""
        self._adam.param_groups[0]["lr"] = learning_rate

    def take_memory(self) -> None:
        """Let the optimizer lay out its moments, by a step that is skipped."""
        if not self._adam.state:
            try:
                self._step(torch.ones((), device=self.weights.flat.device))
            except RuntimeError as error:
                require_shortage(error)
                self._adam.state.clear()  # a part of the moments would count as all
                raise

    def update(self, loss: Tensor, max_norm: float, is_lost: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Clip the gradient to a norm and make an update of it, unless something is not finite; then drop it.

        Args:
            loss: That the gradient is of.
            max_norm: Of the gradient.
            is_lost: 1 where no update may be made, whatever the gradient.

        Returns:
            Whether the loss is finite; 1 where loss or gradient is not, else 0.
        """
        norm = nn.utils.clip_grad_norm_(self.weights.flat, max_norm)
        is_loss_finite = loss.isfinite()
        skip = (~(norm.isfinite() & is_loss_finite)).float()
        self._step(skip if is_lost is None else torch.maximum(skip, is_lost))
        self.weights.publish()
        self.weights.flat.grad = None
        return is_loss_finite, skip

    def _step(self, skip: Tensor) -> None:
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
