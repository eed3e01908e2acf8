"""Networks from images and texts to the features that metrics compare."""

from rapm_cli.extractors import clip, demo, dino, filters, inception  # each adds itself to the registry
from rapm_cli.extractors.extractor import EXTRACTORS, Extractor, Opening

__all__ = ["EXTRACTORS", "Extractor", "Opening", "clip", "demo", "dino", "filters", "inception"]
