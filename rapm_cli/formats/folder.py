"""The sampler that a model in a diffusers folder names."""

import json
from pathlib import Path

from rapm_cli.core.sample import Sampler


def set_sampler(folder: Path, sampler: Sampler) -> None:
    """Make the student's scheduler the folder's, which for most is DDIM with trailing spacing."""
    index_path, path = folder / "model_index.json", folder / "scheduler" / "scheduler_config.json"
    index, scheduler = json.loads(index_path.read_text()), json.loads(path.read_text())
    name = f"{sampler.scheduler}Scheduler"
    index["scheduler"] = ["diffusers", name]
    scheduler |= {"_class_name": name, **sampler.settings}
    index_path.write_text(json.dumps(index, indent=2) + "\n")
    path.write_text(json.dumps(scheduler, indent=2) + "\n")
