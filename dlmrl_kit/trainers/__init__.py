"""Settings of the training loop, as components of a recipe."""
