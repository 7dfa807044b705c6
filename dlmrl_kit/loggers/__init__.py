"""Loggers: where metrics go."""
