"""Memory and operations of a computation, measured on tensors without data.

On the meta device, every operation of torch makes a tensor of the right shape and no data, forward and backward. So the
code that will run on a card can be run before, in seconds.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

BLOCK = 512  # bytes; CUDA's allocator rounds sizes up to multiples of this


class Meter(TorchDispatchMode):
    """A context that counts floating-point operations and live bytes.

    Attributes:
        flops: Number of floating-point operations so far.
        live_bytes: Size of the storages that were seen inside and are still alive.
        peak_bytes: Greatest `live_bytes` so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self.live_bytes = self.peak_bytes = 0
        self._sizes: dict[int, int] = {}

    def hold(self, tensors: list[Tensor]) -> None:
        """Count tensors that were made before."""
        for tensor in tensors:
            self._see(tensor)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._see(value)
        if count := flop_registry.get(function._overloadpacket):
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        return out

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if tensor.device.type != "meta" or key in self._sizes:
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        self._sizes[key] = size
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.live_bytes -= self._sizes.pop(key, 0)


@contextmanager
def flash_attention(meter: Meter) -> Iterator[None]:
    """Inside, attention counts as a fused kernel: no matrix of scores, and one more pass in backward."""

    class Flash(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            out = query.new_empty(*query.shape[:-1], value.shape[-1])
            sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
            ctx.save_for_backward(query, key, value, out, sums)
            meter.flops += _attention_flops(query, key)
            return out

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
            query, key, value, _, _ = ctx.saved_tensors
            meter.flops += 5 * _attention_flops(query, key) // 2
            return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)

    def attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        made: Tensor = Flash.apply(query, key, value)  # type: ignore[no-untyped-call]
        return made

    real: Callable[..., Tensor] = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = real


def _attention_flops(query: Tensor, key: Tensor) -> int:
    """Count two matrix products: queries with keys, and scores with values."""
    return 4 * query.numel() * key.shape[-2]
