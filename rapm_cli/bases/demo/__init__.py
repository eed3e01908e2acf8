"""The embedded base: a small world, and a small SDXL that draws it."""
