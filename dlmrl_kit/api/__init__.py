"""What scripts and notebooks call: a run as an object with frames and figures, and the steps of an update by hand."""
