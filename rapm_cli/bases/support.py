"""Judge from a base's configurations, without torch and before its weights are fetched, whether rapm can distil it."""

from dataclasses import dataclass
from typing import Any

from rapm_cli.bases.weights import Weights, read_json
from rapm_cli.core.common.errors import InputError
from rapm_cli.core.method.sizes import Size

EPSILON, V_PREDICTION = "epsilon", "v_prediction"
STEPS = 1000  # length of the noise schedules that rapm supports
SD2_TEXT_WIDTH = 1024  # Stable Diffusion 2 uses the pipeline class of 1.5
# Inputs of a UNet beside latent, time, text and SDXL's image size; and statistics by which a VAE scales its latents.
MORE_INPUTS = ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "time_cond_proj_dim")
LATENT_STATISTICS = ("latents_mean", "latents_std", "shift_factor")
GIVE_TEXT_TO_IMAGE = "give a text-to-image model"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The folder of a model family.

    Args:
        pipeline: Class of the pipeline in diffusers, as model_index.json names it.
        encoders: Text encoders by part name, each with its class in transformers.
        has_time_ids: Whether the UNet takes the image size as an input.
    """

    pipeline: str
    encoders: dict[str, str]
    has_time_ids: bool

    @property
    def parts(self) -> dict[str, list[str]]:
        """Library and class of each part that has weights, as model_index.json names them."""
        text = {name: ["transformers", kind] for name, kind in self.encoders.items()}
        return {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"], **text}


LAYOUTS = {
    "sdxl": Layout(
        pipeline="StableDiffusionXLPipeline",
        encoders={"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"},
        has_time_ids=True,
    ),
    "sd15": Layout(pipeline="StableDiffusionPipeline", encoders={"text_encoder": "CLIPTextModel"}, has_time_ids=False),
}


@dataclass(frozen=True)
class Judged:
    """What the configurations of a supported base say.

    Args:
        family: Name in `LAYOUTS`.
        beta_start: First beta of the noise schedule.
        beta_end: Last beta.
        prediction_type: "epsilon" or "v_prediction".
        has_zero_snr: Whether the schedule is rescaled so that no signal is left at its last timestep.
        latent_shape: Shape (C, h, w) of a latent.
        size: Width and height of the images in pixels.
        scaling_factor: Scale of the UNet's latents over the autoencoder's.
    """

    family: str
    beta_start: float
    beta_end: float
    prediction_type: str
    has_zero_snr: bool
    latent_shape: tuple[int, int, int]
    size: Size
    scaling_factor: float


def judge(weights: Weights) -> Judged:
    """Return what the configurations of a base say, if rapm can distil it.

    Args:
        weights: Files of the base, of which only configurations are read.

    Raises:
        InputError: rapm does not support the base.
    """
    family = _family(weights)
    schedule = _schedule(weights)
    _check_inputs(weights, LAYOUTS[family])
    return Judged(family, *schedule, *_latents(weights))


def _family(weights: Weights) -> str:
    path = weights.folder / "model_index.json"
    index = read_json(path)
    name = index.get("_class_name")
    family = next((family for family, layout in LAYOUTS.items() if layout.pipeline == name), None)
    if family is None:
        known = " or ".join(layout.pipeline for layout in LAYOUTS.values())
        raise InputError(f"{path} names a {name}, which rapm cannot distil", f"give a {known}")
    for part, kind in LAYOUTS[family].parts.items():
        if index.get(part) != kind:
            raise InputError(
                f"{path} names {index.get(part)} as its {part}", f"give a {name} whose {part} is {kind[1]}"
            )
    if not LAYOUTS[family].has_time_ids and weights.config("unet").get("cross_attention_dim") == SD2_TEXT_WIDTH:
        raise InputError(
            f"{weights.folder} is a Stable Diffusion 2, which rapm does not know",
            "give an SDXL or a Stable Diffusion 1.5",
        )
    return family


def _schedule(weights: Weights) -> tuple[float, float, str, bool]:
    """Return the first and last beta, the prediction type, and whether the schedule goes down to zero signal."""
    config = weights.config("scheduler", "scheduler_config.json")
    predicts = weights.prediction_type or config.get("prediction_type", EPSILON)
    is_known = config.get("beta_schedule") == "scaled_linear" and predicts in (EPSILON, V_PREDICTION)
    is_known = is_known and all(type(config.get(name)) is float for name in ("beta_start", "beta_end"))
    has_zero_snr = weights.has_zero_snr or bool(config.get("rescale_betas_zero_snr"))
    if not is_known or (has_zero_snr and predicts == EPSILON) or config.get("trained_betas") is not None:
        about = f"{config.get('beta_schedule')}, {predicts}" + (", rescaled to zero signal" if has_zero_snr else "")
        raise InputError(
            f"{weights.origin} has a noise schedule that rapm does not know: {about}",
            "give a base with scaled_linear betas that predicts epsilon or v_prediction; down to zero signal, "
            "v_prediction alone",
        )
    if (length := config.get("num_train_timesteps", STEPS)) != STEPS:
        raise InputError(f"{weights.origin} has a noise schedule of {length} steps", f"give a base with {STEPS}")
    return config["beta_start"], config["beta_end"], predicts, has_zero_snr


def _check_inputs(weights: Weights, layout: Layout) -> None:
    """Refuse a UNet that takes more inputs than rapm gives it, and a VAE that scales latents in another way."""
    unet, vae = weights.config("unet"), weights.config("vae")
    wanted = "text_time" if layout.has_time_ids else None
    more = {name: unet[name] for name in MORE_INPUTS if unet.get(name) is not None}
    if unet.get("addition_embed_type") != wanted:
        more["addition_embed_type"] = unet.get("addition_embed_type")
    for name, value in more.items():
        raise InputError(f"{weights.origin} has a UNet with other inputs: {name} is {value}", GIVE_TEXT_TO_IMAGE)
    for name in LATENT_STATISTICS:
        if vae.get(name) is not None:
            raise InputError(f"{weights.origin} has latents that rapm does not know: {name} of its VAE", "give another")


def _latents(weights: Weights) -> tuple[tuple[int, int, int], Size, float]:
    """Return the shape of a latent, the size of an image in pixels, and the scale of latents."""
    unet: dict[str, Any] = weights.config("unet")
    vae: dict[str, Any] = weights.config("vae")
    sides = sample_sides(unet)
    if sides is None:
        raise InputError(
            f"{weights.origin} has a UNet whose sample_size is {unet.get('sample_size')}", "write one number, or two"
        )
    height, width = sides
    channels, made = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if channels != made:
        raise InputError(
            f"{weights.origin} takes {channels} channels and its autoencoder makes {made}: it is for inpainting or "
            "editing",
            GIVE_TEXT_TO_IMAGE,
        )
    scale = 2 ** (len(vae.get("block_out_channels", (64,))) - 1)
    return (channels, height, width), (width * scale, height * scale), vae.get("scaling_factor", 0.18215)


def sample_sides(unet: dict[str, Any]) -> tuple[int, int] | None:
    """Return height and width of the latents that a UNet's configuration names; None where it names none."""
    side = unet.get("sample_size")
    sides = side if isinstance(side, list | tuple) else (side, side)
    if len(sides) != 2 or any(type(each) is not int or each < 1 for each in sides):
        return None
    return sides[0], sides[1]
