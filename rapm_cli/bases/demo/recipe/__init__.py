"""The recipe that trained the demo base from nothing: `python -m rapm_cli.bases.demo.recipe --output DIR`."""
