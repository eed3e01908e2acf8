"""Count the layers of LoRAs that ComfyUI's own table finds, in a model that ComfyUI detects by its shapes.

`python comfyui_keys.py CHECKOUT JOB` reads a JSON file: shapes (tensor names to shapes, without weights) and loras by
name.
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
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import comfy.lora
    import comfy.model_detection
    from safetensors.torch import load_file

    prefix = "model.diffusion_model."
    state = {name: torch.empty(shape, device="meta") for name, shape in job["shapes"].items()}
    config = comfy.model_detection.model_config_from_unet(state, prefix)
    detected = type(config).__name__ if config else "nothing"
    found = {}
    if config:
        own = {f"diffusion_model.{name.removeprefix(prefix)}": one for name, one in state.items()}
        model = SimpleNamespace(state_dict=lambda: own, model_config=config)
        table = comfy.lora.model_lora_keys_unet(model, {})
        for name, path in job["loras"].items():
            found[name] = len(comfy.lora.load_lora(load_file(path), table, log_missing=False))
    sys.stdout.write(json.dumps({"detected": detected, "found": found}))


if __name__ == "__main__":
    main()
