"""The algorithm: filled slots, and in which order they run."""
