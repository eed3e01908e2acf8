"""DINOv2: image features for FD-DINOv2. They depend more on shapes, those of Inception more on textures."""

from typing import Any

from torch import Tensor

from rapm_cli.extractors.extractor import EXTRACTORS, Extractor, Opening
from rapm_cli.extractors.preparation import cropped_and_scaled
from rapm_cli.extractors.transformer import locate

SOURCE = "facebook/dinov2-large"
SIDE_PX = 224
MEAN, DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of ImageNet, for each channel


@EXTRACTORS.add("dinov2")
def open_dino(opening: Opening) -> Extractor:
    """Open DINOv2 ViT-L/14: the 1024 features of the class token, for images of 224 pixels.

    Source: FD-DINOv2, arXiv:2306.04675, which resizes images by Pillow's bicubic too.
    """
    from transformers import Dinov2Model

    located = locate(SOURCE, opening.reporter)
    model: Any = located.load(Dinov2Model).to(opening.device)

    def network(images: Tensor) -> Tensor:
        features: Tensor = model(pixel_values=images).pooler_output
        return features

    return Extractor(
        identity=f"{located.identity}, Pillow bicubic, short side to {SIDE_PX}, the middle cut out, float32",
        width=model.config.hidden_size,
        prepare=cropped_and_scaled(SIDE_PX, MEAN, DEVIATION),
        network=network,
        device=opening.device,
    )
