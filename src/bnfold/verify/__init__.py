"""Does the folded model compute the same? NumPy only; runners live in the frontends."""
