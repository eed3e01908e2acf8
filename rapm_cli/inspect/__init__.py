"""The `inspect` command."""
