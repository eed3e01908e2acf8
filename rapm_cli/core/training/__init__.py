"""What trains weights, whatever the method: optimizer, processes, metrics of a step."""
