"""Regularisers: terms added to the loss."""
