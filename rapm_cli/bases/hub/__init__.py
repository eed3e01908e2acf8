"""Download only the needed files from the Hugging Face hub into the user's own cache, and verify them."""

from rapm_cli.bases.hub.publish import check_login, publish
from rapm_cli.bases.hub.selection import CONFIGS, OUTLINE, PIPELINE, Selection, one_file
from rapm_cli.bases.hub.snapshot import Snapshot, fetch

__all__ = ["CONFIGS", "OUTLINE", "PIPELINE", "Selection", "Snapshot", "check_login", "fetch", "one_file", "publish"]
