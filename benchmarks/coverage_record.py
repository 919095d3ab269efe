"""One result of the coverage benchmark, and the file of JSON lines that keeps them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path


class Outcome(StrEnum):
    """What came of folding one network with one tool."""

    FOLDED = "folded"
    WRONG = "wrong"
    """The result computes something else, or the original was changed."""
    REFUSED = "refused"
    """The tool said itself that it cannot (only bnfold has errors of its own)."""
    FAILED = "failed"
    """Any other exception, of the tool or of the network it made."""
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    """The process ended without an answer: a signal, no memory left."""


@dataclass(frozen=True, slots=True)
class Record:
    """One network folded by one tool in one process."""

    name: str
    family: str
    tool: str
    outcome: Outcome
    detail: str = ""
    """The error, first line; what is wrong."""
    before: int | None = None
    """Batch norms that run in one forward of the original."""
    after: int | None = None
    """The same for the result."""
    error_float64: float | None = None
    """max|a - b| / max|a| over all outputs, on the example and on another input."""
    error_float32: float | None = None
    noise_float32: float | None = None
    """The original in float32 against itself in float64: what rounding alone does."""
    seconds: float | None = None
    """The fold alone, in float32; the first fold of the process was the one in float64."""
    peak_mebibytes: int | None = None
    """Largest resident memory of the whole process."""
    kept: dict[str, int] = field(default_factory=dict)
    """bnfold's reasons for what it kept, with their number."""

    def to_line(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_line(cls, line: str) -> Record:
        """The inverse of `to_line`."""
        values = json.loads(line)
        values["outcome"] = Outcome(values["outcome"])
        return cls(**values)


def read_records(path: Path) -> list[Record]:
    """The latest result of each network and tool; none without a file."""
    if not path.exists():
        return []
    records = [Record.from_line(line) for line in path.read_text().splitlines() if line]
    return list({(record.name, record.tool): record for record in records}.values())


def append_record(path: Path, record: Record) -> None:
    """Write one result at once, so that an interrupted run loses nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(record.to_line() + "\n")


def drop_records(path: Path, names: Iterable[str], tools: Iterable[str]) -> None:
    """Forget the results of `names` with `tools`."""
    names, tools = set(names), set(tools)
    left = [
        entry for entry in read_records(path) if not (entry.name in names and entry.tool in tools)
    ]
    if path.exists():
        path.write_text("".join(entry.to_line() + "\n" for entry in left))
