"""Parts that all packages use: errors, registries, random numbers, progress."""
