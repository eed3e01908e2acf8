"""Named ways to evaluate: which prompts, how many, against which pictures, and how every picture is prepared."""

from dataclasses import dataclass, replace

from rapm_cli.core.common.registry import Registry
from rapm_cli.extractors.clip import USUAL
from rapm_cli.extractors.preparation import Preparation

AS_THEY_ARE = Preparation()


@dataclass(frozen=True)
class Protocol:
    """How an evaluation is made; two figures with the same one can be compared.

    Args:
        name: Of the protocol; empty for the user's own.
        samples: Prompts.
        preparation: Of real and drawn pictures.
        rounding: Of drawn values to bytes: "nearest", or "down" as by truncation.
        has_coco_pairs: Whether prompts and reference are COCO's captions with their images.
        captions_sha256: Of the file of prompts that belongs to it; empty for none.
        clip_preparation: Of the pictures that CLIP sees, after the other.
        clip_model: Of the CLIP score.
        clip_prefix: Put before every prompt in it.
    """

    name: str = ""
    samples: int = 1000
    preparation: Preparation = AS_THEY_ARE
    rounding: str = "nearest"
    has_coco_pairs: bool = False
    captions_sha256: str = ""
    clip_preparation: Preparation = AS_THEY_ARE
    clip_model: str = USUAL
    clip_prefix: str = ""

    @property
    def words(self) -> dict[str, str]:
        """What it says, for the record."""
        return {
            "protocol": self.name or "own",
            "preparation": self.preparation.spec,
            "rounding": self.rounding,
            "clip_preparation": self.clip_preparation.spec,
            "clip_prefix": self.clip_prefix,
        }


PROTOCOLS: Registry[Protocol] = Registry("protocol")
PROTOCOLS.add("coco30k")(Protocol("coco30k", 30_000, Preparation(256, "bicubic"), has_coco_pairs=True))

# DMD2's evaluator: its list of captions, every image of val2014 (of its own coco10k folder for SDXL), Lanczos, bytes by
# truncation, and a CLIP of its own, which sees 256 pixels whatever FID does: here they are made of the 512 that are
# kept, there of the drawn ones. Its noise is a function of the batch, ours of the prompt.
DMD2 = Protocol(
    "dmd2-coco30k",
    30_000,
    Preparation(256, "lanczos", has_even_margins=True),
    rounding="down",
    captions_sha256="edabd2a556026cbf5d36a5fffa35ad43d7ba71b72f6d640b727c1edefb7f1945",
    clip_model="laion/CLIP-ViT-g-14-laion2B-s12B-b42K",
    clip_prefix="A photo depicts ",
)
PROTOCOLS.add("dmd2-coco30k")(DMD2)
PROTOCOLS.add("dmd2-coco10k")(
    replace(
        DMD2,
        name="dmd2-coco10k",
        samples=10_000,
        preparation=Preparation(512, "lanczos", has_even_margins=True),
        clip_preparation=DMD2.preparation,
    )
)
