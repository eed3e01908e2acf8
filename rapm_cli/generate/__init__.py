"""The `rapm generate` command: images from prompts."""
