"""Load our files in the programs that read them, and print one table.

`python -m tests.clients --comfyui DIR --sd-scripts DIR --webui DIR` takes checkouts by path. Whatever is not given is
skipped with the reason, as in CI. Environments are made once below `--environments`: 4 GB, with a torch for CPUs.
"""

import argparse
import sys
import tempfile
from dataclasses import astuple
from pathlib import Path

from rapm_cli.cli.console import Output
from tests.clients.checkpoints import checkpoint_rows
from tests.clients.loras import diffusers_rows, layer_rows
from tests.clients.texts import launcher_rows, reader_rows, webui_rows
from tests.clients.workflows import workflow_rows

CHECKS = (launcher_rows, reader_rows, webui_rows, layer_rows, checkpoint_rows, workflow_rows, diffusers_rows)


def main() -> int:
    """Print the table; return 1 where a program reads a file in another way than rapm says."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, what in (("comfyui", "ComfyUI"), ("sd-scripts", "kohya's trainer"), ("webui", "A1111 or Forge")):
        parser.add_argument(f"--{name}", type=Path, help=f"checkout of {what}")
    parser.add_argument("--environments", type=Path, default=Path(tempfile.gettempdir()) / "rapm-clients")
    parser.add_argument("--without-diffusers", action="store_true", help="leave the releases of diffusers out")
    parser.add_argument("--without-checkpoints", action="store_true", help="leave the full-size checkpoints out")
    options = parser.parse_args()
    out, rows = Output(), []
    with tempfile.TemporaryDirectory() as place:
        for check in CHECKS:
            for row in check(options, Path(place)):
                rows.append(row)
                out.say("  ".join(astuple(row)[:4]) + f"  {row.verdict}")
    titles = ["program", "version", "file", "figure", "verdict"]
    out.table("clients", titles, [[*astuple(row)[:4], row.verdict] for row in rows], text_columns=(0, 1, 2, 3, 4))
    return 1 if any(row.is_right is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
