"""CUDA graphs: repeated passes of a network are recorded once, and later passes replay the recording.

An iteration on SDXL starts some 60,000 kernels, for which a fast GPU waits. A recorded pass is a single start. Results
are the same to the bit.
"""

import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

USUAL = 4  # passes of a kind before one is recorded: recording costs about one, and a single image takes four
SPARE = 2  # record only if more than 1 / SPARE of the device is free: small cards are slow enough to be kept busy

Pass = Callable[..., Sequence[Tensor]]


class Recording:
    """A recorded pass, forward and backward, on tensors that stay in their places.

    Args:
        work: The pass: a function of its inputs and of weights that stay in their places.
        inputs: Inputs to record with; later inputs must have the same shapes.
        weights: Weights that may get gradients.
        pool: Memory pool to share with recordings that are never in use at the same time; None for an own pool.
    """

    def __init__(self, work: Pass, inputs: Sequence[Tensor], weights: Sequence[nn.Parameter], pool: Any) -> None:
        has_gradients = torch.is_grad_enabled()
        self._inputs = [
            value.detach().clone().requires_grad_(has_gradients and value.requires_grad) for value in inputs
        ]
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._forward, pool=pool, capture_error_mode="thread_local"):
            outputs = work(*self._inputs)
        self._outputs = [output.detach() for output in outputs]
        self._lease: Callable[[], object] = lambda: None
        self.sources: list[Tensor] = []
        if outputs[0].requires_grad:
            self._record_backward(outputs, [x for x in self._inputs if x.requires_grad], weights)

    def _record_backward(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], weights: Sequence[nn.Parameter]
    ) -> None:
        sources = [*inputs, *weights]
        self._incoming = [torch.zeros_like(output) for output in self._outputs]
        with torch.cuda.graph(self._backward, pool=self._forward.pool(), capture_error_mode="thread_local"):
            gradients = torch.autograd.grad(outputs, sources, self._incoming, allow_unused=True)
        if any(part is None for part in gradients[: len(inputs)]):
            raise RuntimeError("an input of the pass has no part in its outputs")
        pairs = [(source, part) for source, part in zip(sources, gradients, strict=True) if part is not None]
        self.sources, self._gradients = [source for source, _ in pairs], [part for _, part in pairs]

    @property
    def pool(self) -> Any:
        """The memory pool of the recording."""
        return self._forward.pool()

    @property
    def is_busy(self) -> bool:
        """True while a forward pass still waits for its backward pass, which needs the recording's tensors."""
        return self._lease() is not None

    def lease(self) -> object:
        """Return an object that keeps the recording busy as long as it is alive."""
        held = _Lease()
        self._lease = weakref.ref(held)
        return held

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Run the forward pass on other inputs of the same shapes."""
        _copy(inputs, self._inputs)
        self._forward.replay()
        return tuple(output.clone() for output in self._outputs)

    def backward(self, incoming: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradients of `sources` for gradients of the outputs; the next backward pass overwrites them."""
        _copy(incoming, self._incoming)
        self._backward.replay()
        return self._gradients


class _Lease:
    """Held by a pass that waits for its backward pass."""


@torch.no_grad()
def _copy(values: Sequence[Tensor], places: Sequence[Tensor]) -> None:
    for value, place in zip(values, places, strict=True):
        place.copy_(value)


class _Played(torch.autograd.Function):
    """A recording as an operation of autograd, on its inputs and on `sources` in their order."""

    @staticmethod
    def forward(ctx: Any, recording: Recording, inputs: Sequence[Tensor], *sources: Tensor) -> tuple[Tensor, ...]:
        ctx.recording, ctx.lease = recording, recording.lease()
        return recording.forward(inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        ctx.lease = None
        return None, None, *ctx.recording.backward(incoming)


class Recorder:
    """Runs the passes of a network whose weights keep their places, and records those that repeat.

    Args:
        network: Network whose passes are run.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._seen: Counter[Hashable] = Counter()
        self._made: defaultdict[Hashable, list[Recording]] = defaultdict(list)
        self._refused: set[Hashable] = set()
        self._pool: Any = None  # of passes without gradients, which keep nothing from one to the next

    @property
    def has_recordings(self) -> bool:
        """True if there are recordings, which hold memory."""
        return any(self._made.values())

    def run(self, kind: Hashable, work: Pass, *inputs: Tensor) -> Sequence[Tensor]:
        """Run a pass, or replay its recording.

        Args:
            kind: Identifies the pass, together with the shapes of its inputs.
            work: The pass.
            inputs: Inputs of the pass, on one device.
        """
        has_gradients = torch.is_grad_enabled()
        forms = tuple((x.shape, x.dtype, has_gradients and x.requires_grad) for x in inputs)
        key = kind, has_gradients, forms
        self._seen[key] += 1
        if self._seen[key] <= USUAL or key in self._refused:
            return work(*inputs)
        recording = next((made for made in self._made[key] if not made.is_busy), None)
        recording = recording or self._record(key, work, inputs)
        if recording is None:
            return work(*inputs)
        if not recording.sources:
            return recording.forward(inputs)
        mine = [x for x in inputs if has_gradients and x.requires_grad]
        played: tuple[Tensor, ...] = _Played.apply(  # type: ignore[no-untyped-call]
            recording, [x.detach() for x in inputs], *mine, *recording.sources[len(mine) :]
        )
        return played

    def _record(self, key: Hashable, work: Pass, inputs: Sequence[Tensor]) -> Recording | None:
        """Make a recording; return None if there is too little memory or the device cannot record the pass."""
        weights = [weight for weight in self._network.parameters() if weight.requires_grad]
        is_lasting = torch.is_grad_enabled()
        made = None
        if self._is_worth_it(inputs[0].device):
            try:
                made = self._recorded(work, inputs, weights, None if is_lasting else self._pool)
            except RuntimeError:  # if the pass itself is wrong, running it raises the error
                made = None
        if made is None:
            self._refused.add(key)
            return None
        self._pool = self._pool if is_lasting else made.pool
        self._made[key].append(made)
        return made

    def _recorded(self, work: Pass, inputs: Sequence[Tensor], weights: Sequence[nn.Parameter], pool: Any) -> Recording:
        return Recording(work, inputs, weights, pool)

    def _is_worth_it(self, device: torch.device) -> bool:
        if device.type != "cuda" or device.index != torch.cuda.current_device():
            return False
        torch.cuda.empty_cache()  # recording does so anyway, and older recordings keep their memory
        free, total = torch.cuda.mem_get_info(device)
        return free > total / SPARE
