"""LoRA and checkpoint files that other programs read."""
