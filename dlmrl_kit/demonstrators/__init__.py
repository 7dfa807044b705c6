"""Demonstrators: whose completions a denoiser is pre-trained on."""
