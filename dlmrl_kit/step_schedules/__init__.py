"""Step schedules: how many positions each denoising step of a block commits."""
