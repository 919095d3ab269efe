"""Show a result: a table for the console and one for notebooks."""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING

from bnfold import _html
from bnfold._text import printable

if TYPE_CHECKING:
    from bnfold.verify.findings import Findings, OutputDifference

_HEADINGS = (
    *("output", "max abs", "mean abs", "max rel", "mean rel", "cosine", "top-1"),
    *("folded", "original", "verdict"),
)


def text(result: Findings, *, color: bool, width: int) -> str:
    """The summary, a line per output, the layers that part, and the notes."""
    rows = [list(_HEADINGS), *(_cells(output) for output in result.outputs)]
    code = "1;32" if result.equal else "1;31"
    lines = [_painted(line, color, code) for line in _wrapped(printable(result.summary), width)]
    if result.outputs:
        lines += _table(rows, width)
    texts = [*(printable(o.detail) for o in result.outputs if o.detail), *_closing(result)]
    return "\n".join([*lines, *(part for line in texts for part in _wrapped(line, width))])


def _table(rows: list[list[str]], width: int) -> list[str]:
    """A line for each output; two where the terminal is narrow, or as many as it takes."""
    lengths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    beside = [
        "  ".join(cell.rjust(length) for cell, length in zip(row[1:], lengths[1:], strict=True))
        for row in rows
    ]
    if lengths[0] + 2 + len(beside[0]) <= width:
        pairs = zip(rows, beside, strict=True)
        return [f"{row[0].ljust(lengths[0])}  {rest}".rstrip() for row, rest in pairs]
    if 4 + len(beside[0]) <= width:
        pairs = zip(rows, beside, strict=True)
        return [line for row, rest in pairs for line in (row[0], f"    {rest}".rstrip())]
    lines = []
    for name, *cells in rows[1:]:
        named = zip(_HEADINGS[1:], cells, strict=True)
        parts = [f"{heading} {cell}".replace(" ", _HARD) for heading, cell in named if cell]
        wrapped = wrap(", ".join(parts), width, initial_indent="    ", subsequent_indent="    ")
        lines += [name, *(line.replace(_HARD, " ") for line in wrapped)]
    return lines


_HARD = "\N{NO-BREAK SPACE}"
"""Where no line is broken."""


def _wrapped(line: str, width: int) -> list[str]:
    return wrap(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _painted(line: str, color: bool, code: str) -> str:
    return f"\x1b[{code}m{line}\x1b[0m" if color else line


def _closing(result: Findings) -> list[str]:
    truths = {
        "float64": "folded, original: how far each is from the original in float64",
        "nudged": (
            "folded: how far it is from the original; original: how far moving its inputs and "
            "weights by their last bit takes it"
        ),
        "original": "folded: how far it is from the original",
    }
    drawn = "given" if result.seed is None else f"random, seed {result.seed}"
    samples = "1 sample" if result.samples == 1 else f"{result.samples} samples"
    truth = truths.get(result.truth, result.truth)
    if result.scope:
        truth = f"{truths['original']}; {result.scope}"
    lines = [f"{samples}, {drawn}; {truth}"]
    if result.layers:
        apart = [layer for layer in result.layers if not layer.equal]
        same = len(result.layers) - len(apart)
        lines.append(f"layers: {same} of {len(result.layers)} equal")
    if result.parting is not None:
        first = next((layer for layer in result.layers if not layer.equal), None)
        where = "" if first is None or first.channel is None else f", channel {first.channel}"
        lines.append(f"first layer where they part: {printable(result.parting)}{where}")
    return [*lines, *(printable(note) for note in result.notes)]


def _cells(output: OutputDifference) -> list[str]:
    numbers = (output.max_absolute, output.mean_absolute, output.max_relative, output.mean_relative)
    return [
        printable(output.name),
        *(f"{number:.1e}" for number in numbers),
        f"{output.cosine:.6f}",
        "" if output.top1 is None else f"{output.top1:.1%}",
        f"{output.error:.1e}",
        f"{output.own_error:.1e}",
        "equal" if output.equal else "NOT EQUAL",
    ]


def html(result: Findings) -> str:
    """A self-contained fragment; every name is escaped."""
    table = _html.table(_HEADINGS, map(_cells, result.outputs), style="text-align:left")
    return _html.fragment(result.summary, table, _html.paragraphs(_closing(result)))
