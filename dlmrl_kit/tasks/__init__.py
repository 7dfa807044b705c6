"""Tasks: prompts and verifiable rewards."""
