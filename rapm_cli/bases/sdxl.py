"""Loading a Stable Diffusion XL, of any size, from a diffusers folder or the Hugging Face cache."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rapm_cli.bases.base import BASES, Base, Defaults, LoadedBase
from rapm_cli.core.backbone import Backbone, Conditioning
from rapm_cli.core.errors import InputError, WeightsError
from rapm_cli.core.schedule import NoiseSchedule

SDXL_ID = "stabilityai/stable-diffusion-xl-base-1.0"
SDXL_DEFAULTS = Defaults(
    guidance_scale=7.5,
    fine_steps=10,
    trajectories=1000,
    rank=1,
    iterations=20_000,
    batch_size=1,
    learning_rate=5e-5,
    discriminator_learning_rate=1e-5,
    warmup=100,
    save_every=200,
    rollout_batch=4,
    picture_batch=1,
)


def load_sdxl(source: Path | str, device: torch.device, dtype: torch.dtype) -> LoadedBase:
    """Load every part once; the parts share nothing with a pipeline of diffusers but their weights.

    Args:
        source: Folder in diffusers layout, or a hub id that is looked for in the Hugging Face cache first.
        device: Where to put the parts.
        dtype: Of the UNet and the text encoders; the VAE is kept in float32, in which SDXL's own does not overflow.

    Raises:
        WeightsError: The hub's files are neither cached nor to be had.
        InputError: The folder is not an SDXL in diffusers layout.
    """
    pipeline = _pipeline(source, dtype)
    if pipeline.text_encoder is None or pipeline.text_encoder_2 is None:
        raise InputError(f"{source} lacks a text encoder of Stable Diffusion XL", "give the folder of a whole SDXL")
    schedule = _schedule(source, pipeline.scheduler.config)
    pipeline.unet.to(device)
    pipeline.text_encoder.to(device)
    pipeline.text_encoder_2.to(device)
    vae = pipeline.vae.to(device, torch.float32).eval()
    side = pipeline.unet.config.sample_size
    side_px = side * pipeline.vae_scale_factor
    time_ids = torch.tensor([[side_px, side_px, 0, 0, side_px, side_px]], device=device, dtype=torch.float32)

    @torch.no_grad()
    def encode(prompts: list[str]) -> Conditioning:
        tokens, _, pooled, _ = pipeline.encode_prompt(prompts, device=device, do_classifier_free_guidance=False)
        return Conditioning(tokens.float(), pooled.float(), time_ids.expand(len(prompts), 6))

    @torch.no_grad()
    def unconditional() -> Conditioning:
        _, tokens, _, pooled = pipeline.encode_prompt("", device=device, do_classifier_free_guidance=True)
        return Conditioning(tokens.float(), pooled.float(), time_ids)

    def unread(prompt: str) -> str:
        tokenizer = pipeline.tokenizer
        tokens = tokenizer(prompt, truncation=False, verbose=False).input_ids
        return str(tokenizer.decode(tokens[tokenizer.model_max_length - 1 : -1]))

    @torch.no_grad()
    def decode(z: Tensor) -> Tensor:
        picture = vae.decode(z.float() / vae.config.scaling_factor, return_dict=False)[0]
        return (picture / 2 + 0.5).clamp(0, 1).cpu()  # type: ignore[no-any-return]

    return LoadedBase(
        backbone=Backbone(pipeline.unet, schedule),
        encode=encode,
        unconditional=unconditional(),
        decode=decode,
        latent_shape=(pipeline.unet.config.in_channels, side, side),
        unread=unread,
    )


def _schedule(source: Path | str, config: Any) -> NoiseSchedule:
    is_known = config.beta_schedule == "scaled_linear" and config.prediction_type in ("epsilon", "v_prediction")
    if not is_known or config.get("trained_betas") is not None or config.get("rescale_betas_zero_snr"):
        raise InputError(
            f"{source} has a noise schedule that rapm does not know: {config.beta_schedule}, {config.prediction_type}",
            "give a base with scaled_linear betas, not rescaled, that predicts epsilon or v_prediction",
        )
    return NoiseSchedule.scaled_linear(
        config.beta_start, config.beta_end, config.num_train_timesteps, config.prediction_type
    )


def _pipeline(source: Path | str, dtype: torch.dtype) -> Any:
    import diffusers
    import transformers
    from safetensors import SafetensorError

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    try:
        return diffusers.StableDiffusionXLPipeline.from_pretrained(
            str(source), dtype=dtype, use_safetensors=True, add_watermarker=False
        )
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        if isinstance(source, Path):
            raise InputError(
                f"{source} is not a Stable Diffusion XL in diffusers layout: {_first_line(error)}",
                "give a folder with model_index.json and safetensors weights",
            ) from error
        raise WeightsError(
            f"{source} is not in the Hugging Face cache and cannot be fetched: {_first_line(error)}",
            f"on a machine with a network run: hf download {source}; or try --base demo, which needs no download",
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200].rstrip(".") if str(error).strip() else type(error).__name__


def folder_base(folder: Path) -> Base:
    """A base for any SDXL in diffusers layout."""
    return Base(
        name=folder.resolve().name,
        source=str(folder.resolve()),
        defaults=SDXL_DEFAULTS,
        load=lambda device, dtype: load_sdxl(folder, device, dtype),
        locate=lambda: folder,
    )


BASES.add("sdxl")(
    Base(
        name="sdxl",
        source="sdxl",
        defaults=SDXL_DEFAULTS,
        load=lambda device, dtype: load_sdxl(SDXL_ID, device, dtype),
        locate=lambda: SDXL_ID,
    )
)
