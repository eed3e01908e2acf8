"""Imports what a distillation imports: for processes that are forked from one that has imported this."""

from tests.faults.processes import preload

preload()
