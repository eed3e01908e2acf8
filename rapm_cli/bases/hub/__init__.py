"""Weights of the Hugging Face hub, in the user's own Hugging Face cache: only what is needed, resumed, verified."""

from rapm_cli.bases.hub.selection import CONFIGS, PIPELINE, Selection, one_file
from rapm_cli.bases.hub.snapshot import Snapshot, fetch

__all__ = ["CONFIGS", "PIPELINE", "Selection", "Snapshot", "fetch", "one_file"]
