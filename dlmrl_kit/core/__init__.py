"""What everything stands on: keys, components, the registry, trajectories, the behaviour distribution."""
