"""Load SD 1.5 checkpoints as sd-scripts does, strictly, one of them with a LoRA too; save the UNet's outputs.

`python sd_scripts_checkpoint.py CHECKOUT JOB` reads a JSON file: checkpoints (path and LoRA by name), inputs, output.
"""

import json
import sys
from pathlib import Path

import torch
import vision  # noqa: F401
from safetensors.torch import load_file, save_file


def main() -> None:
    checkout, job = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    sys.path.insert(0, str(checkout))
    from library import model_util
    from networks import lora as network

    inputs, outputs = load_file(job["inputs"]), {}
    for name, (path, lora) in job["checkpoints"].items():
        encoder, vae, unet = model_util.load_models_from_stable_diffusion_checkpoint(False, path)
        unet = unet.float()
        if lora:
            state = load_file(lora)
            made, _ = network.create_network_from_weights(1.0, lora, vae, encoder, unet, state, for_inference=True)
            made.merge_to(encoder, unet, state, torch.float32, "cpu")
        with torch.no_grad():
            outputs[name] = unet(inputs["z"], 500, inputs["tokens"]).sample.contiguous()
    save_file(outputs, job["output"])
    sys.stdout.write("\n" + json.dumps({"version": "", "losses": {}}))


if __name__ == "__main__":
    main()
