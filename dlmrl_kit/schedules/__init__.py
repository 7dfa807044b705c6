"""Schedules: numbers that depend on the denoising step."""
