"""What became of each BatchNorm: removed (into which ops), or kept (why, and what blocks it)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from bnfold._document import Document, as_json, told
from bnfold.core.reasons import MergeReason, Reason

if TYPE_CHECKING:
    from bnfold.network import Network
    from bnfold.verify.result import VerifyResult


@dataclass(frozen=True, slots=True)
class Removed:
    """The step is gone."""

    into: tuple[str, ...]
    """Names of the ops that do its work now."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The step stays."""

    reason: Reason
    """What kind of obstacle."""
    blocker: str | None = None
    """Name of the op that stands in the way, if one does."""
    detail: str | None = None
    """What else is known about it."""


@dataclass(frozen=True, slots=True)
class Item:
    """One affine step of the network and its outcome."""

    name: str
    """Module path, or node name."""
    kind: str
    """What it is: BatchNorm2d, FrozenBatchNorm2d, LayerScale, ..."""
    channels: int
    """Number of channels."""
    calls: int
    """How often the analysed run called it."""
    outcome: Removed | Kept
    is_planned: bool = field(default=False, kw_only=True, compare=False, repr=False)
    """Whether a fold would do this, and none has been made; see `Outcomes.planned`."""

    @property
    def is_removed(self) -> bool:
        """Whether it is gone."""
        return isinstance(self.outcome, Removed)

    @property
    def into(self) -> tuple[str, ...]:
        """Names of the ops that took it in; empty if it stays."""
        return self.outcome.into if isinstance(self.outcome, Removed) else ()

    @property
    def reason(self) -> Reason | None:
        """Why it stays; None if it is gone."""
        return self.outcome.reason if isinstance(self.outcome, Kept) else None

    @property
    def blocker(self) -> str | None:
        """The op that stands in the way; None if it is gone or none does."""
        return self.outcome.blocker if isinstance(self.outcome, Kept) else None

    @property
    def sentence(self) -> str:
        """The outcome in words."""
        if isinstance(self.outcome, Removed):
            into, would = self.outcome.into, "would be " if self.is_planned else ""
            if not into:
                return f"{would}removed"
            shown = ", ".join(into[:3])
            more = f" and {len(into) - 3} more" if len(into) > 3 else ""
            return f"{would}folded into {shown}{more}"
        nameless = self.name if self.reason is Reason.HOOK else "a layer beside it"
        blocker = self.outcome.blocker or nameless
        stays = "would stay" if self.is_planned else "kept"
        sentence = f"{stays}: {self.outcome.reason.sentence.format(blocker=blocker)}"
        return f"{sentence} ({self.outcome.detail})" if self.outcome.detail else sentence

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            **told(self, "name", "kind", "channels", "calls"),
            "outcome": "removed" if self.is_removed else "kept",
            **told(self, "into", "reason", "blocker"),
            "detail": self.outcome.detail if isinstance(self.outcome, Kept) else None,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Item:
        """The inverse of `to_dict`."""
        outcome: Removed | Kept
        if data["outcome"] == "removed":
            outcome = Removed(tuple(data["into"]))
        else:
            outcome = Kept(Reason(data["reason"]), data["blocker"], data["detail"])
        return cls(data["name"], data["kind"], data["channels"], data["calls"], outcome)


@dataclass(frozen=True, slots=True)
class Merged:
    """Linear ops that became one."""

    into: str
    """Name of the op that does the work of all."""
    kind: str
    """What it is: Conv2d, Conv, Convolution, ..."""
    parts: tuple[str, ...]
    """Names of the linear ops, affine steps, activations, sums and concats that are gone, in the
    order of the network. None where a sum loses no more than the operand that the op reads as
    well: x + y - bn(x)."""

    @property
    def sentence(self) -> str:
        """What was merged, in words."""
        shown = ", ".join(self.parts[:3]) or "its own input"
        more = f" and {len(self.parts) - 3} more" if len(self.parts) > 3 else ""
        return f"{shown}{more} merged into {self.into}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return told(self, "into", "kind", "parts")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Merged:
        """The inverse of `to_dict`."""
        return cls(data["into"], data["kind"], tuple(data["parts"]))


@dataclass(frozen=True, slots=True)
class Unmerged:
    """A sum, or a concat, of linear ops of one tensor that stay several."""

    name: str
    """Name of the sum, or of the concat."""
    reason: MergeReason
    """What kind of obstacle."""
    blocker: str | None = None
    """Name of the op that stands in the way, if one does."""

    @property
    def sentence(self) -> str:
        """Why, in words."""
        return f"not merged: {self.reason.sentence.format(blocker=self.blocker or 'an op')}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return told(self, "name", "reason", "blocker")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Unmerged:
        """The inverse of `to_dict`."""
        return cls(data["name"], MergeReason(data["reason"]), data["blocker"])


@dataclass(frozen=True, slots=True)
class Outcomes(Document):
    """What a fold did, or would do: a `FoldReport` without its looks."""

    schema: ClassVar[str] = "bnfold.report/1"
    """Its JSON Schema is `report.schema.json`."""

    items: tuple[Item, ...]
    """Every affine step that could be removed or that somebody would ask about."""
    clips: tuple[str, ...] = ()
    """Activations that got bounds per channel."""
    merged: tuple[Merged, ...] = field(default=(), kw_only=True)
    """Linear ops that became one; the affine steps among them are items, too."""
    unmerged: tuple[Unmerged, ...] = field(default=(), kw_only=True)
    """Sums of linear ops of one tensor that stay several, and a module's concats of such."""
    notes: tuple[str, ...] = ()
    """What else the reader should know."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of what took part."""
    network: Network | None = field(default=None, compare=False, repr=False)
    """The network, to be drawn."""
    verdict: VerifyResult | None = None
    """What running the original and the folded model showed; None if they were not run."""
    unverified: str | None = None
    """Why they were not run; None if they were, or nobody asked."""
    is_planned: bool = field(default=False, kw_only=True, compare=False, repr=False)
    """Whether a fold would do this, and none has been made."""

    def planned(self) -> Self:
        """The same of a fold that has not been made, in words that say so."""
        items = tuple(replace(item, is_planned=True) for item in self.items)
        return replace(self, items=items, is_planned=True)

    @property
    def total(self) -> int:
        """Number of items."""
        return len(self.items)

    @property
    def removed(self) -> int:
        """Number of items that are gone."""
        return sum(item.is_removed for item in self.items)

    @property
    def kept(self) -> int:
        """Number of items that stay."""
        return self.total - self.removed

    @property
    def summary(self) -> str:
        """One line: how many of what are gone."""
        kinds = sorted({item.kind for item in self.items})
        parts = [
            f"{sum(item.is_removed for item in self.items if item.kind == kind)}"
            f" of {sum(item.kind == kind for item in self.items)} {kind}"
            for kind in kinds
        ]
        done = "would be removed" if self.is_planned else "removed"
        return f"{', '.join(parts)} {done}" if parts else "no BatchNorm found"

    @property
    def merged_summary(self) -> str:
        """One line: how many ops became how many; "" if none did."""
        if not self.merged:
            return ""
        gone = sum(max(1, len(merged.parts)) for merged in self.merged)  # its own input is one
        ops = "1 op" if gone == 1 else f"{gone} ops"
        kinds = sorted({merged.kind for merged in self.merged})
        done = "would be merged" if self.is_planned else "merged"
        return f"{ops} {done} into {len(self.merged)} {', '.join(kinds)}"

    @property
    def clips_summary(self) -> str:
        """One line: what activations became; "" if none changed."""
        if not self.clips:
            return ""
        count = len(self.clips)
        what = "1 activation" if count == 1 else f"{count} activations"
        became = "would become" if self.is_planned else "became"
        return f"{what} {became} max(x, c) or min(x, c), one constant per channel"

    def _content(self) -> dict[str, Any]:
        return {
            **told(self, "total", "removed", "kept", "items", "clips", "merged", "unmerged"),
            **told(self, "notes", "versions", "network"),
            "verify": as_json(self.verdict),
            "unverified": self.unverified,
            **({"planned": True} if self.is_planned else {}),
        }

    @classmethod
    def _read(cls, data: dict[str, Any]) -> Self:
        made = cls(
            tuple(Item.from_dict(item) for item in data["items"]),
            tuple(data["clips"]),
            tuple(data["notes"]),
            dict(data["versions"]),
            _network(data.get("network")),  # younger than the schema
            merged=tuple(Merged.from_dict(merged) for merged in data.get("merged", ())),
            unmerged=tuple(Unmerged.from_dict(left) for left in data.get("unmerged", ())),
            verdict=_verdict(data.get("verify")),
            unverified=data.get("unverified"),
        )
        return made.planned() if data.get("planned") else made


def _network(data: Mapping[str, Any] | None) -> Network | None:
    if data is None:
        return None
    from bnfold.network import Network

    return Network.from_dict(data)


def _verdict(data: Mapping[str, Any] | None) -> VerifyResult | None:
    if data is None:
        return None
    from bnfold.verify.result import VerifyResult

    return VerifyResult.from_dict(data)
