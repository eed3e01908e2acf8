def photographic_prompts(count: int, seed: int) -> list[str]:
    raise NotImplementedError
