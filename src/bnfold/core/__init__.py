"""The solver and the laws it obeys. NumPy only: no framework is known here."""
