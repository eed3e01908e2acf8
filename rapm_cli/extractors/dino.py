"""DINOv2, whose features see shapes where Inception sees textures."""

from typing import Any

from torch import Tensor

from rapm_cli.extractors.extractor import EXTRACTORS, Extractor, Opening
from rapm_cli.extractors.preparation import cropped_and_scaled
from rapm_cli.extractors.transformer import locate

SOURCE = "facebook/dinov2-large"
SIDE_PX = 224
MEAN, DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of ImageNet


@EXTRACTORS.add("dinov2")
def open_dino(opening: Opening) -> Extractor:
    """The class token's 1024 features of ViT-L/14, of pictures of 224 pixels.

    Source: FD-DINOv2, arXiv:2306.04675; its pictures are resized by Pillow's bicubic.
    """
    from transformers import Dinov2Model

    located = locate(SOURCE, opening.reporter)
    model: Any = located.load(Dinov2Model).to(opening.device)

    def network(pictures: Tensor) -> Tensor:
        features: Tensor = model(pixel_values=pictures).pooler_output
        return features

    return Extractor(
        identity=f"{located.identity}, Pillow bicubic, short side to {SIDE_PX}, the middle cut out, float32",
        width=model.config.hidden_size,
        prepare=cropped_and_scaled(SIDE_PX, MEAN, DEVIATION),
        network=network,
        device=opening.device,
    )
