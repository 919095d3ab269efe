"""What `bnfold.verify` returns: what was found, and how it is shown."""

from __future__ import annotations

from dataclasses import dataclass

from bnfold._text import columns, printable
from bnfold.verify import render
from bnfold.verify.findings import Findings


@dataclass(frozen=True, slots=True, repr=False)
class VerifyResult(Findings):
    """The verdict, and what it rests on."""

    def table(self, *, color: bool = False, width: int = 100) -> str:
        """The result as a text table."""
        return render.text(self, color=color, width=width)

    def __repr__(self) -> str:
        """In a line, as a prompt echoes it: all that is in it may be pages long."""
        return printable(f"<VerifyResult: {self.summary}>")

    def __str__(self) -> str:
        return self.table(width=columns())

    def _repr_html_(self) -> str:
        return render.html(self)
