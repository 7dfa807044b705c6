"""Which samples of a rollout are trained at all."""
