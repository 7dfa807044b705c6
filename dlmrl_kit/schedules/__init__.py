"""Numbers that depend on the denoising step."""
