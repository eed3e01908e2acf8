"""Folders of rapm's caches and data."""

import os
from pathlib import Path

import platformdirs

CACHE_FORMAT = 1  # raised when the code makes other trajectories or features from the same settings

DEMO_WEIGHTS = Path(__file__).parent / "demo" / "weights"
DEMO_LORA = DEMO_WEIGHTS / "rapm-demo.safetensors"  # ships with this package


def cache_dir() -> Path:
    """Folder of caches, which rapm can make again."""
    home = os.environ.get("RAPM_HOME")
    return Path(home) / "cache" if home else Path(platformdirs.user_cache_dir("rapm"))


def trajectories_dir() -> Path:
    """Folder of all trajectory stores."""
    return cache_dir() / "trajectories"


def features_dir() -> Path:
    """Folder of features and answers that the demo's reader gave."""
    return cache_dir() / "readings"


def samples_dir() -> Path:
    """Folder of the samples of evaluations and their features."""
    return cache_dir() / "galleries"


def converted_dir() -> Path:
    """Folder of published LoRAs converted to our format."""
    return cache_dir() / "converted"


def data_dir() -> Path:
    """Folder of runs, reports and images, which rapm cannot make again without the work."""
    home = os.environ.get("RAPM_HOME")
    return Path(home) / "data" if home else Path(platformdirs.user_data_dir("rapm"))


def runs_dir() -> Path:
    """Folder of all runs."""
    return data_dir() / "runs"


def studies_dir() -> Path:
    """Folder of all studies' results and runs."""
    return data_dir() / "studies"


def study_runs_dir() -> Path:
    """Folder of the runs that all studies share; no other command uses one as the newest run."""
    return studies_dir() / "runs"


def reports_dir() -> Path:
    """Folder of evaluation reports."""
    return data_dir() / "reports"


def pictures_dir() -> Path:
    """Default folder of generated images."""
    return data_dir() / "pictures"
