"""What `bnfold.bench` returns: the rows, and how they are shown."""

from __future__ import annotations

from dataclasses import dataclass

from bnfold._text import columns
from bnfold.bench import chart, table
from bnfold.bench.rows import Measurements


@dataclass(frozen=True, slots=True)
class BenchResult(Measurements):
    """All rows, and where they were measured."""

    def table(self, *, color: bool = False, width: int = 100) -> str:
        """The result as a text table."""
        return table.text(self, color=color, width=width)

    def chart(self) -> str:
        """The ratios as bars: an SVG document that needs nothing else."""
        return chart.svg(self)

    def __str__(self) -> str:
        return self.table(width=columns())

    def _repr_html_(self) -> str:
        return table.html(self)
