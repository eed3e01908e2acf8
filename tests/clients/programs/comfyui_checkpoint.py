"""Load checkpoints in ComfyUI, one of them with a LoRA too, and save the UNet's output with each.

`python comfyui_checkpoint.py CHECKOUT JOB` reads a JSON file: checkpoints (path and LoRA by name), inputs and output.
"""

import json
import logging
import sys
from pathlib import Path

import torch
import vision  # noqa: F401
from safetensors.torch import load_file, save_file


class Losses(logging.Handler):
    """Collects what ComfyUI says of keys that are missing or unknown."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        text = record.getMessage()
        if any(word in text for word in ("missing", "unexpected", "NOT LOADED")) and "[]" not in text:
            self.lines.append(text[:160])


def main() -> None:
    checkout, job = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    sys.path.insert(0, str(checkout))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import comfy.model_management
    import comfy.sd
    import comfyui_version

    losses, inputs, outputs, said = Losses(), load_file(job["inputs"]), {}, {}
    logging.getLogger().addHandler(losses)
    for name, (path, lora) in job["checkpoints"].items():
        losses.lines = []
        model = comfy.sd.load_checkpoint_guess_config(path)[0]
        if lora:
            model, _ = comfy.sd.load_lora_for_models(model, None, load_file(lora), 1.0, 0.0)
        comfy.model_management.load_models_gpu([model])
        kind = model.model.get_dtype()
        with torch.no_grad():
            out = model.model.diffusion_model(
                inputs["z"].to(kind), torch.tensor([500]), context=inputs["tokens"].to(kind)
            )
        outputs[name], said[name] = out.float().contiguous(), losses.lines
        comfy.model_management.unload_all_models()
    save_file(outputs, job["output"])
    version = comfyui_version.__version__
    sys.stdout.write("\n" + json.dumps({"version": version, "losses": said}))


if __name__ == "__main__":
    main()
