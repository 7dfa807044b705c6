"""Recipes: gin files that become algorithms."""
