"""Load LoRAs into a UNet with this environment's diffusers, and save the UNet's output with each.

`python diffusers_unet.py JOB` reads a JSON file: pipeline, unet (folder), inputs (safetensors), loras by name, output.
"""

import json
import sys
from pathlib import Path

import diffusers
import torch
from safetensors.torch import load_file, save_file

PARTS = {  # that a pipeline can do without, by whether it is an SDXL's
    True: ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    False: ("text_encoder", "tokenizer", "safety_checker", "feature_extractor"),
}


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    kind, inputs = getattr(diffusers, job["pipeline"]), load_file(job["inputs"])
    is_xl = "text_embeds" in inputs
    outputs, errors = {}, {}
    for name, path in job["loras"].items():
        unet = diffusers.UNet2DConditionModel.from_pretrained(job["unet"], torch_dtype=torch.float32)
        parts = dict.fromkeys(PARTS[is_xl]) | {"vae": diffusers.AutoencoderKL(), "unet": unet}
        pipe = kind(scheduler=diffusers.EulerDiscreteScheduler(steps_offset=1), **parts)
        try:
            if path:
                pipe.load_lora_weights(str(Path(path).parent), weight_name=Path(path).name)
            added = {part: inputs[part] for part in ("text_embeds", "time_ids")} if is_xl else None
            with torch.no_grad():
                out = pipe.unet(
                    inputs["z"], 500, encoder_hidden_states=inputs["tokens"], added_cond_kwargs=added
                ).sample
            outputs[name] = out.contiguous()
        except Exception as error:  # noqa: BLE001  # the table shows it
            errors[name] = f"{type(error).__name__}: {error}"[:120]
    save_file(outputs, job["output"])
    sys.stdout.write(json.dumps({"version": diffusers.__version__, "errors": errors}))


if __name__ == "__main__":
    main()
