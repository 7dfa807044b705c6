"""Pre-training a denoiser on demonstrations."""
