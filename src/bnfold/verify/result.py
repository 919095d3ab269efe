"""What `bnfold.verify` returns: what was found, and how it is shown."""

from __future__ import annotations

from dataclasses import dataclass

from bnfold._text import columns
from bnfold.verify import render
from bnfold.verify.findings import Findings


@dataclass(frozen=True, slots=True)
class VerifyResult(Findings):
    """The verdict, and what it rests on."""

    def table(self, *, color: bool = False, width: int = 100) -> str:
        """The result as a text table."""
        return render.text(self, color=color, width=width)

    def __str__(self) -> str:
        return self.table(width=columns())

    def _repr_html_(self) -> str:
        return render.html(self)
