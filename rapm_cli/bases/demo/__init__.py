"""The demo base: a small rendered world, and a small SDXL that generates images of it."""
