"""Tell which layers of a LoRA ComfyUI finds. It ignores the others and says so in its log alone.

Source: the table of names and the endings of ComfyUI 0.3.64, commit a125cd84 of 2025-10-11, for SDXL and SD 1.5.
"""

import re
from collections.abc import Collection

BLOCKS = r"(?:down_blocks|mid_block|up_blocks|conv_in|conv_out|time_embedding|add_embedding)\b"
LAYERS = re.compile(
    rf"""lora_unet_\w+                                     # either model's blocks
    | lycoris_(?:down_blocks|mid_block|up_blocks|conv_in|conv_out|time_embedding|add_embedding)\w*
    | diffusion_model\..+                                  # its own names
    | (?:unet\.)?{BLOCKS}(?:(?!\.to_).)*                   # diffusers' names, but for attention
    | (?:unet\.)?{BLOCKS}.*\.processor\.to_(?:q|k|v|out)   # attention by its old names
    """,
    re.VERBOSE,
)
ENDINGS = (
    ".lora_up.weight", "_lora.up.weight", ".lora_B.weight", ".lora.up.weight", ".lora_B",
    ".lora_linear_layer.up.weight", ".lora_B.default.weight",
)  # fmt: skip
UP_KEY = re.compile(r".+?[._](?:lora[._])?(?:linear_layer\.)?(?:B|up)(?:\.[^.]+)?(?:\.weight)?")


def layers_found(names: Collection[str]) -> tuple[int, int]:
    """Return how many layers ComfyUI finds, and how many the LoRA has.

    Args:
        names: Names of the LoRA's tensors.
    """
    ups = [name for name in names if UP_KEY.fullmatch(name)]
    return sum(map(_is_found, ups)), len(ups)


def _is_found(name: str) -> bool:
    return any(name.endswith(end) and LAYERS.fullmatch(name.removesuffix(end)) for end in ENDINGS)
