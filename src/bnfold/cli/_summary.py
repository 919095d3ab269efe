"""What a fold says at its end: one screen, in as many columns as there are.

what went and what stayed, by reason with the next step
ops by type, before and after; the size of the files
the steps that stayed, or all of them (--table)
the verdict, the files that were written, the time
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from bnfold._next_steps import next_step
from bnfold._text import printable, shortened, size
from bnfold.frontend import Look
from bnfold.outcomes import Item
from bnfold.report import FoldReport

MOST_OPS = 12
"""Lines of types of ops; those that did not change are summed up first."""
MOST_FACTS = 8
"""Lines about the model's versions, inputs and outputs."""
MOST_KEPT = 8
"""Steps that stayed, before the rest is left to --table."""


@dataclass(frozen=True, slots=True)
class Ending:
    """Everything that is said at the end of a fold."""

    report: FoldReport
    before: Mapping[str, int] = field(default_factory=dict)
    """Ops by type."""
    after: Mapping[str, int] = field(default_factory=dict)
    """The same of the folded model, or of what a fold would leave."""
    read: int | None = None
    """Bytes of the files that were read; None if there is none."""
    files: tuple[tuple[Path, int], ...] = ()
    """What was written, with its bytes."""
    verdict: str = ""
    """One line."""
    seconds: float | None = None
    """From the first byte read to the last one written; None if nothing was to be written."""
    facts: Sequence[str] = ()
    """What is known of the model beside that, a line each."""

    @property
    def written(self) -> int:
        """Bytes of the files that were written."""
        return sum(size for _, size in self.files)


def summary(ending: Ending, *, width: int, color: bool = False, table: bool = False) -> str:
    """The screen. `table` lists every step, not just those that stayed."""
    report = ending.report
    done = _wrapped([line for line in (report.summary, report.merged_summary) if line], width)
    parts = [[_paint(line, "1", color) for line in done], _reasons(report, width)]
    parts.append(_wrapped(_few(ending.facts), width, indent="  "))
    parts.append(_ops(ending, width))
    parts.append(_steps(report, width, color, table=table))
    parts.append(_merges(report, width) if table else [])
    clips = [report.clips_summary] if report.clips else []
    parts.append(_wrapped([*clips, *report.notes], width))
    parts.append(_closing(ending, width))
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _paint(text: str, code: str, color: bool) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if color else text


def _wrapped(texts: Sequence[str], width: int, indent: str = "") -> list[str]:
    return [
        line
        for text in texts
        for line in textwrap.wrap(
            printable(text),
            width,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    ]


# -------------------------------------------------------------------- what stayed


def _reasons(report: FoldReport, width: int) -> list[str]:
    kept = [item for item in report.items if not item.is_removed]
    counted = Counter((item.reason, next_step(item)) for item in kept)
    lines = []
    for (reason, step), count in counted.most_common():
        stays = "would stay" if report.is_planned else "stays" if count == 1 else "stay"
        text = f"{count} {stays} ({reason}): {step}"
        lines += _wrapped([text], width, indent="   ")
    return lines


def _steps(report: FoldReport, width: int, color: bool, *, table: bool) -> list[str]:
    """A line for each step: its name, and what became of it."""
    items = [item for item in report.items if table or not item.is_removed]
    if not items:
        return []
    shown = items if table else items[:MOST_KEPT]
    longest = max(len(printable(item.name)) for item in shown)
    room = min(longest, max(12, (width - 2) * 3 // 5))
    unused = width - room - 2 - max(len(_outcome(item, width - room - 2)) for item in shown)
    room = min(longest, room + unused)
    lines = [_step(item, room, width, color) for item in shown]
    if len(items) > len(shown):
        lines += _wrapped(
            [f"... and {len(items) - len(shown)} more: --table lists every step"], width
        )
    return lines


def _step(item: Item, room: int, width: int, color: bool) -> str:
    # ONNX's exporters end a node's name in its type: the first thing that nobody misses.
    name = item.name if len(item.name) <= room else item.name.removesuffix(f"/{item.kind}")
    outcome = _outcome(item, width - room - 2)
    painted = _paint(outcome, "32" if item.is_removed else "33", color)
    return f"{shortened(name, room).ljust(room)}  {painted}"


def _outcome(item: Item, width: int) -> str:
    """The sentence; where it does not fit, a word and the ops: the sentence is above, for all."""
    outcome = printable(item.sentence)
    if len(outcome) <= width:
        return outcome
    word = "into" if item.is_removed else str(item.reason)
    names = item.into if item.is_removed else filter(None, [item.blocker])
    others = ", ".join(_beside(name, item.name) for name in names)
    text = f"{word} {shortened(others, max(width - len(word) - 1, 5))}".rstrip()
    return shortened(text, width)


def _beside(name: str, other: str) -> str:
    """A name without the folders, or modules, that it shares with another: .../act/Relu."""
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(name, other, strict=False))
    shared = "".join(letter for letter, _ in pairs)
    end = max(shared.rfind("/"), shared.rfind("."))
    if end < len("..."):
        return name
    return f"...{name[end:] if name[end] == '/' else name[end + 1 :]}"


def _merges(report: FoldReport, width: int) -> list[str]:
    """A line for each op that does the work of others, and for each sum that could not go."""
    done = "would be merged" if report.is_planned else "merged"
    rows = [(merged.into, f"{done} from {', '.join(merged.parts)}") for merged in report.merged]
    rows += [(left.name, left.sentence) for left in report.unmerged]
    longest = max((len(printable(name)) for name, _ in rows), default=0)
    room = min(longest, max(12, (width - 2) * 2 // 5))
    return [
        f"{shortened(printable(name), room).ljust(room)}  "
        + shortened(printable(text), width - room - 2)
        for name, text in rows
    ]


def _few(facts: Sequence[str]) -> list[str]:
    """The first, as many as there is room for on a screen."""
    if len(facts) <= MOST_FACTS:
        return list(facts)
    return [*facts[: MOST_FACTS - 1], f"... and {len(facts) - MOST_FACTS + 1} more"]


# -------------------------------------------------------------------- ops and files


def _ops(ending: Ending, width: int) -> list[str]:
    """Ops by type, before and after, those that changed first to be shown."""
    kinds = sorted(ending.before.keys() | ending.after.keys())
    if not kinds:
        return []
    after = ending.after or ending.before
    changed = [kind for kind in kinds if _of(ending.before, kind) != _of(after, kind)]
    steady = sorted(
        (kind for kind in kinds if kind not in changed),
        key=lambda kind: (-_of(ending.before, kind), kind),
    )
    shown = steady[: max(0, MOST_OPS - len(changed))]
    rest = steady[len(shown) :]
    rows = [
        (kind, _of(ending.before, kind), _of(after, kind)) for kind in sorted([*changed, *shown])
    ]
    if rest:
        count = sum(_of(ending.before, kind) for kind in rest)
        rows.append((f"{len(rest)} other types", count, count))
    rows.append(("all", sum(ending.before.values()), sum(after.values())))
    cells = [("op", "before", "after", ""), *map(_row, rows)]
    if ending.read is not None:
        written = size(ending.written) if ending.files else ""
        cells.append(("file", size(ending.read), written, ""))
    names, *numbers = ([len(row[column]) for row in cells] for column in range(4))
    first, second, third = (max(lengths) for lengths in numbers)
    first, second = max(first, _COLUMN), max(second, _COLUMN)
    room = min(max(names), max(width - first - second - third - 6, 8))
    return [
        f"{shortened(name, room).ljust(room)}  {a:>{first}}  {b:>{second}}  {change}".rstrip()
        for name, a, b, change in cells
    ]


_COLUMN = 9
"""Characters of a number, at least: 103.5 MB."""


def _row(row: tuple[str, int, int]) -> tuple[str, str, str, str]:
    name, first, second = row
    return name, str(first), str(second), f"{second - first:+d}" if first != second else ""


def _of(counts: Mapping[str, int], kind: str) -> int:
    return counts.get(kind, 0)


def _closing(ending: Ending, width: int) -> list[str]:
    lines = _wrapped([ending.verdict], width) if ending.verdict else []
    if ending.seconds is None:
        return lines
    if not ending.files:
        return [*lines, f"nothing written ({ending.seconds:.1f} s)"]
    lines += [f"written: {printable(str(path))}" for path, _ in ending.files]
    lines[-1] += f" ({ending.seconds:.1f} s)"
    return lines


# -------------------------------------------------------------------- several models


def _headings(names: Sequence[str], room: int) -> list[str]:
    """The names; where one has no room, without the folders and the suffix that tell none apart."""
    ways = [list(names), [Path(name).name for name in names], [Path(name).stem for name in names]]
    shown = ways[0]
    for way in ways:
        if len(set(way)) == len(set(names)):
            shown = way
        if max(map(len, shown)) <= room:
            break
    return shown


def side_by_side(names: Sequence[str], looks: Sequence[Look], width: int) -> str:
    """A column for each model: what would go and stay, why, and its ops by type."""
    reasons = sorted({item.reason for look in looks for item in look.report.items if item.reason})
    kinds = sorted({kind for look in looks for kind in look.counts[0]})
    rows = [("", ["" for _ in names])]
    rows.append(("would go", [str(look.report.removed) for look in looks]))
    rows.append(("would stay", [str(look.report.kept) for look in looks]))
    for reason in reasons:
        counts = [sum(i.reason is reason for i in look.report.items) for look in looks]
        rows.append((f"  {reason}", list(map(str, counts))))
    rows += [(kind, [str(_of(look.counts[0], kind)) for look in looks]) for kind in kinds]
    first = min(max(len(name) for name, _ in rows), max(12, width // 3))
    room = max(8, (width - first) // len(looks) - 2)
    rows[0] = ("", _headings(names, room))
    column = [min(room, max(len(cells[place]) for _, cells in rows)) for place in range(len(looks))]
    return "\n".join(
        "  ".join(
            [
                shortened(name, first).ljust(first),
                *(shortened(cell, n).rjust(n) for cell, n in zip(cells, column, strict=True)),
            ]
        ).rstrip()
        for name, cells in rows
    )
