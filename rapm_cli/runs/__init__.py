"""What the commands share: runs, LoRAs, prompts, images, locks and signals."""
