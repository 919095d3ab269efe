"""The results of the coverage benchmark as a page of the documentation."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable

from benchmarks.coverage_record import Outcome, Record
from benchmarks.coverage_worker import WRONG_FROM
from benchmarks.markdown import table

_EXACT_TO = 1e-9
_TOOLS = {"bnfold": "bnfold", "torch_fx": "torch.fx fuse"}

_HEAD = """# Coverage: which BatchNorms go

Networks of timm and torchvision, one or two of each family, with random weights and random
statistics (different in each channel, 5% of the gammas negative). Each is folded by bnfold and by
`torch.fx.experimental.optimization.fuse`, each time in a process of its own.

- **BatchNorms** are counted where they run: calls in one real forward, before and after.
- **Error** is max|a - b| / max|a|, the largest over all outputs, of two inputs, one of them not
  known to the fold. "Rounding" is the error of the original in float32 against itself in float64.
- **Seconds** are for the fold in float32, the copy of the model included. The tools were run at
  different times, bnfold on a busy machine; side by side they are in [fold time](fold_time.md).
- A result is called wrong when its float64 error is above {wrong:g}.

Made by `python -m benchmarks.coverage`, then `python -m benchmarks.coverage --table`.
"""


def render(records: Iterable[Record]) -> str:
    """The page; networks in the order given."""
    by_network: dict[str, dict[str, Record]] = {}
    for record in records:
        by_network.setdefault(record.name, {})[record.tool] = record
    parts = [
        _HEAD.format(wrong=WRONG_FROM),
        "## Totals\n",
        _totals(by_network),
        _kept_reasons(by_network),
        "## Networks\n",
        _networks(by_network),
        _troubles(by_network),
    ]
    return "\n".join(part for part in parts if part)


def _totals(by_network: dict[str, dict[str, Record]]) -> str:
    rows = []
    for tool, title in _TOOLS.items():
        measured = [rows_of[tool] for rows_of in by_network.values() if tool in rows_of]
        if not measured:
            continue
        total = sum(_before(by_network[record.name]) for record in measured)
        sound = [record for record in measured if record.outcome is Outcome.FOLDED]
        removed = sum((record.before or 0) - (record.after or 0) for record in sound)
        errors = [record.error_float64 for record in sound if record.error_float64 is not None]
        seconds = [record.seconds for record in sound if record.seconds is not None]
        counts = Counter(record.outcome for record in measured)
        rows.append(
            [
                title,
                str(len(measured)),
                str(total),
                f"{removed} ({removed / total:.1%})" if total else "0",
                str(sum(record.after == 0 for record in sound)),
                str(counts[Outcome.WRONG]),
                str(counts[Outcome.REFUSED]),
                str(sum(counts[name] for name in _BROKEN)),
                f"{max(errors, default=0):.1e}",
                str(sum(error > _EXACT_TO for error in errors)),
                f"{statistics.median(seconds):.2f}" if seconds else "",
            ]
        )
    header = ["tool", "networks", "BatchNorms", "removed, rightly", "networks left without any"]
    header += ["wrong", "refused", "failed", "worst float64 error", f"above {_EXACT_TO:g}"]
    return table([*header, "median seconds"], rows)


_BROKEN = (Outcome.FAILED, Outcome.TIMEOUT, Outcome.CRASHED)


def _kept_reasons(by_network: dict[str, dict[str, Record]]) -> str:
    reasons: Counter[str] = Counter()
    networks: Counter[str] = Counter()
    for rows_of in by_network.values():
        kept = rows_of["bnfold"].kept if "bnfold" in rows_of else {}
        reasons.update(kept)
        networks.update(kept.keys())
    if not reasons:
        return ""
    rows = [[name, str(count), str(networks[name])] for name, count in reasons.most_common()]
    title = "## What bnfold kept, and why (LayerScales and other affine steps included)\n\n"
    return title + table(["reason", "kept", "networks"], rows)


def _networks(by_network: dict[str, dict[str, Record]]) -> str:
    rows = []
    for name, rows_of in by_network.items():
        ours, theirs = rows_of.get("bnfold"), rows_of.get("torch_fx")
        family = next(iter(rows_of.values())).family
        rows.append(
            [
                name,
                family,
                str(_before(rows_of)),
                _after(ours),
                _after(theirs),
                _number(ours, "error_float64", ".0e"),
                _number(ours, "error_float32", ".0e"),
                _number(ours, "noise_float32", ".0e"),
                _number(ours, "seconds", ".2f"),
                _number(theirs, "seconds", ".2f"),
            ]
        )
    header = ["network", "family", "BatchNorms", "after bnfold", "after torch.fx"]
    header += ["error float64", "error float32", "rounding float32", "seconds", "seconds torch.fx"]
    return table(header, rows)


def _troubles(by_network: dict[str, dict[str, Record]]) -> str:
    rows = [
        [record.name, _TOOLS[record.tool], record.outcome, record.detail]
        for rows_of in by_network.values()
        for record in rows_of.values()
        if record.outcome is not Outcome.FOLDED
    ]
    if not rows:
        return ""
    return "## Refused, failed, wrong\n\n" + table(["network", "tool", "outcome", "detail"], rows)


def _before(rows_of: dict[str, Record]) -> int:
    """A tool that ran out of time could not say; the other one can."""
    return max((record.before or 0 for record in rows_of.values()), default=0)


def _after(record: Record | None) -> str:
    if record is None:
        return ""
    if record.outcome is Outcome.FOLDED:
        return str(record.after)
    return record.outcome


def _number(record: Record | None, name: str, form: str) -> str:
    value = getattr(record, name, None)
    return "" if value is None else format(value, form)
