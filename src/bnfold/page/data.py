"""What the page knows, as one JSON document inside it: for programs, and for a later look.

Only what the page shows, and nothing of the time or machine it was made on: the same fold gives
the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnfold.bench.result import BenchResult
    from bnfold.report import FoldReport

SCHEMA = "bnfold.page/1"
"""Name and version of the document; `report` and `bench` name their own."""


def page_data(
    report: FoldReport,
    *,
    bench: BenchResult | None,
    hashes: Mapping[str, str],
) -> dict[str, Any]:
    """Plain data for JSON."""
    return {
        "schema": SCHEMA,
        "report": report.to_dict(),
        "bench": None if bench is None else bench.to_dict(),
        "sha256": dict(hashes),
    }
