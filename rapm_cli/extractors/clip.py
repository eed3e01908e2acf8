"""CLIP, which tells how well a picture fits its prompt, and whose embeddings CMMD compares."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rapm_cli.core.common.errors import InputError
from rapm_cli.extractors.extractor import EXTRACTORS, Extractor, Opening
from rapm_cli.extractors.preparation import cropped_and_scaled
from rapm_cli.extractors.transformer import REMEDY, Located, locate

USUAL = "openai/clip-vit-base-patch16"
FOR_CMMD = "openai/clip-vit-large-patch14-336"
TEXTS_AT_ONCE = 64
FEWEST_TOKENS = 512  # two for each byte


@dataclass(frozen=True)
class TextReader:
    """The text side of a CLIP.

    Args:
        model: The whole CLIP, on its device.
        tokenizer: Of transformers.
        prefix: Put before every prompt.
    """

    model: Any
    tokenizer: Any
    prefix: str = ""

    @torch.no_grad()
    def features(self, prompts: list[str]) -> Tensor:
        """(B, D) float32 embeddings on the CPU; what is too long is cut, and keeps its end token."""
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
        """Whether CLIP does not read the prompt to its end."""
        return len(self.tokenizer(self.prefix + prompt, verbose=False).input_ids) > self._longest

    @property
    def _longest(self) -> int:
        """Tokens that the network has places for."""
        return int(self.model.config.text_config.max_position_embeddings)


@EXTRACTORS.add("clip")
def open_clip(opening: Opening) -> Extractor:
    """Picture embeddings of the CLIP that the user names, or of ViT-B/16."""
    return open_pair(opening)[0]


@EXTRACTORS.add("clip-336")
def open_clip_336(opening: Opening) -> Extractor:
    """Picture embeddings of ViT-L/14 at 336 pixels."""
    located = locate(FOR_CMMD, opening.reporter)
    return _pictures(_load(located, opening.device), located, opening.device)


def open_pair(opening: Opening, prefix: str = "") -> tuple[Extractor, TextReader]:
    """Both sides of one CLIP.

    Raises:
        WeightsError: Its files are missing and cannot be had.
        InputError: They are not those of a CLIP.
    """
    from transformers import AutoTokenizer

    located = locate(opening.clip_model or USUAL, opening.reporter)
    model = _load(located, opening.device)
    tokenizer = AutoTokenizer.from_pretrained(str(located.folder), local_files_only=True)
    if len(tokenizer) < FEWEST_TOKENS:  # transformers makes up an empty one where there are no files
        raise InputError(f"{located.folder} lacks its tokenizer", REMEDY)
    return _pictures(model, located, opening.device), TextReader(model, tokenizer, prefix)


def _load(located: Located, device: torch.device) -> Any:
    from transformers import CLIPModel

    return located.load(CLIPModel).to(device)


def _pictures(model: Any, located: Located, device: torch.device) -> Extractor:
    said = located.settings()
    try:
        side, short = (_length(said[name]) for name in ("crop_size", "size"))
        mean, deviation = said["image_mean"], said["image_std"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{located.folder} does not say how its pictures are prepared: {error}", REMEDY) from error
    return Extractor(
        identity=f"{located.identity}, Pillow bicubic, short side to {short}, {side} cut out, float32",
        width=model.config.projection_dim,
        prepare=cropped_and_scaled(side, mean, deviation, resized_to=short),
        network=partial(_embedded, model),
        device=device,
    )


def _embedded(model: Any, pictures: Tensor) -> Tensor:
    embedded: Tensor = model.visual_projection(model.vision_model(pixel_values=pictures).pooler_output)
    return embedded


def _length(said: int | dict[str, int]) -> int:
    """Files of before transformers 4.26 say a number."""
    return said if isinstance(said, int) else said.get("shortest_edge") or said["height"]
