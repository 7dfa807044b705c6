"""Selectors: they choose which denoising steps are trained, and with which weights."""
