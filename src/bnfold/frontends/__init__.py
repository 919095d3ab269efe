"""The only rooms that may import a framework: they lift networks into the core and apply plans."""
