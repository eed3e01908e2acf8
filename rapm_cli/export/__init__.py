"""The `rapm export` command: LoRAs and fused models for other programs."""
