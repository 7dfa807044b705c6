"""The algorithm: the components that fill its slots, and the plan in which they run."""
