"""Which denoising steps are trained, with which weights."""
