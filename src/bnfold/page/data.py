"""What the page knows, as one JSON document inside it: for programs, and for a later look.

Only what the page shows, and nothing of the time or machine it was made on: the same fold gives
the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnfold.bench.result import BenchResult
    from bnfold.outcomes import Outcomes

SCHEMA = "bnfold.page/1"
"""Name and version of the document; `report` and `bench` name their own."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the page is told beside the report; see `FoldReport.to_html`."""

    title: str
    """The model's name."""
    bench: BenchResult | None
    """What was measured."""
    hashes: Mapping[str, str]
    """SHA-256 by name."""
    ops: tuple[Mapping[str, int], Mapping[str, int]] | None
    """By type, before and after; None: as the drawing has them."""
    sizes: tuple[int, int | None] | None
    """Bytes of the files, before and after; after is None if nothing was written."""


def page_data(report: Outcomes, facts: Facts) -> dict[str, Any]:
    """Plain data for JSON; `ops` and `bytes` as the command's --json has them."""
    before, after = (None, None) if facts.ops is None else map(dict, facts.ops)
    return {
        "schema": SCHEMA,
        "report": report.to_dict(),
        "bench": None if facts.bench is None else facts.bench.to_dict(),
        "sha256": dict(facts.hashes),
        "ops": None if before is None else {"before": before, "after": after},
        "bytes": None if facts.sizes is None else facts.sizes[0],
        "bytes_written": None if facts.sizes is None else facts.sizes[1],
    }
