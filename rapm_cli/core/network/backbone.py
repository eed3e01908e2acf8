"""One network in memory, evaluated in its three roles: teacher, student, and eyes of the discriminators."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rapm_cli.core.common.device_copy import upload
from rapm_cli.core.common.errors import ConfigError
from rapm_cli.core.network.cuda_graphs import Pass, Recorder
from rapm_cli.core.network.lora_layers import TEACHER, Switch
from rapm_cli.core.network.schedule import NoiseSchedule, predicted_noise

COMPILED_GRAPHS = 64  # of a block's code: for each of its widths, batch sizes and roles, with gradients and without
BLOCKS = ("down_blocks", "mid_block", "up_blocks")


@dataclass(frozen=True)
class Conditioning:
    """What the network is told about a batch of pictures.

    Args:
        tokens: (B, L, D) text states for cross-attention.
        pooled: (B, P) pooled text state, or None for networks without one.
        time_ids: (B, 6) SDXL's original size, crop and target size, or None.
    """

    tokens: Tensor
    pooled: Tensor | None = None
    time_ids: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> "Conditioning":
        """The same change applied to every part that is there."""
        return Conditioning(
            change(self.tokens),
            None if self.pooled is None else change(self.pooled),
            None if self.time_ids is None else change(self.time_ids),
        )

    def to(self, device: torch.device) -> "Conditioning":
        """The same on another device."""
        return self.map(lambda part: upload(part, device))

    def __getitem__(self, rows: slice | Tensor) -> "Conditioning":
        return self.map(lambda part: part[rows])

    def __len__(self) -> int:
        return len(self.tokens)

    def expand(self, count: int) -> "Conditioning":
        """One row made into `count` equal rows."""
        return self.map(lambda part: part.expand(count, *part.shape[1:]))

    @property
    def parts(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Tokens, pooled, time ids."""
        return self.tokens, self.pooled, self.time_ids

    @staticmethod
    def cat(items: list["Conditioning"]) -> "Conditioning":
        """Batches joined, one after the other."""
        columns = zip(*(item.parts for item in items), strict=True)
        return Conditioning(*(None if column[0] is None else torch.cat(column) for column in columns))  # type: ignore[arg-type]


@dataclass
class Passes:
    """What a network was asked so far, in pictures; recomputation in backward does not count.

    Args:
        whole: Evaluations, forward.
        half: Passes of its first half, for features.
    """

    whole: int = 0
    half: int = 0


class Backbone:
    """A diffusers UNet with its schedule; LoRA layers on it make the student, and switched off the teacher.

    Args:
        unet: `UNet2DConditionModel`; frozen here, set to evaluation mode.
        schedule: Its noise schedule.
    """

    def __init__(self, unet: nn.Module, schedule: NoiseSchedule) -> None:
        self.unet: Any = unet.requires_grad_(False).eval()
        self.schedule = schedule
        self.switch = Switch()
        self.passes = Passes()
        self.recorder: Recorder | None = Recorder(self.unet)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.unet.parameters()).device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        """Of the frozen weights."""
        return self.unet.conv_in.weight.dtype  # type: ignore[no-any-return]

    @contextmanager
    def role(self, role: str) -> Iterator[None]:
        """Inside, the network is the student (its LoRA on), the teacher (none on), or whoever else has a LoRA on it."""
        before, self.switch.role = self.switch.role, role
        try:
            yield
        finally:
            self.switch.role = before

    def enable_checkpointing(self, parts: Sequence[str] = BLOCKS) -> None:
        """Recompute activations in backward instead of keeping them, each in the role it was first computed in.

        Args:
            parts: Of the network, from `BLOCKS`; recomputing fewer saves time and costs memory.
        """

        def in_role(module: Callable[..., Any], *inputs: Any) -> Any:
            role = self.switch.role

            def again(*values: Any) -> Any:
                with self.role(role):
                    return module(*values)

            return checkpoint(again, *inputs, use_reentrant=False, preserve_rng_state=False)  # there is no dropout

        self.unet.enable_gradient_checkpointing(in_role)
        for name, module in self.unet.named_modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = name.split(".")[0] in parts
        self.reset_graphs()

    def configure_speedups(self, *, compiled: bool, channels_last: bool, recorded: bool) -> None:
        """Make the network's passes faster; the first two ways change their last bits.

        Args:
            compiled: Compile the transformer blocks, which all are the same but for their sizes, when they first run.
            channels_last: Keep the convolutions' weights in the layout that tensor cores take, and so the activations.
            recorded: Start passes that come again as CUDA graphs, as is done unless this is False.

        Raises:
            ConfigError: torch cannot compile on this machine.
        """
        if channels_last:
            self.unet.to(memory_format=torch.channels_last)
        if compiled:
            compile_blocks(self.unet)
        self.recorder = Recorder(self.unet) if recorded else None

    def reset_graphs(self) -> None:
        """Drop what was recorded: the network's layers, or where their weights are, have changed."""
        if self.recorder:
            self.recorder = Recorder(self.unet)

    def disable_graphs(self) -> bool:
        """Drop what was recorded and record nothing more; whether there was anything."""
        had_recordings = bool(self.recorder and self.recorder.has_recordings)
        self.recorder = None
        return had_recordings

    def predict_noise(self, z: Tensor, t: int | Tensor, cond: Conditioning) -> Tensor:
        """Predicted noise at `(z, t)` in the present role.

        Args:
            z: (B, C, H, W) latent, float32.
            t: Timestep, in [0, T), or (B,) of them on the CPU.
            cond: Conditioning of the B pictures.

        Returns:
            (B, C, H, W) float32, whatever the network's own dtype.
        """
        self.passes.whole += len(z)
        times = upload(t, z.device) if isinstance(t, Tensor) else torch.full((len(z),), t, device=z.device)
        [out] = self._run(self._whole, z, times, cond)
        return predicted_noise(out.float(), z, t, self.schedule)

    def features(self, z: Tensor, t: Tensor, cond: Conditioning, role: str = TEACHER) -> list[Tensor]:
        """What the network sees in latents: outputs of every down block and of the mid block, where there is one.

        Runs the first half of the network alone; as the teacher it is frozen, and gradients reach `z` alone.

        Args:
            z: (B, C, H, W) latents, float32.
            t: (B,) timesteps, on the device of `z`.
            cond: Conditioning of the B pictures.
            role: Of the network; the LoRA of another role than the teacher's gets gradients, too.

        Returns:
            (B, C_k, H_k, W_k) float32 tensors, finest first.
        """
        self.passes.half += len(z)
        with self.role(role):
            return list(self._run(self._half, z, t, cond))

    def _run(self, work: Pass, z: Tensor, t: Tensor, cond: Conditioning) -> Sequence[Tensor]:
        """A pass in the present role, of inputs in the network's dtype."""
        inputs = (z.to(self.dtype), t, *(part.to(self.dtype) for part in cond.parts if part is not None))
        if self.recorder is None:
            return work(*inputs)
        return self.recorder.run((work.__name__, self.switch.role), work, *inputs)

    def _whole(self, z: Tensor, t: Tensor, tokens: Tensor, *added: Tensor) -> Sequence[Tensor]:
        out: tuple[Tensor] = self.unet(z, t, tokens, added_cond_kwargs=_named(added), return_dict=False)
        return out

    def _half(self, z: Tensor, t: Tensor, tokens: Tensor, *added: Tensor) -> Sequence[Tensor]:
        unet, taps = self.unet, []
        embedding = unet.time_embedding(unet.get_time_embed(sample=z, timestep=t))
        more = unet.get_aug_embed(emb=embedding, encoder_hidden_states=tokens, added_cond_kwargs=_named(added))
        embedding = embedding if more is None else embedding + more
        hidden = unet.conv_in(z)
        for block in unet.down_blocks:
            hidden, _ = block(hidden_states=hidden, temb=embedding, **_text(block, tokens))
            taps.append(hidden.float())
        if unet.mid_block is not None:
            taps.append(unet.mid_block(hidden, embedding, **_text(unet.mid_block, tokens)).float())
        return taps

    @property
    def tap_channels(self) -> list[int]:
        """Channels of each tensor in `features`."""
        widths = list(self.unet.config.block_out_channels)
        return widths if self.unet.mid_block is None else [*widths, widths[-1]]


def _text(block: nn.Module, tokens: Tensor) -> dict[str, Tensor]:
    """What a block takes of the text; nothing where it does not look at it."""
    return {"encoder_hidden_states": tokens} if getattr(block, "has_cross_attention", False) else {}


def _named(added: Sequence[Tensor]) -> dict[str, Tensor] | None:
    """Pooled text and sizes as diffusers takes them; None for a network without."""
    return dict(zip(("text_embeds", "time_ids"), added, strict=True)) if added else None


def compile_blocks(unet: Any) -> None:
    """Compile the transformer blocks, each when it first runs; equal ones share their graphs.

    Every shape gets a graph of its own, so that what is computed does not depend on what was computed before.

    Args:
        unet: A diffusers network, on its device.

    Raises:
        ConfigError: torch cannot compile on this machine.
    """
    try:
        torch.compile(torch.neg)(torch.zeros(2, device=unet.device))
    except RuntimeError as error:
        reason = next(line for line in str(error).splitlines() if line.strip())
        raise ConfigError(
            f"--compile: torch cannot compile here: {reason[:200]}", "install a C++ compiler, or leave it out"
        ) from error
    torch._dynamo.config.recompile_limit = COMPILED_GRAPHS
    unet.compile_repeated_blocks(dynamic=False)
