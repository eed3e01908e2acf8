"""What a run survives, shown: each module is a command that prints a table, and in a short form a test."""
