"""Programs that a model wrote, run behind walls: bubblewrap around them, limits on what they use, tests kept apart."""
