"""The drawing as SVG: boxes for ops, lines for what they read; every name is escaped.

Colours are the style sheet's. What a colour says, a word in the box says too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from bnfold.network import INPUT, OUTPUT, State
from bnfold.page.layout import HEIGHT, WIDTH, Drawing, Line, lay_out
from bnfold.page.text import escape, shorten, tail

if TYPE_CHECKING:
    from bnfold.network import NetworkNode

_KIND_LENGTH, _NAME_LENGTH = 13, 24
"""Characters that fit into a box."""
_RADIUS = 4
"""Of the corners of lines."""
FAR = 400
"""From so many ops on, the whole drawing is too small for words to be read."""

WORDS = {
    State.PLAIN: "",
    State.EDITED: "edited",
    State.BOUNDS: "bounds",
    State.KEPT: "kept",
    State.REMOVED: "removed",
}
"""What stands in a box."""
BLOCKS = "blocks"
"""What stands in the box of an op that keeps a BatchNorm in place."""

_SAYS = {
    State.PLAIN: "unchanged",
    State.EDITED: "edited: new weights or constants",
    State.BOUNDS: "got bounds per channel",
    State.KEPT: "kept",
    State.REMOVED: "removed",
}


def draw_svg(
    nodes: Sequence[NetworkNode],
    *,
    title: str,
    identity: str,
    sentences: Mapping[str, tuple[int, str]],
) -> str:
    """One drawing. `sentences` has number and outcome of each item of the report."""
    drawing = lay_out([node.inputs for node in nodes])
    boxes = "".join(
        _box(node, number, corner, sentences)
        for number, (node, corner) in enumerate(zip(nodes, drawing.boxes, strict=True))
    )
    far = " far" if len(nodes) >= FAR else ""
    return (
        f'<svg class="network{far}" id="{identity}" viewBox="0 0 {drawing.width} {drawing.height}"'
        f' width="{drawing.width}" height="{drawing.height}" role="img"'
        f' aria-label="{escape(title)}"><g class="view">'
        f"{_lines(drawing)}{_arrows(drawing)}{boxes}</g></svg>"
    )


def _box(
    node: NetworkNode,
    number: int,
    corner: tuple[int, int],
    sentences: Mapping[str, tuple[int, str]],
) -> str:
    state = "end" if node.kind in (INPUT, OUTPUT) else str(node.state)
    blocks = " blocker" if node.blocker else ""
    item = sentences.get(node.item) if node.item is not None else None
    link = f' data-item="{item[0]}"' if item else ""
    reads = f' data-r="{" ".join(map(str, node.inputs))}"' if node.inputs else ""
    word = BLOCKS if node.blocker else WORDS[node.state]
    tag = f'<text class="w" x="{WIDTH - 7}" y="13">{word}</text>' if word else ""
    kind, name = shorten(node.kind, _KIND_LENGTH), tail(node.name, _NAME_LENGTH)
    return (
        f'<g class="n {state}{blocks}" data-n="{number}"{reads}{link}'
        f' transform="translate({corner[0]} {corner[1]})">'
        f"<title>{escape(_says(node, item))}</title>"
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="5"/>'
        f'<text class="k" x="7" y="13">{escape(kind)}</text>'
        f'<text x="7" y="25">{escape(name)}</text>{tag}</g>'
    )


def _says(node: NetworkNode, item: tuple[int, str] | None) -> str:
    """All of it in words: the tooltip, and what is read aloud."""
    if node.kind in (INPUT, OUTPUT):
        says = f"{node.kind} of the network"
    else:
        says = item[1] if item else _SAYS[node.state]
    blocks = "; stands in the way of a step that is kept" if node.blocker else ""
    return f"{node.name} ({node.kind}): {says}{blocks}"


def _lines(drawing: Drawing) -> str:
    """One path per op, so that what leads away from it can be lit up."""
    return "".join(
        f'<path class="e" data-s="{source}" d="{"".join(map(_path, lines))}"/>'
        for source, lines in drawing.lines.items()
    )


def _path(line: Line) -> str:
    """Straight parts, with rounded corners."""
    (x, y), *rest = _corners(line)
    parts = [f"M{x} {y}"]
    for at, (here_x, here_y) in enumerate(rest):
        if at == len(rest) - 1:
            parts.append(f"L{here_x} {here_y}")
            break
        next_x, next_y = rest[at + 1]
        before = _towards((here_x, here_y), (x, y))
        after = _towards((here_x, here_y), (next_x, next_y))
        parts.append(f"L{before[0]} {before[1]}Q{here_x} {here_y} {after[0]} {after[1]}")
        x, y = here_x, here_y
    return "".join(parts)


def _corners(line: Line) -> list[tuple[int, int]]:
    """Without points on top of each other."""
    found = [line[0]]
    found += [point for before, point in pairwise(line) if point != before]
    return found


def _towards(corner: tuple[int, int], end: tuple[int, int]) -> tuple[int, int]:
    """A little way from a corner along a horizontal or vertical part."""
    x, y = (end[0] - corner[0], end[1] - corner[1])
    far = min(_RADIUS, (abs(x) + abs(y)) // 2)
    return corner[0] + far * _sign(x), corner[1] + far * _sign(y)


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)


def _arrows(drawing: Drawing) -> str:
    heads = "".join(f"M{x - 3} {y - 5}L{x} {y}L{x + 3} {y - 5}" for x, y in drawing.arrows)
    return f'<path class="e" d="{heads}"/>' if heads else ""


def legend() -> str:
    """What the boxes mean."""
    samples = (
        ("edited", "edited: took a BatchNorm in, or makes up for one"),
        ("removed", "removed"),
        ("bounds", "activation with bounds per channel"),
        ("kept", "kept"),
        ("blocker", "blocks: keeps a BatchNorm in place"),
        ("plain", "unchanged"),
    )
    entries = "".join(
        f'<li><svg viewBox="0 0 26 16" aria-hidden="true"><g class="n {css}">'
        f'<rect x="2" y="2" width="22" height="12" rx="3"/></g></svg>{words}</li>'
        for css, words in samples
    )
    return f'<ul class="legend" aria-label="Boxes">{entries}</ul>'
