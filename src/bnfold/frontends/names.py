"""Names for what a fold makes."""

from __future__ import annotations


class Namer:
    """Names that nothing has yet."""

    def __init__(self, names: set[str]) -> None:
        self.names = names

    def fresh(self, wanted: str) -> str:
        """The wanted name, or one with a number behind it."""
        name, number = wanted, 0
        while name in self.names:
            number += 1
            name = f"{wanted}_{number}"
        self.names.add(name)
        return name
