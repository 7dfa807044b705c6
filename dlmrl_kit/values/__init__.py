"""Value models trained beside the policy."""
