"""Ask sd-scripts' own trainer which layers of a LoRA it has in the UNet of an SDXL or SD 1.5, without weights.

`python sd_scripts.py CHECKOUT JOB` reads a JSON file: family, and loras by name.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import vision  # noqa: F401


def main() -> None:
    checkout, job = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    sys.path.insert(0, str(checkout))
    from networks import lora
    from safetensors.torch import load_file

    with torch.device("meta"):
        if job["family"] == "sdxl":
            from library.sdxl_original_unet import SdxlUNet2DConditionModel

            unet = SdxlUNet2DConditionModel()
        else:
            from library.original_unet import UNet2DConditionModel

            unet = UNet2DConditionModel(64, 8, 768, False, False)
    found = {}
    for name, path in job["loras"].items():
        state = load_file(path)
        made, _ = lora.create_network_from_weights(1.0, path, SimpleNamespace(), [], unet, weights_sd=state)
        names = {one.lora_name for one in made.unet_loras}
        found[name] = sum(key.endswith(".lora_up.weight") and key.split(".")[0] in names for key in state)
    sys.stdout.write("\n" + json.dumps({"found": found}))


if __name__ == "__main__":
    main()
