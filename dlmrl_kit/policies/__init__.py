"""Policies: transformers models behind one interface."""
