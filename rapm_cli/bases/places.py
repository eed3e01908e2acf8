"""Where things live."""

import os
from pathlib import Path

import platformdirs

CACHE_FORMAT = 1  # counts up when the code makes other trajectories or readings from the same settings


def cache_dir() -> Path:
    """Trajectories and teacher pictures: what can be made again."""
    home = os.environ.get("RAPM_HOME")
    return Path(home) / "cache" if home else Path(platformdirs.user_cache_dir("rapm"))


def trajectories_dir() -> Path:
    """Folder of all stores of trajectories."""
    return cache_dir() / "trajectories"


def readings_dir() -> Path:
    """Folder of what was read in pictures."""
    return cache_dir() / "readings"


def galleries_dir() -> Path:
    """Folder of pictures that evaluations have drawn, and of what networks saw in them."""
    return cache_dir() / "galleries"


def converted_dir() -> Path:
    """Folder of others' weights in our format."""
    return cache_dir() / "converted"


def data_dir() -> Path:
    """Runs and pictures: what cannot."""
    home = os.environ.get("RAPM_HOME")
    return Path(home) / "data" if home else Path(platformdirs.user_data_dir("rapm"))


def runs_dir() -> Path:
    """Folder of all runs."""
    return data_dir() / "runs"


def studies_dir() -> Path:
    """Folder of all studies' results; their runs are in a folder of their own there."""
    return data_dir() / "studies"


def study_runs_dir() -> Path:
    """Folder of the runs that all studies share; no other command takes one of them for the newest."""
    return studies_dir() / "runs"


def reports_dir() -> Path:
    """Folder of the reports of evaluations."""
    return data_dir() / "reports"


def pictures_dir() -> Path:
    """Folder of generated pictures, unless the user names another."""
    return data_dir() / "pictures"
