"""Pre-training objectives, with the settings of their loop."""
