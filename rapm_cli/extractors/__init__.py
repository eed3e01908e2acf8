"""Pictures and texts to features: the networks that metrics look through."""

from rapm_cli.extractors import clip, dino, inception  # each adds itself to the registry
from rapm_cli.extractors.extractor import EXTRACTORS, Extractor, Opening

__all__ = ["EXTRACTORS", "Extractor", "Opening", "clip", "dino", "inception"]
