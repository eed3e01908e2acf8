"""File formats of LoRAs and checkpoints that other programs read and write."""
