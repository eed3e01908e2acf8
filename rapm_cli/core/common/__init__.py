"""What every room uses: errors, registries, random numbers, progress."""
