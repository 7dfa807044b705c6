"""What a task needs to score safely what a model wrote: processes with time limits, and exact arithmetic."""
