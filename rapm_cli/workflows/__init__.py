"""One job from end to end in each file."""
