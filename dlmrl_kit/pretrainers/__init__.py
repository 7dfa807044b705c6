"""Pre-training: how a denoiser learns from demonstrations."""
