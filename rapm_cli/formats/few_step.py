"""Published few-step LoRAs of other methods, recognised by their names, and how they are sampled. Needs no torch.

No published file was read here: the samplers are those that the methods' papers and users name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

USUAL_STEPS = 4
STEPS = re.compile(r"(?<!\d)(1|2|4|8|16)[-_ ]?steps?(?![a-z])", re.I)
TITLES = ("modelspec.title", "ss_output_name", "name")  # texts of a header that hold a LoRA's name
# Words in names, the method's name, and rapm's name of its sampler. Lightning is sampled with Euler's method, Hyper-SD
# and PCM with DDIM, all at trailing timesteps; DMD2 adds new noise at the same timesteps; LCM and TCD have their own.
KINDS = (
    ("lightning", "Lightning", "euler"),
    (r"hyper[-_ ]?sd", "Hyper-SD", "ddim"),
    ("dmd2", "DMD2", "dmd2"),
    ("pcm", "PCM", "ddim"),
    ("tcd", "TCD", "tcd"),
    ("lcm", "LCM", "lcm"),
)


@dataclass(frozen=True)
class FewStepKind:
    """What a few-step LoRA of another method wants.

    Args:
        method: Name of the method.
        sampler: Name of its sampler, from `SAMPLERS`.
        steps: Number of steps.
    """

    method: str
    sampler: str
    steps: int


def recognise(path: Path, metadata: Mapping[str, str]) -> FewStepKind | None:
    """Return the kind of a few-step LoRA by its file name, its header, or its repository; None for an unknown one.

    Args:
        path: LoRA's file. Below the cache of the Hugging Face hub, a folder names the repository.
        metadata: Metadata of the file's header.
    """
    repository = next((part for part in path.parts if part.startswith("models--")), "")
    for text in (path.stem, *(metadata.get(key, "") for key in TITLES), repository):
        for words, method, sampler in KINDS:
            if re.search(rf"(?<![a-z]){words}(?![a-z])|(?<![a-z]){words}(?=xl|loras?\b)", text, re.I):
                steps = STEPS.search(f"{path.stem} {text}")
                return FewStepKind(method, sampler, int(steps[1]) if steps else USUAL_STEPS)
    return None
