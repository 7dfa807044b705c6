"""Regularisers: terms that are added to the loss."""
