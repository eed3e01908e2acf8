"""`python -m rapm_cli` is `rapm`."""

from rapm_cli.cli.app import run

if __name__ == "__main__":
    run()
