"""The `eval` command: models on the same prompts and noise, in numbers with intervals."""
