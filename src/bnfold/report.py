"""What `bnfold.fold` reports: the outcomes, and how they are shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bnfold._text import columns, printable
from bnfold.outcomes import Outcomes

if TYPE_CHECKING:
    from bnfold.bench.result import BenchResult


@dataclass(frozen=True, slots=True, repr=False)
class FoldReport(Outcomes):
    """What a fold did, or would do."""

    def table(self, *, color: bool = False, width: int = 100) -> str:
        """The report as a text table."""
        from bnfold import _render

        return _render.text(self, color=color, width=width)

    def to_html(
        self,
        *,
        bench: BenchResult | None = None,
        hashes: Mapping[str, str] | None = None,
        title: str = "",
        ops: tuple[Mapping[str, int], Mapping[str, int]] | None = None,
        sizes: tuple[int, int | None] | None = None,
    ) -> str:
        """The report as a page: one HTML document that loads nothing, the network drawn in it.

        The verdict of the fold is shown, or any other that the report is given:
        `dataclasses.replace(report, verdict=bnfold.verify(...))`.

        Args:
            bench: What `bnfold.bench` measured.
            hashes: SHA-256 of the files that took part, by name.
            title: What the page is about: the model's name.
            ops: How many ops of each type there are, before and after; if left out, they are
                counted in `network`.
            sizes: Bytes of the model's files, before and after; None: nothing was written.
        """
        from bnfold.page.data import Facts
        from bnfold.page.render import render

        return render(self, Facts(title, bench, hashes or {}, ops, sizes))

    def __repr__(self) -> str:
        """In a line, as a prompt echoes it: all that is in it may be pages long."""
        return printable(
            f"<FoldReport: {'; '.join(filter(None, (self.summary, self.merged_summary)))}>"
        )

    def __str__(self) -> str:
        return self.table(width=columns())

    def _repr_html_(self) -> str:
        from bnfold import _render

        return _render.html(self)
