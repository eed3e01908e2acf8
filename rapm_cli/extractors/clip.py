"""CLIP: image and text embeddings for the CLIP score and CMMD."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rapm_cli.bases.parts import FEWEST_TOKENS
from rapm_cli.core.common.errors import InputError
from rapm_cli.extractors.extractor import EXTRACTORS, Extractor, Opening
from rapm_cli.extractors.preparation import cropped_and_scaled
from rapm_cli.extractors.transformer import REMEDY, Located, locate

USUAL = "openai/clip-vit-base-patch16"
FOR_CMMD = "openai/clip-vit-large-patch14-336"
TEXTS_AT_ONCE = 64


@dataclass(frozen=True)
class TextReader:
    """Text encoder of a CLIP model.

    Args:
        model: CLIP model from transformers, on its device.
        tokenizer: Tokenizer from transformers.
        prefix: Text before every prompt.
    """

    model: Any
    tokenizer: Any
    prefix: str = ""

    @torch.no_grad()
    def features(self, prompts: list[str]) -> Tensor:
        """Return embeddings of prompts. A prompt that is too long is cut, and keeps its end token.

        Args:
            prompts: B prompts.

        Returns:
            (B, D) float32 embeddings on the CPU, not normalised.
        """
        parts = []
        for start in range(0, len(prompts), TEXTS_AT_ONCE):
            texts = [self.prefix + prompt for prompt in prompts[start : start + TEXTS_AT_ONCE]]
            tokens = self.tokenizer(
                texts, padding=True, truncation=True, max_length=self._longest, return_tensors="pt"
            ).to(self.model.device)
            hidden = self.model.text_model(**tokens).pooler_output
            parts.append(self.model.text_projection(hidden).float().cpu())
        return torch.cat(parts)

    def is_cut(self, prompt: str) -> bool:
        """Return True if the prompt is too long for CLIP, which then reads only its beginning."""
        return len(self.tokenizer(self.prefix + prompt, verbose=False).input_ids) > self._longest

    @property
    def _longest(self) -> int:
        """Largest number of tokens that the network takes."""
        return int(self.model.config.text_config.max_position_embeddings)


@EXTRACTORS.add("clip")
def open_clip(opening: Opening) -> Extractor:
    """Open the image encoder of the CLIP model that the user names, or of ViT-B/16."""
    return open_pair(opening)[0]


@EXTRACTORS.add("clip-336")
def open_clip_336(opening: Opening) -> Extractor:
    """Open the image encoder of CLIP ViT-L/14 at 336 pixels."""
    located = locate(FOR_CMMD, opening.reporter)
    return _images(_load(located, opening.device), located, opening.device)


def open_pair(opening: Opening, prefix: str = "") -> tuple[Extractor, TextReader]:
    """Open the image encoder and the text encoder of one CLIP model.

    Args:
        opening: Device, reporter and CLIP model.
        prefix: Text before every prompt.

    Returns:
        Extractor of image embeddings, and reader of prompts; both give (B, D) with the same D.

    Raises:
        WeightsError: Files are missing and cannot be downloaded.
        InputError: The files are not those of a CLIP model.
    """
    from transformers import AutoTokenizer

    located = locate(opening.clip_model or USUAL, opening.reporter)
    model = _load(located, opening.device)
    tokenizer = AutoTokenizer.from_pretrained(str(located.folder), local_files_only=True)
    if len(tokenizer) < FEWEST_TOKENS:  # without files transformers makes an empty one
        raise InputError(f"{located.folder} lacks its tokenizer", REMEDY)
    return _images(model, located, opening.device), TextReader(model, tokenizer, prefix)


def _load(located: Located, device: torch.device) -> Any:
    from transformers import CLIPModel

    return located.load(CLIPModel).to(device)


def _images(model: Any, located: Located, device: torch.device) -> Extractor:
    settings = located.settings()
    try:
        side, short = (_length(settings[name]) for name in ("crop_size", "size"))
        mean, deviation = settings["image_mean"], settings["image_std"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{located.folder} has no image preprocessing settings: {error}", REMEDY) from error
    return Extractor(
        identity=f"{located.identity}, Pillow bicubic, short side to {short}, {side} cut out, float32",
        width=model.config.projection_dim,
        prepare=cropped_and_scaled(side, mean, deviation, resized_to=short),
        network=partial(_embedded, model),
        device=device,
    )


def _embedded(model: Any, images: Tensor) -> Tensor:
    embedded: Tensor = model.visual_projection(model.vision_model(pixel_values=images).pooler_output)
    return embedded


def _length(size: int | dict[str, int]) -> int:
    """Return a length in pixels; files from before transformers 4.26 have a number instead of a table."""
    return size if isinstance(size, int) else size.get("shortest_edge") or size["height"]
