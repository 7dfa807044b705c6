"""From prompts to trajectories with rewards."""
