"""One network in memory, called in several roles: teacher, student, and the fake score of DMD2."""

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
from rapm_cli.core.network.lora_layers import FAKE_SCORE, STUDENT, TEACHER, Switch
from rapm_cli.core.network.schedule import NoiseSchedule

COMPILED_GRAPHS = 64  # of one block's code: one for each width, batch size and role, with and without gradients
BLOCKS = ("down_blocks", "mid_block", "up_blocks")


@dataclass(frozen=True)
class Conditioning:
    """The conditions of B images: their prompts' embeddings and, for SDXL, their sizes.

    Args:
        tokens: (B, L, D) text states for cross-attention.
        pooled: (B, P) pooled text state, or None for networks without one.
        time_ids: (B, 6) SDXL's original size, crop and target size, or None.
    """

    tokens: Tensor
    pooled: Tensor | None = None
    time_ids: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> "Conditioning":
        """Return a conditioning with `change` applied to every part that is not None."""
        return Conditioning(
            change(self.tokens),
            None if self.pooled is None else change(self.pooled),
            None if self.time_ids is None else change(self.time_ids),
        )

    def to(self, device: torch.device) -> "Conditioning":
        """Return a copy on another device."""
        return self.map(lambda part: upload(part, device))

    def __getitem__(self, rows: slice | Tensor) -> "Conditioning":
        return self.map(lambda part: part[rows])

    def __len__(self) -> int:
        return len(self.tokens)

    def expand(self, count: int) -> "Conditioning":
        """Repeat a single row `count` times."""
        return self.map(lambda part: part.expand(count, *part.shape[1:]))

    @property
    def parts(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The tokens, the pooled state and the time ids."""
        return self.tokens, self.pooled, self.time_ids

    @staticmethod
    def cat(items: list["Conditioning"]) -> "Conditioning":
        """Concatenate batches."""
        columns = zip(*(item.parts for item in items), strict=True)
        return Conditioning(*(None if column[0] is None else torch.cat(column) for column in columns))  # type: ignore[arg-type]


@dataclass
class Passes:
    """Counts of images that went forward through a network; recomputation in backward is not counted.

    Args:
        whole: Images through the whole network.
        half: Images through the first half, for features.
    """

    whole: int = 0
    half: int = 0


@dataclass(frozen=True)
class Denoiser:
    """A network in one role, as a function: `denoiser(z, t, cond)` predicts the noise in `z`, or its velocity.

    Each call sets the role itself. So a teacher is the teacher whether or not a LoRA is attached, and calls of
    different roles may alternate in any order.

    Args:
        backbone: The network, which all roles share.
        role: `TEACHER` (no LoRA is on), `STUDENT` or `FAKE_SCORE` (the LoRA of that role is on, if it is attached).
    """

    backbone: "Backbone"
    role: str

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule of the network."""
        return self.backbone.schedule

    def __call__(self, z: Tensor, t: int | Tensor, cond: Conditioning) -> Tensor:
        """Return the network's prediction; `schedule` has the functions that make noise or a clean latent of it.

        Args:
            z: (B, C, H, W) latents at `t`, float32.
            t: Timestep in [0, T), or (B,) timesteps on the CPU.
            cond: Conditioning of the B images.

        Returns:
            (B, C, H, W) float32, whatever the network's own dtype.
        """
        return self.backbone.predict(self.role, z, t, cond)

    def features(self, z: Tensor, t: Tensor, cond: Conditioning) -> list[Tensor]:
        """Return the outputs of every down block and of the mid block, if the network has one.

        Only the first half of the network runs. The teacher's features are frozen: gradients reach `z` alone. In
        another role, the LoRA of that role gets gradients too.

        Args:
            z: (B, C, H, W) latents, float32.
            t: (B,) timesteps, on the device of `z`.
            cond: Conditioning of the B images.

        Returns:
            (B, C_k, H_k, W_k) float32 tensors, finest first.
        """
        return self.backbone.features(self.role, z, t, cond)


class Backbone:
    """A frozen diffusers UNet with its schedule, shared by `teacher`, `student` and `fake_score`.

    Args:
        unet: `UNet2DConditionModel`; it is frozen here and set to evaluation mode.
        schedule: The noise schedule of the network.

    Attributes:
        is_rounded: True once its weights are rounded to 8 bits, which changes the teacher for good.
        passes: Counts of the images that went through the network.
    """

    def __init__(self, unet: nn.Module, schedule: NoiseSchedule) -> None:
        self.unet: Any = unet.requires_grad_(False).eval()
        self.schedule = schedule
        self.is_rounded = False
        self.passes = Passes()
        self.switch = Switch()
        self.recorder: Recorder | None = Recorder(self.unet)

    @property
    def teacher(self) -> Denoiser:
        """The network without any LoRA."""
        return Denoiser(self, TEACHER)

    @property
    def student(self) -> Denoiser:
        """The network with the student's LoRA; before one is attached, and when it is fused, the network itself."""
        return Denoiser(self, STUDENT)

    @property
    def fake_score(self) -> Denoiser:
        """The network with DMD2's second LoRA, which learns the score of the student's samples."""
        return Denoiser(self, FAKE_SCORE)

    @property
    def device(self) -> torch.device:
        """The device that holds the weights."""
        return next(self.unet.parameters()).device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the frozen weights."""
        return self.unet.conv_in.weight.dtype  # type: ignore[no-any-return]

    @contextmanager
    def _in_role(self, role: str) -> Iterator[None]:
        before, self.switch.role = self.switch.role, role
        try:
            yield
        finally:
            self.switch.role = before

    def enable_checkpointing(self, parts: Sequence[str] = BLOCKS) -> None:
        """Recompute activations in backward instead of keeping them, each in the role of its first pass.

        Args:
            parts: Parts of the network to recompute, from `BLOCKS`; fewer parts save time and cost memory.
        """

        def in_role(module: Callable[..., Any], *inputs: Any) -> Any:
            role = self.switch.role

            def again(*values: Any) -> Any:
                with self._in_role(role):
                    return module(*values)

            return checkpoint(again, *inputs, use_reentrant=False, preserve_rng_state=False)  # there is no dropout

        self.unet.enable_gradient_checkpointing(in_role)
        for name, module in self.unet.named_modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = name.split(".")[0] in parts
        self.reset_graphs()

    def configure_speedups(self, *, compiled: bool, channels_last: bool, recorded: bool) -> None:
        """Choose how the network's passes are made faster.

        Compilation and the channels-last layout change the last bits of the results. CUDA graphs change none.

        Args:
            compiled: Compile the transformer blocks when they first run.
            channels_last: Store the convolutions' weights in channels-last layout, which tensor cores prefer.
            recorded: Record repeated passes as CUDA graphs. This is the default of a new backbone.

        Raises:
            ConfigError: torch cannot compile on this machine.
        """
        if channels_last:
            self.unet.to(memory_format=torch.channels_last)
        if compiled:
            compile_blocks(self.unet)
        self.recorder = Recorder(self.unet) if recorded else None

    def reset_graphs(self) -> None:
        """Drop all recorded CUDA graphs, because the network's layers or the places of its weights have changed."""
        if self.recorder:
            self.recorder = Recorder(self.unet)

    def disable_graphs(self) -> bool:
        """Drop all recorded CUDA graphs and record no more; return True if there were any."""
        had_recordings = bool(self.recorder and self.recorder.has_recordings)
        self.recorder = None
        return had_recordings

    def predict(self, role: str, z: Tensor, t: int | Tensor, cond: Conditioning) -> Tensor:
        """Return the prediction in a role; see `Denoiser.__call__`."""
        self.passes.whole += len(z)
        times = upload(t, z.device) if isinstance(t, Tensor) else torch.full((len(z),), t, device=z.device)
        [out] = self._run(role, self._whole, z, times, cond)
        return out.float()

    def features(self, role: str, z: Tensor, t: Tensor, cond: Conditioning) -> list[Tensor]:
        """Compute features in a role; see `Denoiser.features`."""
        self.passes.half += len(z)
        return list(self._run(role, self._half, z, t, cond))

    def _run(self, role: str, work: Pass, z: Tensor, t: Tensor, cond: Conditioning) -> Sequence[Tensor]:
        """Run a pass in a role, on inputs cast to the network's dtype."""
        inputs = (z.to(self.dtype), t, *(part.to(self.dtype) for part in cond.parts if part is not None))
        with self._in_role(role):
            if self.recorder is None:
                return work(*inputs)
            return self.recorder.run((work.__name__, role), work, *inputs)

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
        """Number of channels of each tensor that `features` returns."""
        widths = list(self.unet.config.block_out_channels)
        return widths if self.unet.mid_block is None else [*widths, widths[-1]]


def _text(block: nn.Module, tokens: Tensor) -> dict[str, Tensor]:
    """Return the text arguments of a block; none for a block without cross-attention."""
    return {"encoder_hidden_states": tokens} if getattr(block, "has_cross_attention", False) else {}


def _named(added: Sequence[Tensor]) -> dict[str, Tensor] | None:
    """Name the pooled text and the sizes as diffusers does; None for a network without them."""
    return dict(zip(("text_embeds", "time_ids"), added, strict=True)) if added else None


def compile_blocks(unet: Any) -> None:
    """Compile the transformer blocks, each when it first runs; equal blocks share their graphs.

    Every shape gets its own graph, so that results do not depend on the shapes that came before.

    Args:
        unet: A diffusers network, already on its device.

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
