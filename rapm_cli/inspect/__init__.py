"""The `rapm inspect` command: facts about files, runs, caches and the device."""
