"""ComfyUI's sampler and timesteps, reimplemented here from its source, sample a student's image."""

from itertools import pairwise

import diffusers
import numpy as np
import pytest
import torch

from rapm_cli.bases.demo.base import STUDENT, WEIGHTS
from rapm_cli.core.network.schedule import DDIM_SETTINGS
from rapm_cli.export.sidecars import comfyui_workflow

PROMPTS = (
    "a large red cube left of a small blue sphere at dawn",
    "a small yellow cone above a large white ring at dusk",
)


class DiscreteSampling:
    """ComfyUI's `ModelSamplingDiscrete`, with the scheduler that our workflow names.

    Noise levels between two timesteps are interpolated in their logarithm; the network gets the nearest timestep.
    """

    def __init__(self, alphas_cumprod):
        self.logs = ((1 - alphas_cumprod) / alphas_cumprod).double().sqrt().log().numpy()

    def timestep(self, sigma):
        return int(np.abs(np.log(sigma) - self.logs).argmin())

    def sigmas(self, scheduler, steps):
        assert scheduler == "sgm_uniform"
        start, end = (self.timestep(np.exp(log)) for log in (self.logs[-1], self.logs[0]))
        times = np.linspace(start, end, steps + 1)[:-1]
        return [*np.exp(np.interp(times, np.arange(len(self.logs)), self.logs)), 0.0]


@pytest.fixture(scope="module")
def pipe():
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(WEIGHTS / "base", dtype=torch.float32)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, **DDIM_SETTINGS)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(str(WEIGHTS), weight_name=STUDENT)
    return pipe


@torch.no_grad()
def sample_as_comfyui(pipe, prompt, noise, settings):
    """ComfyUI's `ddim`, which is Euler's method on the noise levels, from full noise."""
    assert (settings["sampler_name"], settings["cfg"], settings["denoise"]) == ("ddim", 1.0, 1.0)
    sampling = DiscreteSampling(pipe.scheduler.alphas_cumprod)
    sigmas = sampling.sigmas(settings["scheduler"], settings["steps"])
    embeds, _, pooled, _ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
    side = noise.shape[-1] * pipe.vae_scale_factor
    added = {"text_embeds": pooled, "time_ids": torch.tensor([[side, side, 0, 0, side, side]]).float()}
    x = noise.double() * (1 + sigmas[0] ** 2) ** 0.5
    for sigma, lower in pairwise(sigmas):
        z, t = (x / (1 + sigma**2) ** 0.5).float(), sampling.timestep(sigma)
        eps = pipe.unet(z, t, encoder_hidden_states=embeds, added_cond_kwargs=added).sample
        x = x + eps.double() * (lower - sigma)
    return (127.5 * (pipe.vae.decode(x.float() / pipe.vae.config.scaling_factor).sample + 1)).clamp(0, 255)


@pytest.mark.slow
@pytest.mark.parametrize("prompt", PROMPTS)
def test_comfyui_samples_the_students_image(pipe, prompt):
    """ComfyUI ends at noise level 0, training ends at timestep 0: nearly all of the difference comes from that."""
    recipe = {"sampler": {"scheduler": "DDIM", "steps": 4}}
    settings = comfyui_workflow(recipe, checkpoint="base", lora=STUDENT, size=(64, 64), prompt=prompt)["6"]["inputs"]
    noise = torch.randn(1, 4, *[pipe.unet.config.sample_size] * 2, generator=torch.Generator().manual_seed(7))
    theirs = sample_as_comfyui(pipe, prompt, noise, settings)
    call = {"prompt": prompt, "num_inference_steps": 4, "guidance_scale": 1.0, "latents": noise, "output_type": "pt"}
    ours = 255 * pipe(**call).images
    trailing_config = pipe.scheduler.config
    pipe.scheduler = diffusers.DDIMScheduler.from_config(trailing_config, timestep_spacing="leading")
    at_other_times = 255 * pipe(**call).images
    pipe.scheduler = diffusers.DDIMScheduler.from_config(trailing_config)
    assert (theirs - ours).abs().mean() < 2
    assert (at_other_times - ours).abs().mean() > 1.5 * (theirs - ours).abs().mean()
