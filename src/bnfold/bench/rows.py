"""What a measurement found: one row per variant, runtime and setting.

    ratio = this variant's time / the original's, in the same runtime and setting

below 1 the variant is faster. The ratio is the median of the ratios of all rounds, not the ratio
of the medians, so that what slows a whole round slows nothing in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Self

from bnfold._document import Document, told

ORIGINAL = "original"
FOLDED = "folded"

NOTICEABLE = 0.01
"""What counts as slower, beyond the interval: where memory happens to lie makes two copies of one
model differ by up to a percent for as long as both live, and no interval shows that."""


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One variant of the model in one runtime and setting."""

    variant: str
    """"original", "folded", "torch.fx", ..."""
    runtime: str
    """"eager", "compile", "onnxruntime", "onnxruntime optimised", "cuda graph", ..."""
    device: str
    """"cpu", "cuda", "cuda:1"."""
    dtype: str
    """Of the inputs: "float32", "float16", "bfloat16", ..."""
    layout: str
    """"contiguous" or "channels_last"."""
    batch: int
    """Length of the inputs' first axis."""
    threads: int
    """Processor threads that the runtime was given."""
    calls: int
    """How many calls were timed."""
    median: float
    """Seconds per call."""
    low: float
    """Seconds, lower quartile."""
    high: float
    """Seconds, upper quartile."""
    ratio: float
    """Time / the original's time; 1 for the original itself."""
    ratio_low: float
    """Lower end of the ratio's 95% interval."""
    ratio_high: float
    """Upper end of the ratio's 95% interval."""

    @property
    def setting(self) -> tuple[str, str, str, str, int, int]:
        """What rows that may be compared have in common."""
        return (self.runtime, self.device, self.dtype, self.layout, self.batch, self.threads)

    @property
    def is_slower(self) -> bool:
        """Whether it is noticeably slower than the original, beyond doubt."""
        return self.ratio_low > 1.0 and self.ratio > 1.0 + NOTICEABLE

    @property
    def is_faster(self) -> bool:
        """Whether it is faster than the original, beyond doubt."""
        return self.ratio_high < 1.0

    @property
    def outcome(self) -> str:
        """The ratio in words; empty for the original."""
        if self.variant == ORIGINAL:
            return ""
        if self.is_faster:
            return f"{1 - self.ratio:.1%} less time"
        if self.is_slower:
            return f"{self.ratio - 1:.1%} more time"
        return "no difference"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BenchRow:
        """The inverse of `to_dict`; fields that are not known are passed over."""
        return cls(**{entry.name: data[entry.name] for entry in fields(cls)})


@dataclass(frozen=True, slots=True)
class Measurements(Document):
    """All rows, and where they were measured: a `BenchResult` without its looks."""

    schema: ClassVar[str] = "bnfold.bench/1"

    rows: tuple[BenchRow, ...]
    """In the order of measuring; rows of one setting stand together, the original first."""
    machine: Mapping[str, str] = field(default_factory=dict)
    """Processor, cores, governor, load, GPU: what can be known without naming the machine."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of what took part."""
    notes: tuple[str, ...] = ()
    """What else the reader should know: runtimes that failed, a busy machine."""

    @property
    def is_slower(self) -> bool:
        """Whether the folded model is slower than the original in any setting."""
        return any(row.variant == FOLDED and row.is_slower for row in self.rows)

    @property
    def summary(self) -> str:
        """One line: how the folded model compares with the original."""
        folded = [row for row in self.rows if row.variant == FOLDED]
        if not folded:
            return "nothing was measured"
        if len(folded) == 1:
            (row,) = folded
            return (
                f"folded takes {row.ratio:.3f} of the original's time"
                f" ({row.ratio_low:.3f}-{row.ratio_high:.3f}): {row.outcome}"
            )
        faster = sum(row.is_faster for row in folded)
        slower = sum(row.is_slower for row in folded)
        ratios = sorted(row.ratio for row in folded)
        return (
            f"folded takes {ratios[0]:.3f} to {ratios[-1]:.3f} of the original's time: faster in"
            f" {faster} of {len(folded)} settings, slower in {slower}"
        )

    def _content(self) -> dict[str, Any]:
        return told(self, "rows", "machine", "versions", "notes")

    @classmethod
    def _read(cls, data: dict[str, Any]) -> Self:
        rows = tuple(map(BenchRow.from_dict, data["rows"]))
        return cls(rows, dict(data["machine"]), dict(data["versions"]), tuple(data["notes"]))
