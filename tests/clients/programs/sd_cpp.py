"""Sample one image from each checkpoint with stable-diffusion.cpp, and compare the images.

`python sd_cpp.py JOB` reads a JSON file: checkpoints (path and LoRA by name), of which the first is the bare base.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import cyllama.sd as sd
import numpy as np


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    images = {}
    for name, (path, lora) in job["checkpoints"].items():
        context = sd.SDContext(sd.SDContextParams(model_path=path, n_threads=2, wtype=sd.SDType.F32))
        wanted = sd.SDImageGenParams(
            prompt="a red cube", width=64, height=64, seed=7, sample_steps=4, cfg_scale=1.0,
            sample_method=sd.SampleMethod.EULER, scheduler=sd.Scheduler.SGM_UNIFORM,
        )  # fmt: skip
        if lora:
            wanted.set_loras([{"path": lora, "multiplier": 1.0}])
        images[name] = np.asarray(context.generate_with_params(wanted)[0].to_numpy(), dtype=int)
        context.close()
    bare, *others = images
    far = int(np.abs(images[others[0]] - images[others[1]]).max())
    without = {name: int(np.abs(images[name] - images[bare]).max()) for name in others}
    sys.stdout.write("\n" + json.dumps({"version": version("cyllama"), "far": far, "without": without}))


if __name__ == "__main__":
    main()
