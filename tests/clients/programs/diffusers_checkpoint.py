"""Load SD 1.5 checkpoints with this environment's `from_single_file`, one with a LoRA too; save the UNet's outputs.

`python diffusers_checkpoint.py CONFIG JOB` takes the configuration from a folder, and reads a JSON file: checkpoints
(path and LoRA by name), inputs, output.
"""

import json
import sys
from pathlib import Path

import diffusers
import torch
from safetensors.torch import load_file, save_file


def main() -> None:
    folder, job = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    inputs, outputs = load_file(job["inputs"]), {}
    for name, (path, lora) in job["checkpoints"].items():
        pipe = diffusers.StableDiffusionPipeline.from_single_file(
            path, config=folder, local_files_only=True, torch_dtype=torch.float32, safety_checker=None
        )
        if lora:
            pipe.load_lora_weights(str(Path(lora).parent), weight_name=Path(lora).name)
        with torch.no_grad():
            outputs[name] = pipe.unet(inputs["z"], 500, inputs["tokens"]).sample.contiguous()
    save_file(outputs, job["output"])
    sys.stdout.write("\n" + json.dumps({"version": diffusers.__version__, "losses": {}}))


if __name__ == "__main__":
    main()
