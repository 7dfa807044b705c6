"""Gets from prompts to trajectories with rewards."""
