"""The method, readable with the paper open: torch, and nothing of ours above it."""
