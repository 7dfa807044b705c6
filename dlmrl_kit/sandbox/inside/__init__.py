"""What runs inside a sandbox: it imports the standard library only, for nothing else of the kit is to be seen there."""
