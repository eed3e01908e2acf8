"""The sampler that a model in a diffusers folder names."""

import json
from typing import Any

from rapm_cli.core.method.samplers import Sampler

INDEX, SCHEDULER = "model_index.json", "scheduler/scheduler_config.json"


def with_sampler(name: str, record: dict[str, Any], sampler: Sampler) -> bytes:
    """One of a folder's two files that name its scheduler, with the student's, which for most is DDIM, trailing.

    Args:
        name: `INDEX` or `SCHEDULER`.
        record: What it says of the base.
        sampler: The student's.
    """
    kind = f"{sampler.scheduler}Scheduler"
    new = {"scheduler": ["diffusers", kind]} if name == INDEX else {"_class_name": kind, **sampler.settings}
    return (json.dumps(record | new, indent=2) + "\n").encode()
