"""One diffusion network: its noise schedule, its LoRA, and what makes it fast and small."""
