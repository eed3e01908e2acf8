"""Start ComfyUI's own server: `python comfyui_server.py CHECKOUT OPTIONS`."""

import runpy
import sys

import vision  # noqa: F401

if __name__ == "__main__":
    checkout = sys.argv.pop(1)
    sys.path.insert(0, checkout)
    runpy.run_path(f"{checkout}/main.py", run_name="__main__")
