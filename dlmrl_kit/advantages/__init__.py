"""How much better an action was than expected."""
