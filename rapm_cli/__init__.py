"""rapm: distil a diffusion model into a few-step one, on one graphics card, without real images."""

__version__ = "0.1.0"
