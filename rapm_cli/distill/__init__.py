"""The `distill` command: trajectories, training, and what is said of both."""
