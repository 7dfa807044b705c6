"""Normalisers: what a loss divides its sum over tokens by."""
