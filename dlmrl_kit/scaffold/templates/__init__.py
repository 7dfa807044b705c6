"""What a new plugin is made of: a component of each kind as a plugin would write it, and the files around them."""
