"""What is compared: admission and eviction policies, in plain Python."""
