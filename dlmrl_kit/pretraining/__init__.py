"""Pre-trains a denoiser on demonstrations."""
