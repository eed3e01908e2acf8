"""Train the demo base from scratch: `python -m rapm_cli.bases.demo.recipe --output DIR`."""
